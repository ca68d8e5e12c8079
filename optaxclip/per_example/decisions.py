"""The norm of each example's gradient, and the factors that clip it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from optaxclip.mesh import vary, varying_axes
from optaxclip.norms import Magnitude
from optaxclip.per_example.limits import Limits
from optaxclip.per_example.ways import (
    PRECISION,
    Factors,
    Kept,
    Squares,
    Way,
    in_precise_units,
)
from optaxclip.responses import Response
from optaxclip.responses.apply import nonnegative

LeafGroups = tuple[tuple[int, ...], ...]
Sums = tuple[list[Array], list[Array]]


class Decisions(NamedTuple):
    """The decision for each example.

    Attributes:
      sizes: the norm of its gradient, in each group.
      factors: the two factors of its gradient, applied one after the other.
      good: whether its gradient is all finite, and the example counts.
    """

    sizes: list[Magnitude]
    factors: list[Factors]
    good: Bool[Array, "examples"]

    def divided(self, number: Array | int) -> list[Factors]:
        """Divide the factors by a number."""
        return [
            (first, second / jnp.asarray(number).astype(second.dtype))
            for first, second in self.factors
        ]


def measure_examples(
    ways: list[Way | None],
    kept: list[Kept],
    groups: LeafGroups,
    mask: Array,
    dtype: np.dtype,
) -> list[Magnitude]:
    """Measure each group of leaves.

    If a square overflows or nearly underflows, or its terms cancel so much that
    rounding errors matter, everything is measured again by a method that avoids this.
    Ordinary gradients are measured once.
    """
    over = varying_axes(mask)
    zero = vary(jnp.zeros(mask.shape, dtype), over)
    one = vary(jnp.ones(mask.shape, dtype), over)
    # Below this, terms lost to underflow may affect the last bit of a sum.
    faint = float(jnp.finfo(dtype).tiny) / float(jnp.finfo(dtype).eps) * 2.0**20

    def in_group(terms: list[Array], group: tuple[int, ...]) -> Array:
        return functools.reduce(jnp.add, (terms[i] for i in group), zero)

    plain = [
        Squares(zero) if way is None else way.squares(held)
        for way, held in zip(ways, kept, strict=True)
    ]
    errors = [zero if s.error is None else s.error.astype(dtype) for s in plain]
    found = [in_group([s.total.astype(dtype) for s in plain], g) for g in groups]
    usual = [
        (s >= faint) & (s < jnp.inf) & (in_group(errors, g) <= PRECISION * s)
        for s, g in zip(found, groups, strict=True)
    ]

    def precisely(kept: list[Kept]) -> Sums:
        squares, units = [], []
        for way, held in zip(ways, kept, strict=True):
            total, unit = (zero, zero) if way is None else in_precise_units(way, held)
            squares.append(total.astype(dtype))
            units.append(jnp.where(squares[-1] == 0, zero, unit.astype(dtype)))
        common = [
            functools.reduce(jnp.maximum, (units[i] for i in group), zero)
            for group in groups
        ]
        # The reciprocal of the largest power of two may be flushed to 0.
        cap = 2.0 ** (int(jnp.finfo(dtype).maxexp) - 2)
        common = [jnp.where(unit == 0, one, jnp.minimum(unit, cap)) for unit in common]
        sums = [
            in_group(
                [s * jnp.square(u / unit) for s, u in zip(squares, units, strict=True)],
                group,
            )
            for unit, group in zip(common, groups, strict=True)
        ]
        return sums, common

    sums, units = jax.lax.cond(
        _agreed(jnp.all(jnp.stack(usual) | ~mask[None])),
        lambda _: (found, [one for _ in groups]),
        precisely,
        kept,
    )
    return [Magnitude(jnp.sqrt(s), 1 / u) for s, u in zip(sums, units, strict=True)]


@jax.custom_batching.custom_vmap
def _agreed(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """Decide as one for all members of a ``jax.vmap``, which else take both ways."""
    return flag


@_agreed.def_vmap
def _of_members(
    size: int, mapped: list[bool], flags: Bool[Array, "members"]
) -> tuple[Bool[Array, ""], bool]:
    return _agreed(jnp.all(flags, axis=0)), False


def decide(
    sizes: list[Magnitude], limits: Limits, response: Response, mask: Array
) -> Decisions:
    """Choose each example's factors; one non-finite group drops the whole example."""
    factors, good = [], mask
    for size, limit in zip(sizes, limits.values, strict=True):
        good &= jnp.isfinite(size.value) & jnp.isfinite(size.scale)
        *some, last = response.weigh(*size, nonnegative(limit, size.value))
        one = jnp.ones_like(last)
        first = functools.reduce(jnp.multiply, some, one)
        faint = jnp.abs(first * last) < float(jnp.finfo(last.dtype).tiny) * 2.0**40
        factors.append(
            (jnp.where(faint, first, one), jnp.where(faint, last, first * last))
        )
    return Decisions(sizes, factors, good)
