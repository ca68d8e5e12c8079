"""Gradients that are formed for each example: small, or without a rule."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Array

from optaxclip.per_example.assembly import put_together
from optaxclip.per_example.calls import Atom
from optaxclip.per_example.convolutions import KernelDirect
from optaxclip.per_example.linear import Linear
from optaxclip.per_example.ways import (
    Factors,
    Good,
    InUnits,
    Kept,
    Squares,
    Way,
    squared_in_units,
    sum_of_squares,
    weighted_sum,
)


@dataclass(frozen=True)
class FullGradient:
    """The gradient of each example as JAX computes it: small, or without a rule.

    Attributes:
      gradient: the leaf's gradient.
    """

    gradient: Atom
    shared: tuple[Atom, ...] = ()

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """See `Way.atoms`."""
        return (self.gradient,)

    @property
    def cost(self) -> int:
        """See `Way.cost`."""
        return math.prod(self.gradient.aval.shape)

    @property
    def memory(self) -> int:
        """See `Way.memory`."""
        return math.prod(self.gradient.aval.shape)

    def knowing(self, values: Mapping[Atom, Array]) -> Way:
        """See `Way.knowing`."""
        return self

    def hold(self, values: Sequence[Array]) -> Kept:
        """See `Way.hold`."""
        return (values[0],)

    def squares(self, kept: Kept) -> Squares:
        """See `Way.squares`."""
        return Squares(sum_of_squares(kept[0]))

    def squares_in_units(self, kept: Kept) -> InUnits:
        """See `Way.squares_in_units`."""
        return squared_in_units(kept[0])

    def total(self, kept: Kept, weights: Factors, good: Good) -> Array:
        """See `Way.total`."""
        return weighted_sum(kept[0], weights, good)


@dataclass(frozen=True)
class FormedKernel:
    """The gradient of a kernel, multiplied out for each example.

    Attributes:
      kernel: how it is multiplied out.
      linear: the steps from there.
    """

    kernel: KernelDirect
    linear: Linear

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """See `Way.atoms`."""
        return self.linear.atoms

    @property
    def shared(self) -> tuple[Atom, ...]:
        """See `Way.shared`."""
        return self.linear.shared

    @property
    def cost(self) -> int:
        """See `Way.cost`."""
        return self.kernel.cost

    @property
    def memory(self) -> int:
        """See `Way.memory`."""
        return self.kernel.memory

    def knowing(self, values: Mapping[Atom, Array]) -> "FormedKernel":
        """See `Way.knowing`."""
        return replace(self, linear=self.linear.knowing(values))

    def hold(self, values: Sequence[Array]) -> Kept:
        """See `Way.hold`."""
        return (self.kernel.formed(values),)

    def squares(self, kept: Kept) -> Squares:
        """See `Way.squares`."""
        return Squares(sum_of_squares(kept[0]))

    def squares_in_units(self, kept: Kept) -> InUnits:
        """See `Way.squares_in_units`."""
        return squared_in_units(kept[0])

    def total(self, kept: Kept, weights: Factors, good: Good) -> Array:
        """See `Way.total`."""
        found = self.kernel.arranged(weighted_sum(kept[0], weights, good))
        return put_together(self.linear.term, [found], self.linear.values, 0.0)
