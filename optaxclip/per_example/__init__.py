"""Every example's gradient clipped, at about the cost of one batch gradient."""

from optaxclip.per_example.clipped import (
    PerExample,
    clipped_grad,
    clipped_value_and_grad,
    per_example_norms,
)

__all__ = ["PerExample", "clipped_grad", "clipped_value_and_grad", "per_example_norms"]
