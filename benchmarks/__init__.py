"""Measurements, each a module with a command line."""
