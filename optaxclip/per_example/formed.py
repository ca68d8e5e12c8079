"""Kernels of which the gradient of each example is formed."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Array

from optaxclip.per_example.assembly import put_together
from optaxclip.per_example.convolutions import KernelDirect
from optaxclip.per_example.linear import Linear
from optaxclip.per_example.terms import Convolution
from optaxclip.per_example.ways import (
    Factors,
    Good,
    Kept,
    Squares,
    squared,
    weighted_sum,
)


@dataclass(frozen=True)
class Formed(Linear):
    """The gradient of a kernel, multiplied out for each example and held."""

    @property
    def _kernel(self) -> KernelDirect:
        (cut,) = self.cuts
        assert isinstance(cut, Convolution)
        return KernelDirect(cut)

    @property
    def memory(self) -> int:
        """The numbers stored for one example, in addition to the traced values."""
        return self._kernel.memory

    def hold(self, values: Sequence[Array]) -> Kept:
        """Multiply out."""
        return (self._kernel.formed(values),)

    def squares(self, kept: Kept) -> Squares:
        """Compute the squared norm of each example's gradient."""
        return squared(kept[0])

    def total(self, kept: Kept, weights: Factors, good: Good) -> Array:
        """Sum the gradients of good examples, multiplied by their weights."""
        found = self._kernel.arranged(weighted_sum(kept[0], weights, good))
        return put_together(self.term, [found], self.values, 0.0)
