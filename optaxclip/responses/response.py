"""The interface of responses."""

from typing import Protocol, runtime_checkable

from optaxclip.numbers import Leaf, Number

GroupFactors = tuple[Number, ...]


@runtime_checkable
class Response(Protocol):
    """Changes the groups above their limit; called with one array of groups."""

    def reach(self, magnitude: Number, limit: Number, /) -> Number:
        """Return what a magnitude becomes."""
        ...

    def weigh(self, value: Number, scale: Number, limit: Number) -> GroupFactors:
        """Return the weights of groups of magnitude ``value / scale``."""
        ...

    def apply(self, leaf: Leaf, *weights: Number) -> Leaf:
        """Apply the weights to a leaf that is at least as wide as they are."""
        ...

    def pointwise(self) -> "Response":
        """Return the equivalent response for groups of one number each."""
        ...
