"""What a response has to answer."""

from typing import Protocol, runtime_checkable

from optaxclip.numbers import Leaf, Number

GroupFactors = tuple[Number, ...]


@runtime_checkable
class Response(Protocol):
    """What a response has to answer, for one array of groups."""

    def reach(self, magnitude: Number, limit: Number, /) -> Number:
        """Tell what a magnitude becomes."""
        ...

    def weigh(self, value: Number, scale: Number, limit: Number) -> GroupFactors:
        """Decide on groups of the magnitude ``value / scale``."""
        ...

    def apply(self, leaf: Leaf, *weights: Number) -> Leaf:
        """Do to a leaf, as wide as its weights, what was decided for its groups."""
        ...

    def pointwise(self) -> "Response":
        """Give what this response is where every number is a group of its own."""
        ...
