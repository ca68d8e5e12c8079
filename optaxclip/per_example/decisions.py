"""The norm of each example's gradient, and the factors that clip it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool

from optaxclip.mesh import vary, varying_axes
from optaxclip.norms import Magnitude
from optaxclip.per_example.limits import Limits
from optaxclip.per_example.ways import Factors, Squares, precision_of
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


@custom_vmap
def for_any_member(decision: Array) -> Array:
    """Decide for all members of an ensemble at once, so that one branch is taken."""
    return decision


@for_any_member.def_vmap
def _(size: int, batched: Any, decision: Array) -> tuple[Array, bool]:
    return jnp.any(decision), False


# Squares and units of each leaf, given which of its examples are doubtful.
Again = Callable[[list[Array], Any, np.dtype], Sums]


def measure_examples(
    plain: list[Squares],
    again: Again,
    kept: Any,
    groups: LeafGroups,
    mask: Array,
    dtype: np.dtype,
) -> list[Magnitude]:
    """Measure each group of leaves.

    If a square overflows or nearly underflows, or its terms cancel so much that
    rounding errors matter, it is measured again by a method that avoids this. Ordinary
    gradients are measured once.

    Args:
      plain: the squared norms of each leaf's gradients.
      again: measures leaves again, given the examples for each leaf, `kept` and
        the dtype.
      kept: what `again` needs.
      groups: the leaves that are measured together.
      mask: the examples that count.
      dtype: the dtype of norms.
    """
    over = varying_axes(mask)
    zero = vary(jnp.zeros(mask.shape, dtype), over)
    one = vary(jnp.ones(mask.shape, dtype), over)
    # Below this, terms lost to underflow may affect the last bit of a sum.
    faint = float(jnp.finfo(dtype).tiny) / float(jnp.finfo(dtype).eps) * 2.0**20

    def in_group(terms: list[Array], group: tuple[int, ...]) -> Array:
        return functools.reduce(jnp.add, (terms[i] for i in group), zero)

    def doubtful(total: Array, error: Array) -> Array:
        trusted = (total >= faint) & (total < jnp.inf)
        return mask & ~(trusted & (error <= precision_of(dtype) * total))

    totals = [jnp.broadcast_to(s.total.astype(dtype), mask.shape) for s in plain]
    errors = [zero if s.error is None else zero + s.error.astype(dtype) for s in plain]
    found = [in_group(totals, g) for g in groups]
    unusual = [
        doubtful(total, in_group(errors, g))
        for total, g in zip(found, groups, strict=True)
    ]

    def precisely(kept: Any) -> Sums:
        asked = [vary(jnp.zeros(mask.shape, bool), over)] * len(plain)
        for group, which in zip(groups, unusual, strict=True):
            for i in group:
                asked[i] = which & doubtful(totals[i], errors[i])
        squares, units = again(asked, kept, dtype)
        squares = [
            jnp.where(which, square.astype(dtype), total)
            for which, square, total in zip(asked, squares, totals, strict=True)
        ]
        units = [
            jnp.where(square == 0, zero, jnp.where(which, unit.astype(dtype), one))
            for which, unit, square in zip(asked, units, squares, strict=True)
        ]
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
        for_any_member(jnp.any(jnp.stack(unusual))),
        precisely,
        lambda _: (found, [one for _ in groups]),
        kept,
    )
    return [Magnitude(jnp.sqrt(s), 1 / u) for s, u in zip(sums, units, strict=True)]


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
