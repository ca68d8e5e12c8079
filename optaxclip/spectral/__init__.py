"""Bounds on the singular values of every matrix of a tree."""
