"""Weight clipping: bounds on the updated parameters, placed last in a chain."""
