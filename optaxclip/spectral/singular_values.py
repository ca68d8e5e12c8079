"""Maps of the singular values of stacked matrices."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from optaxclip.reductions import vary, varying_axes
from optaxclip.spectral.bounds import any_above, frobenius, upper_bound, within
from optaxclip.spectral.polar import (
    Matrices,
    PerMatrix,
    adjoint,
    eye,
    gram,
    matmul,
    polar,
    scaled,
)
from optaxclip.spectral.vectors import clip_by_vectors

# How near to the limit, relative to it, singular values may be told apart poorly. The
# projection is continuous: what it gives there is wrong by a hundredth of this.
_RESOLUTION = 2.0**-6
# Where a singular value may be so many times the limit, `project` softens the matrix
# first: numbers as large would cancel, and leave their rounding errors.
_STEEP = 8.0


def soften(a: Matrices, scale: PerMatrix, bound: PerMatrix) -> Matrices:
    r"""Map singular values to $\sigma / \sqrt{1 + \sigma^2 / c^2}$.

    With c I below it, a matrix has the singular values $\sqrt{\sigma^2 + c^2}$, and
    its polar factor, times c, the wanted matrix above.

    Args:
      a: the matrices.
      scale: c.
      bound: a bound on their singular values.
    """
    if a.shape[-1] == 1:
        return scaled(a, 1 / jnp.hypot(frobenius(a) / scale, 1))
    larger = jnp.maximum(bound, scale)
    top = larger * jnp.sqrt(jnp.square(bound / larger) + jnp.square(scale / larger))
    share = scale / top
    parts = scaled(a, 1 / top), scaled(eye(a), share)
    return scaled(polar(parts, share)[0], scale)


def project(a: Matrices, limit: PerMatrix, bound: PerMatrix) -> Matrices:
    r"""Map singular values to $\min(\sigma, c)$, where c is not 0.

    Of the polar decomposition $A = Q H$, what H has above c is taken away:
    $A - Q \max(H - c I, 0)$, the maximum being $\frac12 X (I + \mathrm{sign} X)$.
    So Q has to be right for singular values above c alone.

    Args:
      a: the matrices.
      limit: c.
      bound: a bound on their singular values.
    """
    steep = bound > _STEEP * limit
    scale = _STEEP * limit

    def when_steep(change: Callable[[Matrices], Matrices], a: Matrices) -> Matrices:
        def act(a: Matrices) -> Matrices:
            return jnp.where(steep, change(a), a)

        return jax.lax.cond(jnp.any(steep), act, lambda a: a, a)

    a = when_steep(lambda a: soften(a, scale, bound), a)
    limit = jnp.where(steep, limit / (1 + _STEEP**-2) ** 0.5, limit)
    bound = jnp.minimum(bound, scale)
    (factor,) = polar((scaled(a, 1 / bound),), limit / bound)
    hermitian = matmul(adjoint(factor), a)
    hermitian = scaled(hermitian + adjoint(hermitian), 0.5)
    spread = jnp.maximum(bound - limit, limit)
    shifted = scaled(hermitian, 1 / spread) - scaled(eye(hermitian), limit / spread)
    (sign,) = polar((shifted,), _RESOLUTION * limit / spread)
    beyond = scaled(matmul(shifted, eye(sign) + sign), spread / 2)
    return when_steep(partial(_harden, scale), a - matmul(factor, beyond))


def _harden(scale: PerMatrix, a: Matrices) -> Matrices:
    r"""Undo `soften` for small values, $\sigma / \sqrt{1 - \sigma^2 / c^2}$."""
    square = gram(scaled(a, 1 / scale))
    inner = scaled(eye(square), 0.5) + scaled(square, 0.375)
    return a + matmul(a, matmul(square, inner))


def clip_by_polynomials(
    a: Matrices, limit: PerMatrix, unsure: Bool[Array, "_ 1 1"]
) -> tuple[Matrices, Bool[Array, "_ 1 1"]]:
    """Clip where products cost little: one factor tells where, polynomials do it."""
    square = jax.lax.stop_gradient(gram(a))
    above = unsure & any_above(square, limit)

    def act(a: Matrices) -> Matrices:
        bound = jnp.minimum(upper_bound(square), frobenius(a))
        return jnp.where(above, project(a, limit, bound), a)

    return jax.lax.cond(jnp.any(above), act, lambda a: a, a), above


def _each_by_vectors(
    a: Matrices, limit: PerMatrix, unsure: Bool[Array, "_ 1 1"]
) -> tuple[Matrices, Bool[Array, "_ 1 1"]]:
    """Clip one matrix after another, as they need different things."""

    def one(each: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        a, limit, unsure = (x[None] for x in each)
        clipped, above = jax.lax.cond(
            jnp.all(unsure), clip_by_vectors, lambda a, _: (a, unsure), a, limit
        )
        return clipped[0], above[0]

    return jax.lax.map(one, (a, limit, unsure))


@jax.custom_jvp
def _clip(
    a: Matrices, limit: PerMatrix, unsure: Bool[Array, "_ 1 1"]
) -> tuple[Matrices, Bool[Array, "_ 1 1"]]:
    return jax.lax.platform_dependent(
        a, limit, unsure, cpu=_each_by_vectors, default=clip_by_polynomials
    )


# Vectors of equal singular values have no derivatives; polynomials do.
_clip.defjvp(lambda given, tangents: jax.jvp(clip_by_polynomials, given, tangents))


def clip(a: Matrices, limit: PerMatrix) -> tuple[Matrices, Bool[Array, "_ 1 1"]]:
    """Clip singular values, and tell of which matrices any was above the limit.

    Args:
      a: matrices no wider than tall, of numbers that are not extreme.
      limit: the largest singular value allowed.
    """
    if a.shape[-1] == 1:
        size = frobenius(a)
        above = size > limit
        one = jnp.ones_like(size)
        ratio = jnp.where(above, limit, one) / jnp.where(above, size, one)
        return scaled(a, ratio), above
    axes = varying_axes(a) | varying_axes(limit)
    a, limit = vary(a, axes), vary(limit, axes)
    unsure = ~within(a, limit)
    return jax.lax.cond(
        jnp.any(unsure), lambda a: _clip(a, limit, unsure), lambda a: (a, unsure), a
    )
