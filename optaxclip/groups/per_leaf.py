"""Groups within leaves: tensors, units and elements, with one array per leaf."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from optaxclip.groups.census import how_often, max_and_count, read, spelled
from optaxclip.groups.groups import (
    Groups,
    PerGroup,
    Summary,
    is_above,
    leaf_numbers,
)
from optaxclip.groups.reduction import MAX, Reduction
from optaxclip.leaves import is_one_leaf
from optaxclip.mesh import MeshAxes, copies, on_one_device, spread_over, varying_axes
from optaxclip.numbers import Leaf, Number, capped, modulus


@dataclass(frozen=True)
class PerLeaf(Groups):
    """Groups that are parts of leaves, with one array per leaf that broadcasts to it.

    Attributes:
      tree: the structure of the leaves that count, without the others.
    """

    tree: Any

    def _reduce(self, op: Reduction, terms: list[Number]) -> PerGroup:
        parts = map(functools.partial(_within, op), terms, self.dims)
        return self.tree.unflatten(
            [op.over(*each) for each in zip(parts, self.axes, strict=True)]
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
        of_leaf = functools.partial(_struct, dtype=self.dtype, local=self.local)
        return self.tree.unflatten(list(map(of_leaf, self.leaves, self.dims)))

    @property
    def report_shape(self) -> tuple[int, ...]:
        """See `Groups.report_shape`."""
        return ()

    def _shards(self, x: Array, axes: MeshAxes) -> MeshAxes:
        """Return the mesh axes over which the groups of a leaf differ."""
        return tuple(sorted(varying_axes(x)))

    def _by_shards(self, arrays: list[Array]) -> dict[MeshAxes, list[int]]:
        """Group the positions of arrays by the mesh axes over which groups differ."""
        found: dict[MeshAxes, list[int]] = {}
        for i, each in enumerate(zip(arrays, self.axes, strict=True)):
            found.setdefault(self._shards(*each), []).append(i)
        return found

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
        pairs = zip(arrays, self.axes, strict=True)
        return sum(x.size * copies(x, self._shards(x, axes)) for x, axes in pairs)

    def summarize(self, value: PerGroup, scale: PerGroup, limit: PerGroup) -> Summary:
        """See `Groups.summarize`."""
        if not self.leaves:
            return Summary(*(jnp.zeros((), jnp.float32) for _ in range(3)))
        sizes, scales = self.spread(value), self.spread(scale)
        chosen, total = [], jnp.zeros((), jnp.float32)
        for axes, alike in self._by_shards(sizes).items():
            found = [
                _most_above([sizes[i] for i in each], [scales[i] for i in each], bound)
                for each, bound in _by_limit(alike, limit)
            ]
            top, bound, count = map(jnp.stack, zip(*found, strict=True))
            chosen.append(_select(read(top).astype(jnp.float32), bound, axes))
            above = jnp.sum(count, dtype=jnp.float32)
            total += jax.lax.psum(above, axes) if axes else above
        tops, bounds = map(jnp.stack, zip(*chosen, strict=True))
        return Summary(*_select(tops, bounds), total / self._number(sizes))

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
        sides = (
            [size for d, size in enumerate(leaf.shape) if d not in dims]
            for leaf, dims in zip(self.leaves, self.dims, strict=True)
        )
        return (sum(map(math.prod, sides)),)

    def summarize(self, value: PerGroup, scale: PerGroup, limit: PerGroup) -> Summary:
        """See `Groups.summarize`."""
        if not self.leaves:
            none = jnp.zeros(0, jnp.float32)
            return Summary(none, none, jnp.zeros((), jnp.float32))
        sizes = self.spread(value)
        shapes = [x.shape for x in sizes]
        # Pack the measured numbers first and compute everything else on the vector:
        # XLA would recompute derived numbers, one by one, in order to pack them.
        top = capped(_packed(sizes, shapes), _packed(self.spread(scale), shapes))
        one = isinstance(limit, jax.Array) and limit.ndim == 0
        bound = limit if one else _packed(self.spread(limit), shapes)
        bound = jnp.broadcast_to(bound, top.shape)
        fraction = jnp.mean(is_above(top, bound), dtype=jnp.float32)
        return Summary(top, bound, fraction)


@dataclass(frozen=True)
class Elements(PerLeaf):
    """Groups of one number each."""

    @property
    def pointwise(self) -> bool:
        """See `Groups.pointwise`."""
        return True

    def _reduce(self, op: Reduction, terms: list[Number]) -> PerGroup:
        return self.tree.unflatten(terms)

    def _shards(self, x: Array, axes: MeshAxes) -> MeshAxes:
        return tuple(sorted({*spread_over(x, axes), *varying_axes(x)}))


for kind in PerLeaf, Tensors, Elements:
    register_dataclass(kind, ["leaves"], ["dims", "axes", "tree"])


def _within(op: Reduction, term: Number, dims: tuple[int, ...]) -> Number:
    """Reduce a leaf's terms, to a scalar for one group, else keeping the rank."""
    return op.within(term, axis=dims, keepdims=len(dims) < term.ndim)


def _struct(leaf: Any, dims: tuple[int, ...], dtype: DTypeLike, local: bool) -> Any:
    def number(leaf: Leaf) -> Number:
        return _within(MAX, modulus(leaf), dims).astype(dtype)

    if not local:
        return jax.eval_shape(number, leaf)
    if len(dims) == len(leaf.shape):
        return jax.ShapeDtypeStruct((), dtype)
    sides = enumerate(leaf.shape)
    shape = tuple(1 if d in dims else size for d, size in sides)
    return jax.ShapeDtypeStruct(shape, dtype)


def _excess(magnitude: Number, limit: Number) -> Number:
    """Return the ratio of a magnitude to its limit, or 0 for an infinite limit."""
    times = magnitude / jnp.maximum(limit, jnp.finfo(limit.dtype).tiny)
    return jnp.where(limit == jnp.inf, jnp.zeros_like(times), times)


def _by_limit(
    positions: list[int], limit: PerGroup
) -> Iterator[tuple[list[int], Number]]:
    """Yield the positions of leaves that share a limit, and the limit."""
    if is_one_leaf(limit):
        yield positions, limit
    else:
        limits = jax.tree.leaves(limit)
        yield from (([i], limits[i]) for i in positions)


def _most_above(
    values: list[Number], scales: list[Number], limit: Number
) -> tuple[Number, Number, Number]:
    """Find the group that exceeds its limit the most, and count all that exceed theirs.

    Its magnitude is returned as an integer, already computed, so that it can be packed.
    """
    sizes = list(map(capped, values, scales))
    above = [jnp.broadcast_to(is_above(x, limit), x.shape) for x in sizes]
    largest, count = max_and_count(sizes, above)
    if limit.size == 1:
        return largest, limit.reshape(()).astype(jnp.float32), count
    (size,) = sizes
    top, bound = _select(size, limit)
    return spelled(top), bound.astype(jnp.float32), count


def _select(
    magnitude: Number, limit: Number, axes: MeshAxes = ()
) -> tuple[Number, Number]:
    """Pick the group that exceeds its limit the most, or the largest if tied."""

    def largest(x: Number) -> Number:
        return jax.lax.pmax(jnp.max(x), axes) if axes else jnp.max(x)

    key = spelled(_excess(magnitude, limit))
    sizes = jnp.where(key == largest(key), spelled(magnitude), -1)
    bounds = jnp.where(sizes == largest(sizes), spelled(limit), -1)
    return read(largest(sizes)), read(largest(bounds))


def _packed(arrays: list[Number], shapes: list[tuple[int, ...]]) -> Number:
    """Concatenate the numbers of all leaves to one vector."""
    rows = [
        _gathered(jnp.broadcast_to(x, shape).ravel())
        for x, shape in zip(arrays, shapes, strict=True)
    ]
    return jnp.concatenate(rows)


def _gathered(row: Number) -> Number:
    """Gather a short row that may be sharded, by a sum.

    Other parts of a measurement are summed across the mesh too, and can be combined.
    """
    if row.size == 1 or on_one_device(row):
        return row
    kept = jnp.where(jnp.eye(row.size, dtype=bool), row[:, None], 0)
    return jnp.sum(kept, axis=0)
