"""Datasets, named by one string everywhere: ``kind:PATH?option=value&option=value``."""
