"""Find which of many groups exceeds its limit the most, and how many do."""

import functools

import jax
import jax.numpy as jnp

from optaxclip.groups.census import how_often, max_and_count, read, spelled
from optaxclip.mesh import MeshAxes
from optaxclip.numbers import Number

Ranked = tuple[Number, Number]  # The magnitudes of groups, and their limits.


def most_above(groups: list[Ranked], axes: MeshAxes = ()) -> Ranked:
    """Pick the group that exceeds its limit the most; the largest wins a tie.

    Each of three maxima is that of all arrays, so that a mesh needs no more than three
    collectives, however many arrays there are.
    """

    def largest(parts: list[Number]) -> Number:
        top = functools.reduce(jnp.maximum, map(jnp.max, parts))
        return jax.lax.pmax(top, axes) if axes else top

    keys = [spelled(_excess(*each)) for each in groups]
    first = largest(keys)
    sizes = [
        jnp.where(key == first, spelled(magnitude), -1)
        for key, (magnitude, _) in zip(keys, groups, strict=True)
    ]
    size = largest(sizes)
    bounds = [
        jnp.where(own == size, spelled(limit), -1)
        for own, (_, limit) in zip(sizes, groups, strict=True)
    ]
    return read(size), read(largest(bounds))


def top_and_count(sizes: list[Number], limit: Number) -> tuple[list[Ranked], Number]:
    """Leave out groups that cannot exceed their limit the most; count all above it.

    With one limit for all, that leaves the largest.
    """
    bits = list(map(spelled, sizes))
    none_above = jnp.iinfo(bits[0].dtype).max
    bound = jnp.where(limit == jnp.inf, none_above, spelled(limit))
    if limit.size == 1:
        largest, count = max_and_count(bits, [x > bound for x in bits])
        return [(read(largest), limit.reshape(()))], count
    ((size,), (own,)) = sizes, bits
    return [(size, limit)], how_often(own > bound)


def _excess(magnitude: Number, limit: Number) -> Number:
    """Return the ratio of magnitude to limit; 0 if the limit is infinite."""
    times = magnitude / jnp.maximum(limit, jnp.finfo(limit.dtype).tiny)
    return jnp.where(limit == jnp.inf, jnp.zeros_like(times), times)
