"""The norm of each example's gradient, and the factors that clip it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array

from optaxclip.mesh import vary, varying_axes
from optaxclip.norms import Magnitude
from optaxclip.norms.norm import in_units
from optaxclip.per_example.ways import Factors, Good, Squares, precision_of
from optaxclip.responses import Response
from optaxclip.responses.apply import nonnegative

LeafGroups = tuple[tuple[int, ...], ...]
Sums = tuple[list[Array], list[Array]]


@custom_vmap
def for_any_member(decision: Array) -> Array:
    """Decide for all members of an ensemble at once, so that one branch is taken."""
    return decision


@for_any_member.def_vmap
def _(size: int, batched: Any, decision: Array) -> tuple[Array, bool]:
    return jnp.any(decision), False


# Squares, and the units of their roots, of each group, given which are doubtful.
Again = Callable[[Array, np.dtype], Sums]


def measure_examples(
    plain: list[Squares], again: Again, groups: LeafGroups, mask: Array, dtype: np.dtype
) -> list[Magnitude]:
    """Measure each group of leaves.

    If a square overflows or nearly underflows, or its terms cancel so much that
    rounding errors matter, it is measured again by a method that avoids this. Ordinary
    gradients are measured once.

    Args:
      plain: the squared norms of each leaf's gradients.
      again: measures the groups again, given the examples and the dtype.
      groups: the leaves that are measured together.
      mask: the examples that count.
      dtype: the dtype of norms.
    """
    found, asked = _judged(groups, dtype, plain, mask)
    one = vary(jnp.ones(mask.shape, dtype), varying_axes(mask))

    def precisely() -> Sums:
        squares, units = again(asked, dtype)
        pairs = zip(squares, found, strict=True)
        return (
            [jnp.where(asked, new, old) for new, old in pairs],
            [jnp.where(asked, unit, one) for unit in units],
        )

    sums, units = jax.lax.cond(
        for_any_member(jnp.any(asked)),
        precisely,
        lambda: (found, [one for _ in groups]),
    )
    return [_magnitude(s, u) for s, u in zip(sums, units, strict=True)]


@jax.jit
def _magnitude(square: Array, unit: Array) -> Magnitude:
    return Magnitude(*in_units(jnp.sqrt(square), unit))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _judged(
    groups: LeafGroups, dtype: np.dtype, plain: list[Squares], mask: Array
) -> tuple[list[Array], Good]:
    """Return the square of each group, and for which examples to measure again."""
    zero = vary(jnp.zeros(mask.shape, dtype), varying_axes(mask))
    parts = [[plain[i] for i in group] for group in groups]
    found = [_added([s.total for s in part], zero) for part in parts]
    trusted = [_trusted(*each, zero) for each in zip(found, parts, strict=True)]
    return found, mask & ~functools.reduce(jnp.logical_and, trusted)


def _added(terms: list[Array], zero: Array) -> Array:
    return functools.reduce(jnp.add, (x.astype(zero.dtype) for x in terms), zero)


def _trusted(total: Array, part: list[Squares], zero: Array) -> Array:
    """Return where a square is to be trusted, or known to be zero."""
    finfo = jnp.finfo(total.dtype)
    # Below this, terms lost to underflow may affect the last bit of a sum.
    faint = float(finfo.tiny) / float(finfo.eps) * 2.0**20
    error = _added([s.error for s in part if s.error is not None], zero)
    usual = (total >= faint) & (total < jnp.inf)
    usual &= error <= precision_of(total.dtype) * total
    known = [s.zero for s in part if s.zero is not None]
    if len(known) < len(part) or not part:
        return usual
    return usual | functools.reduce(jnp.logical_and, known)


@functools.partial(jax.jit, static_argnums=0)
def decide(
    response: Response,
    sizes: list[Magnitude],
    limits: list[Array],
    mask: Array,
    number: Array,
) -> tuple[list[Factors], Good]:
    """Choose each example's factors; one non-finite group drops the whole example.

    Args:
      response: what happens to a gradient above its limit.
      sizes: the norms of each group.
      limits: the limit of each group.
      mask: the examples that count.
      number: the number by which the factors are divided.

    Returns:
      for each group the two factors of the gradient, applied one after the other;
      and whether the gradient is all finite, and the example counts.
    """
    factors, good = [], mask
    for size, limit in zip(sizes, limits, strict=True):
        good &= jnp.isfinite(size.value) & jnp.isfinite(size.scale)
        *some, last = response.weigh(*size, nonnegative(limit, size.value))
        one = jnp.ones_like(last)
        first = functools.reduce(jnp.multiply, some, one)
        both = jnp.abs(first * last)
        fits = (both >= float(jnp.finfo(last.dtype).tiny) * 2.0**40) & (both < jnp.inf)
        second = jnp.where(fits, first * last, last) / number.astype(last.dtype)
        factors.append((jnp.where(fits, one, first), second))
    return factors, good
