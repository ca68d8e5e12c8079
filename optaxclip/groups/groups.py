"""Leaves and how they are grouped, in one object; numbers of groups stay in trees.

What belongs to groups is an array, or a tree like the updates with an array for each
leaf. So is what a threshold remembers of them.
"""

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree

from optaxclip.groups.entries import Entry
from optaxclip.groups.reduction import MAX, SUM, Reduction
from optaxclip.leaves import counted, is_one_leaf
from optaxclip.mesh import MeshAxes, copies, on_one_device
from optaxclip.numbers import Leaf, Number, measuring_dtype, widen

PerGroup = PyTree[Number]


def map_groups(
    function: Callable[..., Any], first: PyTree[Array], *rest: PyTree[Array]
) -> Any:
    """Call a function for each array of groups; one number stands for all groups.

    Args:
      function: takes an array of each argument, and gives an array or a tuple of them.
      first: a number for each group.
      rest: the same, or one number for all groups.

    Returns:
      What `function` gives, each in a tree like `first`.
    """
    arrays, tree = jax.tree.flatten(first)
    others = [leaf_numbers(x, len(arrays)) for x in rest]
    call = share_trace(function, arrays)
    given = [call(*each) for each in zip(arrays, *others, strict=True)]
    if not given:  # One of nothing tells what there would be of each array.
        number = jax.ShapeDtypeStruct((), jnp.float32)
        found = jax.eval_shape(function, *(number for _ in (first, *rest)))
        parts = ((),) * len(found) if isinstance(found, tuple) else None
    else:
        parts = zip(*given, strict=True) if isinstance(given[0], tuple) else None
    if parts is None:
        return tree.unflatten(given)
    return tuple(tree.unflatten(part) for part in parts)


def share_trace(function: Callable[..., Any], arrays: list[Any]) -> Callable[..., Any]:
    """Trace what is called for many arrays only once for all of one shape."""
    if len(arrays) < 2 or not any(isinstance(x, Tracer) for x in arrays):
        return function

    @functools.wraps(function)
    def own(*args: Any) -> Any:  # Of equal functions JAX may forget the trace, or not.
        return function(*args)

    return jax.jit(own)


def leaf_numbers(given: PyTree[Array], number: int) -> list[Any]:
    """List the numbers of each leaf, which one number for all may stand for."""
    return [given] * number if is_one_leaf(given) else jax.tree.leaves(given)


class Summary(NamedTuple):
    """What a report shows of magnitudes and limits.

    Attributes:
      magnitude: that of each group where groups are few, or else of the one group that
        is the most above its limit.
      limit: the limits of the same groups.
      fraction: the share of all groups that are above their limit.
    """

    magnitude: Float[Array, "..."]
    limit: Float[Array, "..."]
    fraction: Float[Array, ""]


def is_above(magnitude: Number, limit: Number) -> Bool[Array, "..."]:
    """Tell which groups are above their limit; what is broken is above any."""
    return ~(magnitude <= limit) & (limit < jnp.inf)


@dataclass(frozen=True)
class Groups(ABC):
    """The leaves of a tree that count, and how they are grouped.

    Attributes:
      leaves: the leaves, in the order of the tree; shapes alone before the first step.
      dims: the dimensions of each leaf that are measured together.
      axes: the mesh axes over which each leaf's groups are spread.
    """

    leaves: list[Any]
    dims: tuple[tuple[int, ...], ...]
    axes: tuple[MeshAxes, ...]

    @property
    def pointwise(self) -> bool:
        """Whether every number is a group of its own."""
        return False

    @property
    def shared(self) -> bool:
        """Whether several leaves may have one group."""
        return False

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """The type in which the groups are measured: float32 or wider."""
        return measuring_dtype(self.leaves)

    @property
    def complex(self) -> bool:
        """Whether any number is complex, with a modulus beyond what its parts are."""
        return any(jnp.iscomplexobj(leaf) for leaf in self.leaves)

    @functools.cached_property
    def local(self) -> bool:
        """Whether all of every group is known to lie on the device that computes."""
        arrays = (leaf for leaf in self.leaves if isinstance(leaf, jax.Array))
        return not any(self.axes) and all(map(on_one_device, arrays))

    @property
    def total_size(self) -> int:
        """How many numbers all leaves have, on the whole mesh."""
        return sum(
            leaf.size * copies(leaf, axes)
            for leaf, axes in zip(self.leaves, self.axes, strict=True)
        )

    def of(self, tree: PyTree) -> "Groups":
        """Arrange a tree of the same leaves in the same groups."""
        return self.with_leaves(counted(tree))

    def with_leaves(self, leaves: Sequence[Leaf]) -> "Groups":
        """Put others in the place of the leaves."""
        return dataclasses.replace(self, leaves=list(leaves))

    def sum(self, term: Callable[..., Number], *of_group: PerGroup) -> PerGroup:
        """Add ``term(leaf, *of_group)`` over each group, of leaves of type `dtype`."""
        return self._reduce(SUM, self._terms(term, of_group))

    def max(self, term: Callable[..., Number], *of_group: PerGroup) -> PerGroup:
        """Find the largest ``term(leaf, *of_group)`` of each group, as `sum` does."""
        return self._reduce(MAX, self._terms(term, of_group))

    def _terms(
        self, term: Callable[..., Number], of_group: tuple[PerGroup, ...]
    ) -> list[Number]:
        given = [self.spread(numbers) for numbers in of_group]

        @functools.wraps(term)
        def widened(leaf: Leaf, *numbers: Number) -> Number:
            return term(widen(leaf, self.dtype), *numbers)

        call = share_trace(widened, self.leaves)
        return [call(*each) for each in zip(self.leaves, *given, strict=True)]

    def _sizes(self) -> list[int]:
        """Tell how many numbers of each leaf share a group, on the whole mesh."""
        return [
            math.prod(leaf.shape[d] for d in dims) * copies(leaf, axes)
            for leaf, dims, axes in zip(self.leaves, self.dims, self.axes, strict=True)
        ]

    @abstractmethod
    def _reduce(self, op: Reduction, terms: list[Number]) -> PerGroup:
        """Reduce the terms, one for each number of the leaves, over each group."""

    @abstractmethod
    def spread(self, of_group: PyTree[Array]) -> list[Array]:
        """Give each leaf what its groups have, in a shape that broadcasts to it."""

    @abstractmethod
    def sizes(self) -> PerGroup:
        """Tell how many numbers each group holds."""

    @abstractmethod
    def struct(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Tell in which shapes, and how sharded, numbers for the groups come."""

    @property
    @abstractmethod
    def report_shape(self) -> tuple[int, ...]:
        """The shape of a number in a report."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What the entries of a report are of, in their order."""
        return ()

    @abstractmethod
    def summarize(self, value: PerGroup, scale: PerGroup, limit: PerGroup) -> Summary:
        """Sum up for a report the magnitudes ``value / scale``, and their limits."""

    @abstractmethod
    def share(self, mask: PyTree[Bool[Array, "..."]]) -> Float[Array, ""]:
        """Tell for which share of the groups something holds, on the whole mesh."""
