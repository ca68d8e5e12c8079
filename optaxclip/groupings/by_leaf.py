"""Many groups, parts of leaves: one array a leaf."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from optaxclip.groupings.census import census
from optaxclip.groupings.grouping import Grouping, copies
from optaxclip.magnitudes import (
    Leaf,
    Magnitude,
    Norm,
    Number,
    PerGroup,
    Pool,
    modulus,
)
from optaxclip.norms import linf
from optaxclip.reductions import MAX, Axes, Reduction, spread_over, varying_axes


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

    def like(self, leaves: list[Leaf], dtype: DTypeLike) -> list[jax.ShapeDtypeStruct]:
        """See `Grouping.like`."""

        def of_leaf(leaf: Leaf, dims: tuple[int, ...]) -> Number:
            largest = MAX.within(modulus(leaf), axis=dims, keepdims=True)
            return largest.astype(dtype)

        return [
            jax.eval_shape(functools.partial(of_leaf, dims=dims), leaf)
            for leaf, dims in zip(leaves, self.dims, strict=True)
        ]

    @property
    def report_shape(self) -> tuple[int, ...]:
        """See `Grouping.report_shape`."""
        return ()

    def sizes(self, leaves: list[Leaf], dtype: DTypeLike) -> list[Number]:
        """See `Grouping.sizes`."""
        return [jnp.asarray(n, dtype) for n in self._numbers(leaves)]

    def _shards(self) -> tuple[Axes, ...]:
        """Say over which mesh axes the groups of each leaf differ."""
        return ((),) * len(self.shapes)

    def digest(
        self, numbers: Sequence[PerGroup], held: PyTree[Bool[Array, "..."]]
    ) -> tuple[list[Float[Array, "..."]], Float[Array, ""]]:
        """See `Grouping.digest`."""
        pairs = zip(held, self._shards(), strict=True)
        shards = [
            tuple(sorted({*spread_over(x, axes), *varying_axes(x)}))
            for x, axes in pairs
        ]
        several = [x for x in numbers if isinstance(x, list)]
        largest, count = census(several, held, shards)
        found = iter(largest)
        summaries = [next(found) if isinstance(x, list) else x for x in numbers]
        pairs = zip(held, shards, strict=True)
        size = sum(x.size * copies(x, axes) for x, axes in pairs)
        return [x.astype(jnp.float32) for x in summaries], count / max(size, 1)


@dataclass(frozen=True)
class _Modulus:
    """The magnitude of single numbers, which a float holds unless they are complex."""

    def measure(self, pool: Pool) -> Magnitude:
        """See `Norm.measure`."""
        if pool.complex:
            return linf.measure(pool)
        unit = pool.full(1.0)
        return Magnitude(linf.value(pool, unit), unit)

    def value(self, pool: Pool, unit: PerGroup) -> PerGroup:
        """See `Norm.value`."""
        return linf.value(pool, unit)


@dataclass(frozen=True)
class Elements(ByLeaf):
    """Every number is a group of its own."""

    @property
    def pointwise(self) -> bool:
        """See `Grouping.pointwise`."""
        return True

    def suited(self, norm: Norm) -> Norm:
        """See `Grouping.suited`."""
        return _Modulus()

    def reduce(
        self, op: Reduction, leaves: list[Leaf], terms: list[Number]
    ) -> list[Number]:
        """See `Grouping.reduce`; the mesh axes matter to the report alone."""
        return terms

    def _shards(self) -> tuple[Axes, ...]:
        return self.axes
