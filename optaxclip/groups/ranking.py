"""Find which of many groups exceeds its limit the most, and how many do."""

import jax
import jax.numpy as jnp

from optaxclip.groups.census import max_and_count, read, spelled
from optaxclip.mesh import MeshAxes
from optaxclip.numbers import Number


def most_above(
    magnitude: Number, limit: Number, axes: MeshAxes = ()
) -> tuple[Number, Number]:
    """Pick the group that exceeds its limit the most; the largest wins a tie."""

    def largest(x: Number) -> Number:
        return jax.lax.pmax(jnp.max(x), axes) if axes else jnp.max(x)

    key = spelled(_excess(magnitude, limit))
    sizes = jnp.where(key == largest(key), spelled(magnitude), -1)
    bounds = jnp.where(sizes == largest(sizes), spelled(limit), -1)
    return read(largest(sizes)), read(largest(bounds))


def top_and_count(sizes: list[Number], limit: Number) -> tuple[Number, Number, Number]:
    """Find the group that exceeds its limit the most, and count all that do.

    Its magnitude is returned as the integer that was compared, so that packing it later
    does not compute it again.
    """
    bits = list(map(spelled, sizes))
    none_above = jnp.iinfo(bits[0].dtype).max
    bound = jnp.where(limit == jnp.inf, none_above, spelled(limit))
    largest, count = max_and_count(bits, [x > bound for x in bits])
    if limit.size == 1:
        return largest, limit.reshape(()).astype(jnp.float32), count
    (size,) = sizes
    top, bound = most_above(size, limit)
    return spelled(top), bound.astype(jnp.float32), count


def _excess(magnitude: Number, limit: Number) -> Number:
    """Return the ratio of magnitude to limit; 0 if the limit is infinite."""
    times = magnitude / jnp.maximum(limit, jnp.finfo(limit.dtype).tiny)
    return jnp.where(limit == jnp.inf, jnp.zeros_like(times), times)
