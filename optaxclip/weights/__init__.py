"""Bounds on what the parameters become, placed last in a chain."""
