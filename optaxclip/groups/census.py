"""Sums over very many groups: the largest number, and how often something holds.

A leaf is read once for both. Numbers are compared as the integers that their bits
spell, which have the same order if no number is negative and NaN above infinity:
integers are associative, so that XLA may use the machine's vectors, and no maximum of
theirs loses a NaN.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Real

from optaxclip.mesh import on_one_device, vary, varying_axes
from optaxclip.numbers import Number

# Below this a leaf is reduced sooner by one core than shared out.
_SEVERAL_CORES = 2**16


def spelled(x: Number) -> Int[Array, "..."]:
    """Take the bits of numbers that are not negative as integers of the same order."""
    return lax.bitcast_convert_type(x, jnp.dtype(f"int{jnp.finfo(x.dtype).bits}"))


def read(bits: Int[Array, "..."]) -> Float[Array, "..."]:
    """Take integers back as the numbers that they spell."""
    return lax.bitcast_convert_type(bits, jnp.dtype(f"float{8 * bits.dtype.itemsize}"))


def max_and_count(
    x: Number, mask: Bool[Array, "..."]
) -> tuple[Int[Array, ""], Real[Array, ""]]:
    """Find the largest number of a leaf, as an integer, and count where a mask holds.

    All dimensions but the first of a large leaf are reduced in one pass, on several
    cores where there are; so no int32 overflows in the count.
    """
    row = spelled(x), mask.astype(jnp.int32)
    if not on_one_device(x):  # XLA spreads no reduction of two arrays over a mesh.
        return jnp.max(row[0]), jnp.sum(row[1], dtype=jnp.float32)
    large = x.size > _SEVERAL_CORES and x.ndim > 1
    if x.ndim:
        varying = varying_axes(row[0]) | varying_axes(row[1])
        zeros = tuple(vary(jnp.zeros((), part.dtype), varying) for part in row)
        row = lax.reduce(row, zeros, _between, tuple(range(large, x.ndim)))
    if large:
        return jnp.max(row[0]), jnp.sum(row[1], dtype=jnp.float32)
    return row[0], row[1]


def how_often(mask: Bool[Array, "..."]) -> Real[Array, ""]:
    """Count where a mask holds.

    XLA on CPUs writes to memory what it counts, unless it looks for a maximum too.
    """
    largest, count = max_and_count(mask.astype(jnp.float32), mask)
    return jnp.where(largest > 0, count, jnp.zeros_like(count))


def _between(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    return jnp.maximum(a[0], b[0]), a[1] + b[1]
