"""Numbers arranged in groups: reduced to one number each, and spread back."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from optaxclip.magnitudes import Leaf, Norm, Number, PerGroup
from optaxclip.reductions import Axes, Reduction, spread_over


def each_group(function: Callable[..., Any], *of_group: PerGroup) -> Any:
    """Call a function for each array of groups; one number stands for all groups."""
    lists = [x for x in of_group if isinstance(x, list)]
    if not lists:
        return function(*of_group)
    return [
        function(*(x[i] if isinstance(x, list) else x for x in of_group))
        for i in range(len(lists[0]))
    ]


def copies(x: Array, axes: Axes) -> int:
    """Count the devices over which an array is spread."""
    return math.prod(jax.lax.axis_size(axis) for axis in spread_over(x, axes))


@dataclass(frozen=True)
class Grouping(ABC):
    """What is known of the leaves that count, in the order of the tree.

    Attributes:
      shapes: the shape of each leaf.
      dims: the dimensions of each leaf that are measured together.
      axes: the mesh axes over which each leaf's groups are spread.
    """

    shapes: tuple[tuple[int, ...], ...]
    dims: tuple[tuple[int, ...], ...]
    axes: tuple[Axes, ...]

    @property
    def single(self) -> bool:
        """Whether there is but one group, kept as a scalar."""
        return False

    @property
    def pointwise(self) -> bool:
        """Whether every number is a group of its own."""
        return False

    def count(self, leaves: list[Leaf]) -> int:
        """Count the numbers of all leaves, on the whole mesh."""
        return sum(
            math.prod(shape) * copies(leaf, axes)
            for leaf, shape, axes in zip(leaves, self.shapes, self.axes, strict=True)
        )

    def suited(self, norm: Norm) -> Norm:
        """Give the cheapest norm that measures these groups as `norm` does."""
        return norm

    def _numbers(self, leaves: list[Leaf]) -> list[int]:
        """Tell how many numbers of each leaf share a group, on the whole mesh."""
        return [
            math.prod(shape[d] for d in dims) * copies(leaf, axes)
            for leaf, shape, dims, axes in zip(
                leaves, self.shapes, self.dims, self.axes, strict=True
            )
        ]

    @abstractmethod
    def reduce(
        self, op: Reduction, leaves: list[Leaf], terms: list[Number]
    ) -> PerGroup:
        """Reduce the terms, one a number of the leaves, over each group."""

    @abstractmethod
    def spread(self, of_group: PerGroup) -> list[Number]:
        """Give each leaf what its groups have, in a shape that broadcasts to it."""

    @abstractmethod
    def full(self, value: float, leaves: list[Leaf], dtype: DTypeLike) -> PerGroup:
        """Give each group the same number."""

    @abstractmethod
    def like(
        self, leaves: list[Leaf], dtype: DTypeLike
    ) -> PyTree[jax.ShapeDtypeStruct]:
        """Tell in which shapes, and how sharded, numbers for the groups come."""

    @property
    @abstractmethod
    def report_shape(self) -> tuple[int, ...]:
        """Tell the shape of a number in a `digest`."""

    @abstractmethod
    def sizes(self, leaves: list[Leaf], dtype: DTypeLike) -> PerGroup:
        """Tell how many numbers each group holds."""

    @abstractmethod
    def digest(
        self, numbers: Sequence[PerGroup], held: PyTree[Bool[Array, "..."]]
    ) -> tuple[list[Float[Array, "..."]], Float[Array, ""]]:
        """Sum up what a report shows.

        Args:
          numbers: several numbers of each group, none of them negative.
          held: whether something holds, for each group.

        Returns:
          Each group's numbers, or the largest of very many groups; and the share of
          the groups for which something held.
        """
