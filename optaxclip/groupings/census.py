"""Sums over very many groups: the largest of some numbers, the share where one holds.

Each leaf is read once for all of them. Numbers are compared as the integers that their
bits spell, which have the same order if no number is negative and NaN above infinity:
integers are associative, so that XLA may use the machine's vectors, and no maximum of
theirs loses a NaN.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from optaxclip.magnitudes import Number
from optaxclip.reductions import Axes, Reduction, vary, varying_axes

# What is counted of a leaf: numbers as integers, then how often something holds.
Row = tuple[Array, ...]


def _spelled(x: Number) -> Int[Array, "..."]:
    bits = jnp.finfo(x.dtype).bits
    return lax.bitcast_convert_type(x, jnp.dtype(f"int{bits}"))


def _read(bits: Int[Array, ""]) -> Float[Array, ""]:
    return lax.bitcast_convert_type(bits, jnp.dtype(f"float{8 * bits.dtype.itemsize}"))


def _between(a: Row, b: Row) -> Row:
    largest = map(jnp.maximum, a[:-1], b[:-1])
    return *largest, a[-1] + b[-1]


def _within(row: Row, axis: None = None) -> Row:
    """Reduce in one pass all dimensions but the first, then the few that are left.

    The first step can run on several cores, and counts that no int32 overflows.
    """
    dims = tuple(range(int(row[0].ndim > 1), row[0].ndim))
    varying = frozenset().union(*map(varying_axes, row))
    zeros = tuple(vary(jnp.zeros((), x.dtype), varying) for x in row)
    *largest, held = lax.reduce(row, zeros, _between, dims) if dims else row
    return *map(jnp.max, largest), jnp.sum(held, dtype=jnp.float32)


def _across(row: Row, axes: Axes) -> Row:
    return *(lax.pmax(x, axes) for x in row[:-1]), lax.psum(row[-1], axes)


_CENSUS = Reduction(_between, _within, _across)


def census(
    numbers: Sequence[list[Number]],
    held: list[Bool[Array, "..."]],
    axes: Sequence[Axes],
) -> tuple[list[Float[Array, ""]], Float[Array, ""]]:
    """Find the largest of several numbers of each group, and count where one holds.

    Args:
      numbers: lists of numbers >= 0 or NaN, of one type, with an array a leaf.
      held: what is counted, with an array a leaf; the numbers broadcast to its shape.
      axes: the mesh axes over which each leaf's groups differ.

    Returns:
      The largest of each list, and the count, on the whole mesh.
    """
    if not held:
        none = jnp.zeros((), jnp.float32)
        return [none for _ in numbers], none
    rows: dict[Axes, list[Row]] = {}
    for holds, spread, *each in zip(held, axes, *numbers, strict=True):
        spelled = (jnp.broadcast_to(_spelled(x), holds.shape) for x in each)
        rows.setdefault(spread, []).append((*spelled, holds.astype(jnp.int32)))
    *largest, count = _CENSUS.of(
        _CENSUS.over(_CENSUS.bundled(alike, None), spread)
        for spread, alike in rows.items()
    )
    return [_read(x) for x in largest], count
