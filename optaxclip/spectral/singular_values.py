"""Maps of the singular values of stacked matrices."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from optaxclip.reductions import vary, varying_axes
from optaxclip.spectral.deflation import deflate, few
from optaxclip.spectral.eigenvectors import clip_by_eigenvectors
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

# How near to the limit, relative to it, singular values may be told apart poorly. The
# projection is continuous: what it gives there is wrong by a hundredth of this.
_RESOLUTION = 2.0**-6
# Where a singular value may be so many times the limit, `project` softens the matrix
# first: numbers as large would cancel, and leave their rounding errors.
_STEEP = 8.0
_POWER_STEPS = 8


def frobenius(a: Matrices) -> PerMatrix:
    """Give the Frobenius norm, of numbers that are not extreme; its slope at 0 is 0."""
    squares = jnp.square(a.real) + jnp.square(a.imag)
    total = jnp.sum(squares, axis=(-2, -1), keepdims=True)
    root = jnp.sqrt(jnp.where(total == 0, jnp.ones_like(total), total))
    return jnp.where(total == 0, jnp.zeros_like(total), root)


def unit_of(a: Matrices) -> PerMatrix:
    """Choose a power of two by which the largest number comes near to 1."""
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(a)), axis=(-2, -1), keepdims=True)
    reach = jnp.finfo(largest.dtype).maxexp - 8
    _, exponent = jnp.frexp(largest)
    exponent = jnp.where(jnp.isfinite(largest), exponent, 0)
    return jnp.ldexp(jnp.ones_like(largest), jnp.clip(exponent, -reach, reach))


def irregular(a: Matrices | jax.ShapeDtypeStruct) -> Matrices:
    """Give a vector for each matrix that no simple pattern is orthogonal to."""
    golden = (5**0.5 - 1) / 2
    stack, _, n = a.shape
    steps = jnp.arange(1, n + 1, dtype=jnp.finfo(a.dtype).dtype) * golden
    return jnp.broadcast_to((steps % 1).astype(a.dtype)[None, :, None], (stack, n, 1))


def largest_singular_value(a: Matrices) -> PerMatrix:
    """Estimate the largest singular value from below; no number may be extreme."""
    a = jax.lax.stop_gradient(a)
    if a.shape[-1] == 1:
        return frobenius(a)

    def turn(_: Array, vector: Matrices) -> Matrices:
        size = frobenius(vector)
        image = matmul(a, scaled(vector, 1 / jnp.where(size == 0, 1, size)))
        return matmul(adjoint(a), image)

    # What the last round multiplies a vector of length 1 with is the square.
    start = vary(irregular(a), varying_axes(a))
    return jnp.sqrt(frobenius(jax.lax.fori_loop(0, _POWER_STEPS, turn, start)))


def within(a: Matrices, limit: PerMatrix) -> Bool[Array, "_ 1 1"]:
    """Tell for certain, and in one pass, of most matrices that none is above the limit.

    The largest singular value is neither above the Frobenius norm, nor above the
    geometric mean of the largest sums of a column and of a row.
    """
    size = jnp.abs(a)
    columns = jnp.max(jnp.sum(size, -2, keepdims=True), -1, keepdims=True)
    rows = jnp.max(jnp.sum(size, -1, keepdims=True), -2, keepdims=True)
    return (frobenius(a) <= limit) | (jnp.sqrt(columns) * jnp.sqrt(rows) <= limit)


def _bound(square: Matrices) -> PerMatrix:
    """Bound the largest singular value from above, by the Gram matrix."""
    return jnp.sqrt(jnp.sqrt(frobenius(gram(square)))) * (1 + 1e-5)


def _above(square: Matrices, limit: PerMatrix) -> Bool[Array, "_ 1 1"]:
    """Tell whether any singular value is above the limit, but for rounding errors.

    There is none exactly if limit^2 I - A*A has a Cholesky factor.
    """
    finfo = jnp.finfo(square.dtype)
    room = scaled(eye(square), jnp.square(limit) * (1 + 64 * finfo.eps)) - square
    factor = jax.lax.linalg.cholesky(room, symmetrize_input=False)
    return ~jnp.all(jnp.isfinite(factor), axis=(-2, -1), keepdims=True)


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
    above = unsure & _above(square, limit)

    def act(a: Matrices) -> Matrices:
        bound = jnp.minimum(_bound(square), frobenius(a))
        return jnp.where(above, project(a, limit, bound), a)

    return jax.lax.cond(jnp.any(above), act, lambda a: a, a), above


def _by_vectors(
    a: Matrices, limit: PerMatrix, unsure: Bool[Array, "_ 1 1"]
) -> tuple[Matrices, Bool[Array, "_ 1 1"]]:
    """Clip where products cost as much as they do on a CPU: find the vectors above."""
    if not few(a):
        return clip_by_eigenvectors(a, limit, unsure)
    found, above, settled = deflate(a, limit, unsure)
    left = unsure & ~settled
    # A factor costs little beside eigenvectors, and tells whether any are needed.
    left &= jax.lax.cond(jnp.any(left), lambda: _above(gram(a), limit), lambda: left)
    clipped, more = clip_by_eigenvectors(a, limit, left)
    return jnp.where(settled, found, clipped), jnp.where(settled, above, more)


@jax.custom_jvp
def _clip(
    a: Matrices, limit: PerMatrix, unsure: Bool[Array, "_ 1 1"]
) -> tuple[Matrices, Bool[Array, "_ 1 1"]]:
    return jax.lax.platform_dependent(
        a, limit, unsure, cpu=_by_vectors, default=clip_by_polynomials
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
