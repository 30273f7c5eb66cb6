"""Exact passes: rewritings that leave the function as it is, each a module with a proof in its test."""
