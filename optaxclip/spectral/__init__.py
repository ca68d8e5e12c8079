"""Singular values: bounded for every matrix of a tree."""
