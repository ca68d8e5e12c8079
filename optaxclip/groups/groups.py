"""The base class of groups: leaves, and how they are grouped.

Per-group numbers, and the memory of thresholds, are one array, or a tree like the
updates with one array per leaf.
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
    """Map a function over arrays of groups; one number stands for all groups.

    Args:
      function: takes one array per argument, and returns an array or a tuple of them.
      first: one number per group.
      rest: the same, or one number for all groups.

    Returns:
      The results of `function`, each in a tree like `first`.
    """
    arrays, tree = jax.tree.flatten(first)
    others = [leaf_numbers(x, len(arrays)) for x in rest]
    call = share_trace(function, arrays)
    given = [call(*each) for each in zip(arrays, *others, strict=True)]
    if not given:  # Without arrays, find the number of results by abstract evaluation.
        number = jax.ShapeDtypeStruct((), jnp.float32)
        found = jax.eval_shape(function, *(number for _ in (first, *rest)))
        parts = ((),) * len(found) if isinstance(found, tuple) else None
    else:
        parts = zip(*given, strict=True) if isinstance(given[0], tuple) else None
    if parts is None:
        return tree.unflatten(given)
    return tuple(tree.unflatten(part) for part in parts)


def share_trace(function: Callable[..., Any], arrays: list[Any]) -> Callable[..., Any]:
    """Trace a function that is called for many arrays only once per shape."""
    if len(arrays) < 2 or not any(isinstance(x, Tracer) for x in arrays):
        return function

    @functools.wraps(function)
    def own(*args: Any) -> Any:  # JAX may or may not forget traces of equal functions.
        return function(*args)

    return jax.jit(own)


def leaf_numbers(given: PyTree[Array], number: int) -> list[Any]:
    """List the numbers of each leaf; one number may stand for all."""
    return [given] * number if is_one_leaf(given) else jax.tree.leaves(given)


class Summary(NamedTuple):
    """A summary of magnitudes and limits, for a report.

    Attributes:
      magnitude: the magnitude of each group if groups are few, or else of the group
        that exceeds its limit the most.
      limit: the limits of the same groups.
      fraction: the fraction of all groups that are above their limit.
    """

    magnitude: Float[Array, "..."]
    limit: Float[Array, "..."]
    fraction: Float[Array, ""]


def is_above(magnitude: Number, limit: Number) -> Bool[Array, "..."]:
    """Return which groups are above their limit, as broken ones are if it is finite."""
    return ~(magnitude <= limit) & (limit < jnp.inf)


@dataclass(frozen=True)
class Groups(ABC):
    """The leaves of a tree that count, and how they are grouped.

    Attributes:
      leaves: the leaves, in the order of the tree; in the init they may be shapes.
      dims: the dimensions of each leaf that are measured together.
      axes: the mesh axes over which each leaf's groups are sharded.
    """

    leaves: list[Any]
    dims: tuple[tuple[int, ...], ...]
    axes: tuple[MeshAxes, ...]

    @property
    def pointwise(self) -> bool:
        """Whether every number is its own group."""
        return False

    @property
    def shared(self) -> bool:
        """Whether several leaves may share a group."""
        return False

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """The dtype in which the groups are measured: float32 or wider."""
        return measuring_dtype(self.leaves)

    @property
    def complex(self) -> bool:
        """Whether any leaf is complex, so that moduli may exceed their parts."""
        return any(jnp.iscomplexobj(leaf) for leaf in self.leaves)

    @functools.cached_property
    def local(self) -> bool:
        """Whether every group is known to lie entirely on one device."""
        arrays = (leaf for leaf in self.leaves if isinstance(leaf, jax.Array))
        return not any(self.axes) and all(map(on_one_device, arrays))

    @property
    def total_size(self) -> int:
        """The number of elements of all leaves, on the whole mesh."""
        return sum(
            leaf.size * copies(leaf, axes)
            for leaf, axes in zip(self.leaves, self.axes, strict=True)
        )

    def of(self, tree: PyTree) -> "Groups":
        """Arrange a tree of the same leaves in the same groups."""
        return self.with_leaves(counted(tree))

    def with_leaves(self, leaves: Sequence[Leaf]) -> "Groups":
        """Replace the leaves."""
        return dataclasses.replace(self, leaves=list(leaves))

    def sum(self, term: Callable[..., Number], *of_group: PerGroup) -> PerGroup:
        """Sum ``term(leaf, *of_group)`` over each group; leaves are cast to `dtype`."""
        return self._reduce(SUM, term, of_group)

    def sums(self, *terms: Callable[[Leaf], Number]) -> tuple[PerGroup, ...]:
        """Sum several terms over each group, like `sum`."""
        return tuple(map(self.sum, terms))

    def max(self, term: Callable[..., Number], *of_group: PerGroup) -> PerGroup:
        """Take the maximum of ``term(leaf, *of_group)`` over each group, like `sum`."""
        return self._reduce(MAX, term, of_group)

    def _map(self, function: Callable[..., Any], of_group: tuple[PerGroup, ...]) -> Any:
        """List ``function(dims, leaf, *numbers)``, the leaves cast to `dtype`."""

        def of_dims(dims: tuple[int, ...]) -> Callable[..., Any]:
            def widened(leaf: Leaf, *numbers: Number) -> Any:
                return function(dims, widen(leaf, self.dtype), *numbers)

            return share_trace(widened, self.leaves)

        given = [self.spread(numbers) for numbers in of_group]
        calls = {dims: of_dims(dims) for dims in self.dims}
        each = zip(self.dims, self.leaves, *given, strict=True)
        return [calls[dims](*arrays) for dims, *arrays in each]

    def _terms(
        self, term: Callable[..., Number], of_group: tuple[PerGroup, ...]
    ) -> list[Number]:
        return self._map(lambda _, *given: term(*given), of_group)

    def _sizes(self) -> list[int]:
        """Return how many numbers of each leaf share a group, on the whole mesh."""
        return [
            math.prod(leaf.shape[d] for d in dims) * copies(leaf, axes)
            for leaf, dims, axes in zip(self.leaves, self.dims, self.axes, strict=True)
        ]

    @abstractmethod
    def _reduce(
        self, op: Reduction, term: Callable[..., Number], of_group: tuple[PerGroup, ...]
    ) -> PerGroup:
        """Reduce ``term(leaf, *of_group)`` over each group."""

    @abstractmethod
    def spread(self, of_group: PyTree[Array]) -> list[Array]:
        """Return the numbers of each leaf's groups, shaped to broadcast to the leaf."""

    @abstractmethod
    def sizes(self) -> PerGroup:
        """Return the number of elements of each group."""

    @abstractmethod
    def struct(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Return the shapes, dtypes and shardings of per-group numbers."""

    @property
    @abstractmethod
    def report_shape(self) -> tuple[int, ...]:
        """The shape of magnitudes and limits in a report."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The names of the entries of a report, in order."""
        return ()

    @abstractmethod
    def summarize(self, value: PerGroup, scale: PerGroup, limit: PerGroup) -> Summary:
        """Summarize the magnitudes ``value / scale`` and their limits for a report."""

    def combine(self, op: Reduction, arrays: Sequence[Number]) -> Number:
        """Combine the numbers of all groups, of which there is at least one."""
        return op.within(jnp.stack([op.within(x) for x in arrays]))

    @abstractmethod
    def share(self, mask: PyTree[Bool[Array, "..."]]) -> Float[Array, ""]:
        """Return the fraction of groups where a mask is true, on the whole mesh."""
