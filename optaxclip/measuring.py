"""Measuring: one magnitude for each group of a grouping, in a given norm."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from optaxclip.groupings import Grouping
from optaxclip.magnitudes import Leaf, Magnitude, Norm, Number, PerGroup, widen, widest
from optaxclip.reductions import MAX, SUM, Reduction

Term = Callable[..., Number]


def measuring_dtype(leaves: list[Leaf]) -> np.dtype:
    """Find the widest real type of the leaves, at least float32."""
    return widest(*(jnp.finfo(leaf.dtype).dtype for leaf in leaves))


@dataclass(frozen=True)
class _Pool:
    """Leaves in groups, as `Norm` wants them."""

    grouping: Grouping
    leaves: list[Leaf]
    dtype: DTypeLike

    @property
    def single(self) -> bool:
        return self.grouping.single

    @property
    def complex(self) -> bool:
        return any(jnp.iscomplexobj(leaf) for leaf in self.leaves)

    def sizes(self) -> PerGroup:
        return self.grouping.sizes(self.leaves, self.dtype)

    def full(self, value: float) -> PerGroup:
        return self.grouping.full(value, self.leaves, self.dtype)

    def _reduce(
        self, op: Reduction, term: Term, of_group: tuple[PerGroup, ...]
    ) -> PerGroup:
        given = [self.grouping.spread(values) for values in of_group]
        terms = [term(*each) for each in zip(self.leaves, *given, strict=True)]
        return self.grouping.reduce(op, self.leaves, terms)

    def sum(self, term: Term, *of_group: PerGroup) -> PerGroup:
        return self._reduce(SUM, term, of_group)

    def max(self, term: Term, *of_group: PerGroup) -> PerGroup:
        return self._reduce(MAX, term, of_group)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def measure(norm: Norm, grouping: Grouping, leaves: list[Leaf]) -> Magnitude:
    """Measure every group; the derivative is finite also at zero.

    It is taken in the unit that was found, of the one pass that this needs.
    """
    norm, dtype = grouping.suited(norm), measuring_dtype(leaves)

    def pool(leaves: list[Leaf]) -> _Pool:
        return _Pool(grouping, [widen(leaf, dtype) for leaf in leaves], dtype)

    @jax.custom_jvp
    def measured(leaves: list[Leaf]) -> Magnitude:
        return norm.measure(pool(leaves))

    @measured.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Magnitude, Magnitude]:
        magnitude = measured(*primals)
        unit = magnitude.unit
        _, slope = jax.jvp(lambda x: norm.value(pool(x), unit), primals, tangents)
        return magnitude, Magnitude(slope, jax.tree.map(jnp.zeros_like, unit))

    return measured(leaves)
