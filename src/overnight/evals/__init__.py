"""Evaluations; each yields (name, value) and leaves the logging to its caller."""
