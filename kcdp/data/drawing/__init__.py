"""Faces drawn from parameters: one expression, two renderers."""
