"""The named methods, one file for a family or a paper."""
