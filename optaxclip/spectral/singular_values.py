"""Maps of the singular values of stacked matrices, by the method of each platform."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from optaxclip.mesh import vary, varying_axes
from optaxclip.platforms import by_platform
from optaxclip.spectral import decompositions, products
from optaxclip.spectral.bounds import any_above, exceeds, within
from optaxclip.spectral.linear_algebra import (
    Matrices,
    PerMatrix,
    frobenius,
    gram,
    scaled,
)

_Asked = tuple[Matrices, PerMatrix]


class Clipped(NamedTuple):
    """The result of clipping singular values.

    Attributes:
      matrices: the matrices after clipping.
      above: whether any singular value of each matrix was above the limit.
      top: the largest singular value of each before clipping, or 0 if unknown.
    """

    matrices: Matrices
    above: Bool[Array, "_ 1 1"]
    top: PerMatrix


def clip_by_products(asked: _Asked) -> Clipped:
    """Clip on accelerators, without branches."""
    a, limit = asked
    above = ~within(a, limit) & any_above(gram(a), limit)
    clipped = jnp.where(above, products.project(a, limit), a)
    return Clipped(clipped, above, jnp.zeros_like(limit))


def _clip_by_decomposition(asked: _Asked) -> Clipped:
    a, limit = asked
    unsure = decompositions.maybe_above(a, limit)

    def decompose() -> Clipped:
        lowered, top = decompositions.lowered(a, limit)
        above = exceeds(top, limit)
        # The report of one matrix must not depend on others in the stack.
        told = jnp.where(above, top, jnp.zeros_like(top))
        return Clipped(jnp.where(above, lowered, a), above, told)

    def keep() -> Clipped:
        return Clipped(a, unsure, jnp.zeros_like(limit))

    return jax.lax.cond(jnp.any(unsure), decompose, keep)


def _clip_again(asked: _Asked, known: Clipped) -> Clipped:
    # Vectors of equal singular values have no derivative, but products do.
    a, limit = asked
    clipped = jnp.where(known.above, products.project(a, limit), a)
    return known._replace(matrices=clipped)


_clip = by_platform(clip_by_products, _clip_by_decomposition, _clip_again, stacked=True)
_bend = by_platform(
    lambda asked: products.bend_by_products(*asked),
    lambda asked: decompositions.bent(*asked),
    lambda asked, _: products.bend_by_products(*asked),
    stacked=True,
)


def clip(a: Matrices, limit: PerMatrix) -> Clipped:
    r"""Map singular values to $\min(\sigma, c)$.

    Args:
      a: matrices no wider than tall, without extreme entries.
      limit: c, not 0.
    """
    if a.shape[-1] == 1:
        size = frobenius(a)
        above = size > limit
        one = jnp.ones_like(size)
        ratio = jnp.where(above, limit, one) / jnp.where(above, size, one)
        return Clipped(scaled(a, ratio), above, size)
    return _clip(_alike(a, limit))


def bend(a: Matrices, scale: PerMatrix) -> Matrices:
    r"""Map singular values to $\sigma / \sqrt{1 + \sigma^2 / c^2}$.

    Args:
      a: matrices no wider than tall, without extreme entries.
      scale: c, not 0.
    """
    if a.shape[-1] == 1:
        return scaled(a, 1 / jnp.hypot(frobenius(a) / scale, 1))
    return _bend(_alike(a, scale))


def _alike(a: Matrices, limit: PerMatrix) -> _Asked:
    """Make both vary over the same mesh axes."""
    axes = varying_axes(a) | varying_axes(limit)
    return vary(a, axes), vary(limit, axes)
