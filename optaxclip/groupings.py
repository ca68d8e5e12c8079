"""Numbers arranged in groups: reduced to one number each, and spread back.

`Bundled` keeps what is known of its groups as one array, however many leaves there
are: a vector, or a scalar where there is one group. `ByLeaf` keeps one array a leaf.
Groupings hold no arrays and are hashable, so that measuring is compiled once a tree.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from optaxclip.norms import Leaf, Norm, Number, PerGroup, linf, modulus
from optaxclip.reductions import (
    MAX,
    SUM,
    Axes,
    Reduction,
    spread_over,
    varying_axes,
    vary,
)


def each_group(function: Callable[..., Any], *of_group: PerGroup) -> Any:
    """Call a function for each array of groups; one number stands for all groups."""
    lists = [x for x in of_group if isinstance(x, list)]
    if not lists:
        return function(*of_group)
    return [
        function(*(x[i] if isinstance(x, list) else x for x in of_group))
        for i in range(len(lists[0]))
    ]


def _copies(leaf: Leaf, axes: Axes) -> int:
    """Count the devices over which a leaf is spread."""
    return math.prod(jax.lax.axis_size(axis) for axis in spread_over(leaf, axes))


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

    def count(self, leaves: list[Leaf]) -> int:
        """Count the numbers of all leaves, on the whole mesh."""
        return sum(
            math.prod(shape) * _copies(leaf, axes)
            for leaf, shape, axes in zip(leaves, self.shapes, self.axes, strict=True)
        )

    def suited(self, norm: Norm) -> Norm:
        """Give the cheapest norm that measures these groups as `norm` does."""
        return norm

    def _numbers(self, leaves: list[Leaf]) -> list[int]:
        """Tell how many numbers of each leaf share a group, on the whole mesh."""
        return [
            math.prod(shape[d] for d in dims) * _copies(leaf, axes)
            for leaf, shape, dims, axes in zip(
                leaves, self.shapes, self.dims, self.axes, strict=True
            )
        ]

    @abstractmethod
    def reduce(self, op: Reduction, leaves: list[Leaf], terms: list[Number]) -> PerGroup:
        """Reduce the terms, one a number of the leaves, over each group."""

    @abstractmethod
    def spread(self, of_group: PerGroup) -> list[Number]:
        """Give each leaf what its groups have, in a shape that broadcasts to it."""

    @abstractmethod
    def full(self, value: float, leaves: list[Leaf], dtype: DTypeLike) -> PerGroup:
        """Give each group the same number."""

    @abstractmethod
    def like(self, dtype: DTypeLike) -> PyTree[jax.ShapeDtypeStruct]:
        """Tell in which shapes numbers for the groups come."""

    @property
    @abstractmethod
    def report_shape(self) -> tuple[int, ...]:
        """Tell the shape of a `summary`."""

    @abstractmethod
    def sizes(self, leaves: list[Leaf], dtype: DTypeLike) -> PerGroup:
        """Tell how many numbers each group holds."""

    @abstractmethod
    def summary(self, of_group: PerGroup) -> Float[Array, "..."]:
        """Give what a report shows: each group's, or the largest of very many."""

    @abstractmethod
    def share(self, of_group: PyTree[Bool[Array, "..."]]) -> Float[Array, ""]:
        """Tell for which share of the groups something holds."""


@dataclass(frozen=True)
class Bundled(Grouping):
    """Few groups, of whole leaves or of their leading slices, as one array.

    Attributes:
      members: the positions of each group's leaves.
      single: there is one group, kept as a scalar.
    """

    members: tuple[tuple[int, ...], ...]
    single: bool = False

    def _lead(self, position: int) -> tuple[int, ...]:
        shape = self.shapes[position]
        return shape[: len(shape) - len(self.dims[position])]

    @property
    def lengths(self) -> list[int]:
        """Tell how many groups each of `members` stands for: one a leading slice."""
        return [math.prod(self._lead(positions[0])) for positions in self.members]

    def _array(self, segments: list[Array]) -> Array:
        vector = jnp.concatenate(segments) if segments else jnp.zeros(int(self.single))
        return vector.reshape(()) if self.single else vector

    def _local(self, op: Reduction, terms: list[Number], among: set[int]) -> list[Array]:
        """Reduce the terms of some leaves over each group; empty where it has none."""
        found = []
        for positions in self.members:
            here = [i for i in positions if i in among]
            lead = self._lead(positions[0])
            dims = self.dims[positions[0]] if lead else None
            part = op.bundled([terms[i] for i in here], dims) if here else jnp.zeros(0)
            found.append(part.ravel())
        return found

    def reduce(self, op: Reduction, leaves: list[Leaf], terms: list[Number]) -> Array:
        """See `Grouping.reduce`."""
        axes = [spread_over(*each) for each in zip(leaves, self.axes, strict=True)]
        parts: list[list[Array]] = [[] for _ in self.members]
        for over in dict.fromkeys(axes):
            local = self._local(op, terms, {i for i, a in enumerate(axes) if a == over})
            if over:
                joined = op.across(jnp.concatenate(local), over)
                local = jax.lax.split(joined, [part.size for part in local])
            for found, part in zip(parts, local, strict=True):
                found.extend([part] if part.size else [])
        return self._array([op.of(part) for part in parts])

    def spread(self, of_group: PerGroup) -> list[Number]:
        """See `Grouping.spread`."""
        if of_group.ndim == 0 or not self.members:
            return [of_group] * len(self.shapes)
        found: dict[int, Number] = {}
        segments = jax.lax.split(of_group, self.lengths)
        for positions, segment in zip(self.members, segments, strict=True):
            for i in positions:
                lead = self._lead(i)
                shape = (*lead, *(1 for _ in self.dims[i])) if lead else ()
                found[i] = segment.reshape(shape)
        return [found[i] for i in range(len(self.shapes))]

    def full(self, value: float, leaves: list[Leaf], dtype: DTypeLike) -> Array:
        """See `Grouping.full`."""
        pairs = zip(leaves, self.axes, strict=True)
        varying = [varying_axes(leaf) - frozenset(axes) for leaf, axes in pairs]
        start = jnp.full(self.report_shape, value, dtype)
        return vary(start, frozenset().union(*varying))

    def like(self, dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        """See `Grouping.like`."""
        return jax.ShapeDtypeStruct(self.report_shape, dtype)

    @property
    def report_shape(self) -> tuple[int, ...]:
        """See `Grouping.report_shape`."""
        return () if self.single else (sum(self.lengths),)

    def sizes(self, leaves: list[Leaf], dtype: DTypeLike) -> Array:
        """See `Grouping.sizes`."""
        numbers = self._numbers(leaves)
        totals = [sum(numbers[i] for i in positions) for positions in self.members]
        vector = np.repeat(np.asarray(totals, dtype), self.lengths)
        return jnp.asarray(vector.sum() if self.single else vector, dtype)

    def summary(self, of_group: PerGroup) -> Float[Array, "..."]:
        """See `Grouping.summary`."""
        return jnp.broadcast_to(of_group, self.report_shape).astype(jnp.float32)

    def share(self, of_group: PyTree[Bool[Array, "..."]]) -> Float[Array, ""]:
        """See `Grouping.share`."""
        return jnp.sum(of_group, dtype=jnp.float32) / max(of_group.size, 1)


@dataclass(frozen=True)
class ByLeaf(Grouping):
    """Many groups, as one array a leaf, with the measured dimensions of size 1."""

    def reduce(
        self, op: Reduction, leaves: list[Leaf], terms: list[Number]
    ) -> list[Number]:
        """See `Grouping.reduce`."""
        parts = [
            op.within(term, axis=dims, keepdims=True)
            for term, dims in zip(terms, self.dims, strict=True)
        ]
        return [op.over(*each) for each in zip(parts, self.axes, strict=True)]

    def spread(self, of_group: PerGroup) -> list[Number]:
        """See `Grouping.spread`."""
        if isinstance(of_group, list):
            return of_group
        return [of_group] * len(self.shapes)

    def full(self, value: float, leaves: list[Leaf], dtype: DTypeLike) -> list[Number]:
        """See `Grouping.full`."""
        # Selecting by a reduced leaf takes over how it is sharded and over what it
        # varies, as a loop's start has to; XLA drops the reduction and the selection.
        given = jnp.asarray(value, dtype)
        like = self.reduce(MAX, leaves, [modulus(leaf) for leaf in leaves])
        return [jnp.where(found == found, given, given) for found in like]

    def like(self, dtype: DTypeLike) -> list[jax.ShapeDtypeStruct]:
        """See `Grouping.like`."""
        return [
            jax.ShapeDtypeStruct(
                tuple(1 if d in dims else n for d, n in enumerate(shape)), dtype
            )
            for shape, dims in zip(self.shapes, self.dims, strict=True)
        ]

    @property
    def report_shape(self) -> tuple[int, ...]:
        """See `Grouping.report_shape`."""
        return ()

    def sizes(self, leaves: list[Leaf], dtype: DTypeLike) -> list[Number]:
        """See `Grouping.sizes`."""
        return [jnp.asarray(n, dtype) for n in self._numbers(leaves)]

    @property
    def _all_axes(self) -> Axes:
        return tuple(dict.fromkeys(axis for axes in self.axes for axis in axes))

    def _overall(self, op: Reduction, of_group: list[Array]) -> Float[Array, ""]:
        if not of_group:
            return jnp.zeros(())
        return op.over(op.bundled(of_group, None), self._all_axes)

    def summary(self, of_group: PerGroup) -> Float[Array, "..."]:
        """See `Grouping.summary`."""
        return self._overall(MAX, self.spread(of_group)).astype(jnp.float32)

    def share(self, of_group: PyTree[Bool[Array, "..."]]) -> Float[Array, ""]:
        """See `Grouping.share`."""
        held = [x.astype(jnp.float32) for x in of_group]
        everything = self._overall(SUM, [jnp.ones_like(x) for x in held])
        return self._overall(SUM, held) / jnp.maximum(everything, 1)


@dataclass(frozen=True)
class Elements(ByLeaf):
    """Every number is a group of its own."""

    def suited(self, norm: Norm) -> Norm:
        """See `Grouping.suited`."""
        return linf

    def reduce(
        self, op: Reduction, leaves: list[Leaf], terms: list[Number]
    ) -> list[Number]:
        """See `Grouping.reduce`; the mesh axes matter to the report alone."""
        return terms
