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
from optaxclip.norms.norm import in_units
from optaxclip.per_example.limits import Limits
from optaxclip.per_example.ways import Factors, InUnits, Squares, precision_of
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
Again = Callable[[list[Array], np.dtype], Sums]


def measure_examples(
    plain: list[Squares], again: Again, groups: LeafGroups, mask: Array, dtype: np.dtype
) -> list[Magnitude]:
    """Measure each group of leaves.

    If a square overflows or nearly underflows, or its terms cancel so much that
    rounding errors matter, it is measured again by a method that avoids this. Ordinary
    gradients are measured once.

    Args:
      plain: the squared norms of each leaf's gradients.
      again: measures leaves again, given the examples for each leaf and the dtype.
      groups: the leaves that are measured together.
      mask: the examples that count.
      dtype: the dtype of norms.
    """
    zero = vary(jnp.zeros(mask.shape, dtype), varying_axes(mask))
    totals = [zero + s.total.astype(dtype) for s in plain]
    errors = [zero if s.error is None else zero + s.error.astype(dtype) for s in plain]
    found = [_added(totals, group, zero) for group in groups]
    unusual = [
        mask & _doubtful(total, _added(errors, group, zero))
        for total, group in zip(found, groups, strict=True)
    ]

    def precisely() -> Sums:
        asked = [zero != 0] * len(plain)
        for group, which in zip(groups, unusual, strict=True):
            for i in group:
                asked[i] = which & _doubtful(totals[i], errors[i])
        squares, units = again(asked, dtype)
        each = zip(asked, squares, units, totals, strict=True)
        return _in_common_units([_either(*one) for one in each], groups, zero)

    sums, units = jax.lax.cond(
        for_any_member(jnp.any(jnp.stack(unusual))),
        precisely,
        lambda: (found, [zero + 1 for _ in groups]),
    )
    return [
        Magnitude(*in_units(jnp.sqrt(s), u)) for s, u in zip(sums, units, strict=True)
    ]


def _added(terms: list[Array], group: tuple[int, ...], zero: Array) -> Array:
    return functools.reduce(jnp.add, (terms[i] for i in group), zero)


def _doubtful(total: Array, error: Array) -> Array:
    """Return where a square is not to be trusted."""
    finfo = jnp.finfo(total.dtype)
    # Below this, terms lost to underflow may affect the last bit of a sum.
    faint = float(finfo.tiny) / float(finfo.eps) * 2.0**20
    trusted = (total >= faint) & (total < jnp.inf)
    return ~(trusted & (error <= precision_of(total.dtype) * total))


def _either(asked: Array, square: Array, unit: Array, total: Array) -> InUnits:
    """Choose between a leaf's new squares and its first ones; zeros have no unit."""
    square = jnp.where(asked, square.astype(total.dtype), total)
    unit = jnp.where(asked, unit.astype(total.dtype), jnp.ones_like(total))
    return square, jnp.where(square == 0, jnp.zeros_like(unit), unit)


def _in_common_units(leaves: list[InUnits], groups: LeafGroups, zero: Array) -> Sums:
    """Add up the squares of each group, in the largest of their units."""
    sums, common = [], []
    squares, units = zip(*leaves, strict=True)
    # The reciprocal of the largest power of two may be flushed to 0.
    cap = 2.0 ** (int(jnp.finfo(zero.dtype).maxexp) - 2)
    for group in groups:
        largest = functools.reduce(jnp.maximum, (units[i] for i in group), zero)
        unit = jnp.where(largest == 0, zero + 1, jnp.minimum(largest, cap))
        terms = (squares[i] * jnp.square(units[i] / unit) for i in group)
        sums.append(functools.reduce(jnp.add, terms, zero))
        common.append(unit)
    return sums, common


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
