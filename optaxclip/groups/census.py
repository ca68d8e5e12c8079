"""Statistics of very many groups: the largest number, and how often a mask is true.

A leaf is read once for both. Numbers are compared as the integers with the same bits,
which have the same order for nonnegative numbers, with NaN above infinity. Integer
reductions are associative, so XLA can vectorize them, and their maximum never loses a
NaN.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Real

from optaxclip.groups.reduction import Combination
from optaxclip.mesh import on_one_device, vary, varying_axes
from optaxclip.numbers import Number

# Below this size, one core reduces a leaf faster than several.
_SEVERAL_CORES = 2**16


def spelled(x: Number) -> Int[Array, "..."]:
    """Convert nonnegative numbers to integers of the same order, by their bits.

    The sign bit is dropped, since a NaN may have one on some processors.
    """
    dtype = jnp.dtype(f"int{jnp.finfo(x.dtype).bits}")
    return lax.bitcast_convert_type(x, dtype) & jnp.iinfo(dtype).max


def read(bits: Int[Array, "..."]) -> Float[Array, "..."]:
    """Convert integers back to the numbers with the same bits."""
    return lax.bitcast_convert_type(bits, jnp.dtype(f"float{8 * bits.dtype.itemsize}"))


Row = tuple[Array, Array]  # Numbers as integers, and counts of true values.


def max_and_count(
    integers: list[Int[Array, "..."]], masks: list[Bool[Array, "..."]]
) -> tuple[Int[Array, ""], Real[Array, ""]]:
    """Find the largest integer, and count where masks hold.

    Args:
      integers: those of some leaves, on the same devices; none of them negative.
      masks: of the same shapes.
    """
    rows = [
        (x, mask.astype(jnp.int32)) for x, mask in zip(integers, masks, strict=True)
    ]
    return _CENSUS.bundled(rows, [()] * len(rows))


def _between(a: Row, b: Row) -> Row:
    return jnp.maximum(a[0], b[0]), a[1] + b[1]


def _within(row: Row, axis: tuple[()]) -> Row:
    """Reduce all dimensions but the first of a large leaf in one pass, then the first.

    The first step can run on several cores, and its int32 counts cannot overflow.
    """
    x = row[0]
    if not on_one_device(x):  # XLA cannot shard a reduction of two arrays.
        return jnp.max(x), jnp.sum(row[1], dtype=jnp.float32)
    large = x.size > _SEVERAL_CORES and x.ndim > 1
    if x.ndim:
        varying = varying_axes(row[0]) | varying_axes(row[1])
        zeros = tuple(vary(jnp.zeros((), part.dtype), varying) for part in row)
        row = lax.reduce(row, zeros, _between, tuple(range(large, x.ndim)))
    return jnp.max(row[0]), jnp.sum(row[1], dtype=jnp.float32)


_CENSUS = Combination(_between, _within)


def how_often(mask: Bool[Array, "..."]) -> Real[Array, ""]:
    """Count where a mask is true.

    On CPUs, XLA writes the mask to memory unless a maximum is computed with the count.
    """
    if not on_one_device(mask):
        return jnp.sum(mask, dtype=jnp.float32)
    largest, count = max_and_count([mask.astype(jnp.int32)], [mask])
    return jnp.where(largest > 0, count, jnp.zeros_like(count))
