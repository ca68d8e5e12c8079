"""Singular values: bounded for every matrix of a tree, without a decomposition."""
