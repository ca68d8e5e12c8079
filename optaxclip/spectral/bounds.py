"""Cheap bounds on singular values."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from optaxclip.mesh import vary, varying_axes
from optaxclip.spectral.linear_algebra import (
    Matrices,
    PerMatrix,
    adjoint,
    eye,
    frobenius,
    gram,
    matmul,
    scaled,
)

_POWER_STEPS = 8
# How far above a limit still counts as at the limit, in units of machine epsilon.
_SLACK = 32


def irregular(a: Matrices | jax.ShapeDtypeStruct) -> Matrices:
    """Return one vector per matrix, not orthogonal to any simple pattern."""
    golden = (5**0.5 - 1) / 2
    stack, _, n = a.shape
    steps = jnp.arange(1, n + 1, dtype=jnp.finfo(a.dtype).dtype) * golden
    return jnp.broadcast_to((steps % 1).astype(a.dtype)[None, :, None], (stack, n, 1))


def largest_singular_value(a: Matrices) -> PerMatrix:
    """Estimate the largest singular value from below; entries must not be extreme."""
    a = jax.lax.stop_gradient(a)
    if a.shape[-1] == 1:
        return frobenius(a)

    def turn(_: Array, vector: Matrices) -> Matrices:
        size = frobenius(vector)
        image = matmul(a, scaled(vector, 1 / jnp.where(size == 0, 1, size)))
        return matmul(adjoint(a), image)

    # The last round multiplies a unit vector by the square of the singular value.
    start = vary(irregular(a), varying_axes(a))
    return jnp.sqrt(frobenius(jax.lax.fori_loop(0, _POWER_STEPS, turn, start)))


def within(a: Matrices, limit: PerMatrix) -> Bool[Array, "_ 1 1"]:
    """Return which matrices certainly have no singular value above the limit.

    The largest singular value is at most the Frobenius norm, and at most the geometric
    mean of the largest absolute column sum and the largest absolute row sum.
    """
    size = jnp.abs(a)
    columns = jnp.max(jnp.sum(size, -2, keepdims=True), -1, keepdims=True)
    rows = jnp.max(jnp.sum(size, -1, keepdims=True), -2, keepdims=True)
    return (frobenius(a) <= limit) | (jnp.sqrt(columns) * jnp.sqrt(rows) <= limit)


def upper_bound(square: Matrices) -> PerMatrix:
    """Bound the largest singular value from above, given the Gram matrix."""
    return jnp.sqrt(jnp.sqrt(frobenius(gram(square)))) * (1 + 1e-5)


def exceeds(size: PerMatrix, limit: PerMatrix) -> Bool[Array, "_ 1 1"]:
    """Compare, allowing for rounding errors."""
    return size > limit * (1 + _SLACK * jnp.finfo(limit.dtype).eps)


def any_above(square: Matrices, limit: PerMatrix) -> Bool[Array, "_ 1 1"]:
    """Return whether any singular value is above the limit, up to rounding errors.

    There is none if and only if limit^2 I - A*A has a Cholesky factor.
    """
    slack = 2 * _SLACK * jnp.finfo(square.dtype).eps
    room = scaled(eye(square), jnp.square(limit) * (1 + slack)) - square
    factor = jax.lax.linalg.cholesky(room, symmetrize_input=False)
    return ~jnp.all(jnp.isfinite(factor), axis=(-2, -1), keepdims=True)
