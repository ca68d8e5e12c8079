"""Groups within leaves: tensors, units and elements, with one array per leaf."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from optaxclip.groups.census import how_often
from optaxclip.groups.entries import Entry, packed, paths_of
from optaxclip.groups.groups import (
    Groups,
    PerGroup,
    Summary,
    is_above,
    leaf_numbers,
    map_groups,
)
from optaxclip.groups.ranking import most_above, top_and_count
from optaxclip.groups.reduction import Reduction, sums_in_one_pass
from optaxclip.leaves import is_one_leaf
from optaxclip.mesh import (
    MeshAxes,
    copies,
    sharding_along,
    spread_over,
    varying,
    varying_axes,
)
from optaxclip.numbers import Leaf, Number, capped


@dataclass(frozen=True)
class PerLeaf(Groups):
    """Groups that are parts of leaves, with one array per leaf that broadcasts to it.

    Attributes:
      tree: the structure of the leaves that count, without the others.
      apart: the mesh axes over which the groups of each leaf are spread.
    """

    tree: Any
    apart: tuple[MeshAxes, ...]

    def _reduce(
        self, op: Reduction, term: Callable[..., Number], of_group: tuple[PerGroup, ...]
    ) -> PerGroup:
        def reduced(dims: tuple[int, ...], leaf: Leaf, *numbers: Number) -> Number:
            kept = len(dims) < leaf.ndim  # else one number
            return op.within(term(leaf, *numbers), axis=dims, keepdims=kept)

        parts = self._map(reduced, of_group)
        return self.tree.unflatten(
            [op.over(*each) for each in zip(parts, self.axes, strict=True)]
        )

    def sums(self, *terms: Callable[[Leaf], Number]) -> tuple[PerGroup, ...]:
        """See `Groups.sums`; in one pass over leaves that are not sharded."""
        if not self.local:
            return super().sums(*terms)

        def together(dims: tuple[int, ...], leaf: Leaf) -> tuple[Number, ...]:
            powers = tuple(term(leaf) for term in terms)
            return sums_in_one_pass(powers, dims, len(dims) < leaf.ndim)

        found = self._map(together, ())
        return tuple(
            self.tree.unflatten([each[i] for each in found]) for i in range(len(terms))
        )

    def spread(self, of_group: PyTree[Array]) -> list[Array]:
        """See `Groups.spread`."""
        return leaf_numbers(of_group, len(self.leaves))

    def sizes(self) -> PerGroup:
        """See `Groups.sizes`."""
        dtype = self.dtype
        return self.tree.unflatten([jnp.asarray(n, dtype) for n in self._sizes()])

    def struct(self) -> PyTree[jax.ShapeDtypeStruct]:
        """See `Groups.struct`."""
        of_leaf = functools.partial(_struct, dtype=self.dtype)
        shapes = map(of_leaf, self.leaves, self.dims)
        differ = map(self._differ, self.leaves, self.axes)
        return self.tree.unflatten(list(map(varying, shapes, differ)))

    def _differ(self, leaf: Any, axes: MeshAxes) -> frozenset[str]:
        """Return the mesh axes over which the numbers of a leaf's groups differ."""
        return varying_axes(leaf).difference(axes)

    @property
    def report_shape(self) -> tuple[int, ...]:
        """See `Groups.report_shape`."""
        return ()

    def _by_shards(self, arrays: list[Array]) -> dict[MeshAxes, list[int]]:
        """Group the positions of arrays by the mesh axes over which groups differ."""
        found: dict[MeshAxes, list[int]] = {}
        for i, each in enumerate(zip(arrays, self.apart, strict=True)):
            found.setdefault(spread_over(*each), []).append(i)
        return found

    def combine(self, op: Reduction, arrays: Sequence[Number]) -> Number:
        """See `Groups.combine`; on the whole mesh."""
        alike: dict[MeshAxes, list[Number]] = {}
        for x, apart in zip(arrays, self.apart, strict=True):
            alike.setdefault(spread_over(x, apart), []).append(op.within(x))
        return op.of(op.over(op.within(jnp.stack(x)), a) for a, x in alike.items())

    def _total(self, arrays: list[Array], counts: Sequence[Number]) -> Number:
        """Add up the counts of all leaves, on the whole mesh."""
        total = jnp.zeros((), jnp.float32)
        for axes, alike in self._by_shards(arrays).items():
            counted = jnp.stack([counts[i] for i in alike])
            count = jnp.sum(counted, dtype=jnp.float32)
            total += jax.lax.psum(count, axes) if axes else count
        return total

    def _number(self, arrays: list[Array]) -> int:
        """Count the groups, on the whole mesh."""
        pairs = zip(arrays, self.apart, strict=True)
        return sum(x.size * copies(x, axes) for x, axes in pairs)

    def summarize(self, value: PerGroup, scale: PerGroup, limit: PerGroup) -> Summary:
        """See `Groups.summarize`."""
        if not self.leaves:
            return Summary(*(jnp.zeros((), jnp.float32) for _ in range(3)))
        if self.local and not (self.pointwise or any(self.apart)):
            top, bound, fraction = self._packed_summary(value, scale, limit)
            return Summary(*most_above([(top, bound)]), fraction)
        unscaled = self.pointwise and not self.complex
        sizes = self.spread(value if unscaled else map_groups(capped, value, scale))
        chosen, total = [], jnp.zeros((), jnp.float32)
        for axes, alike in self._by_shards(sizes).items():
            found = [
                top_and_count([sizes[i] for i in each], bound)
                for each, bound in _by_limit(alike, limit)
            ]
            groups = [one for ranked, _ in found for one in ranked]
            chosen.append(most_above(groups, axes))
            count = jnp.stack([number for _, number in found])
            above = jnp.sum(count, dtype=jnp.float32)
            total += jax.lax.psum(above, axes) if axes else above
        top, bound = most_above(chosen)
        return Summary(top, bound, total / self._number(sizes))

    def _packed_summary(
        self, value: PerGroup, scale: PerGroup, limit: PerGroup
    ) -> Summary:
        """Pack the numbers of all groups into one vector, and summarize it."""
        sizes = self.spread(value)
        shapes = [x.shape for x in sizes]
        # Pack the measurements, and derive the rest from the packed vector: XLA would
        # compute derived numbers again, leaf by leaf, to pack them.
        top = capped(packed(sizes, shapes), packed(self.spread(scale), shapes))
        one = isinstance(limit, jax.Array) and limit.ndim == 0
        bound = limit if one else packed(self.spread(limit), shapes)
        bound = jnp.broadcast_to(bound, top.shape)
        fraction = jnp.mean(is_above(top, bound), dtype=jnp.float32)
        return Summary(top, bound, fraction)

    def count(self, mask: PyTree[Bool[Array, "..."]]) -> Float[Array, ""]:
        """Return the number of groups where a mask is true, on the whole mesh."""
        masks = self.spread(mask)
        return self._total(masks, [how_often(x) for x in masks])

    def share(self, mask: PyTree[Bool[Array, "..."]]) -> Float[Array, ""]:
        """See `Groups.share`."""
        return self.count(mask) / max(self._number(self.spread(mask)), 1)


@dataclass(frozen=True)
class Tensors(PerLeaf):
    """Whole leaves, or the tensors stacked in them; reports show every one."""

    @property
    def report_shape(self) -> tuple[int, ...]:
        """See `Groups.report_shape`."""
        return (sum(map(math.prod, self._stacks())),)

    def _stacks(self) -> list[tuple[int, ...]]:
        """Return the shape in which the tensors of each leaf are stacked."""
        return [
            tuple(size for d, size in enumerate(leaf.shape) if d not in dims)
            for leaf, dims in zip(self.leaves, self.dims, strict=True)
        ]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """See `Groups.entries`."""
        paths = paths_of(self.tree.unflatten(self.leaves))
        return tuple(map(Entry, paths, self._stacks()))

    def summarize(self, value: PerGroup, scale: PerGroup, limit: PerGroup) -> Summary:
        """See `Groups.summarize`."""
        if not self.leaves:
            none = jnp.zeros(0, jnp.float32)
            return Summary(none, none, jnp.zeros((), jnp.float32))
        return self._packed_summary(value, scale, limit)


@dataclass(frozen=True)
class Elements(PerLeaf):
    """Groups of one number each."""

    @property
    def pointwise(self) -> bool:
        """See `Groups.pointwise`."""
        return True

    def _reduce(
        self, op: Reduction, term: Callable[..., Number], of_group: tuple[PerGroup, ...]
    ) -> PerGroup:
        del op
        return self.tree.unflatten(self._terms(term, of_group))

    def _differ(self, leaf: Any, axes: MeshAxes) -> frozenset[str]:
        return varying_axes(leaf)


for kind in PerLeaf, Tensors, Elements:
    register_dataclass(kind, ["leaves"], ["dims", "axes", "tree", "apart"])


def _struct(leaf: Any, dims: tuple[int, ...], dtype: DTypeLike) -> Any:
    if len(dims) == len(leaf.shape):
        return jax.ShapeDtypeStruct((), dtype)
    shape = tuple(1 if d in dims else size for d, size in enumerate(leaf.shape))
    along = [d for d in range(len(shape)) if d not in dims]
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding_along(leaf, along))


def _by_limit(
    positions: list[int], limit: PerGroup
) -> Iterator[tuple[list[int], Number]]:
    """Yield the positions of leaves that share a limit, and the limit."""
    if is_one_leaf(limit):
        yield positions, limit
    else:
        limits = jax.tree.leaves(limit)
        yield from (([i], limits[i]) for i in positions)
