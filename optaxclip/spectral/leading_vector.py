"""The right singular vector of the largest singular value, from one that is near."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from optaxclip.mesh import vary, varying_axes
from optaxclip.platforms import by_platform
from optaxclip.spectral.bounds import irregular
from optaxclip.spectral.linear_algebra import (
    Matrices,
    PerMatrix,
    adjoint,
    frobenius,
    gram,
    matmul,
    scaled,
)

# How many vectors a round looks among, and how many rounds there are.
_VECTORS = 8
_ROUNDS = 2

_Given = tuple[Matrices, Matrices]


def _normalized(vector: Matrices) -> Matrices:
    size = frobenius(vector)
    return vector / jnp.where(size == 0, 1, size).astype(vector.dtype)


def _beyond(basis: Matrices, vector: Matrices) -> Matrices:
    """Give the direction in which a vector leaves a basis; zeros if it does not."""
    left = vector
    for _ in range(2):  # Once leaves rounding errors, of which twice leaves theirs.
        left = left - matmul(basis, matmul(adjoint(basis), left))
    size, whole = frobenius(left), frobenius(vector)
    stays = size <= jnp.finfo(size.dtype).eps * whole
    return jnp.where(stays, jnp.zeros_like(left), _normalized(left))


def _better(a: Matrices, vector: Matrices) -> Matrices:
    """Find the vector of the largest image among several that a vector leads to."""

    def extend(index: Array, basis: Matrices) -> Matrices:
        latest = jax.lax.dynamic_slice_in_dim(basis, index - 1, 1, axis=-1)
        led_to = matmul(adjoint(a), matmul(a, latest))
        # The last one is there for what the others may miss.
        following = jnp.where(index < _VECTORS - 1, led_to, irregular(a))
        following = _beyond(basis, following)
        return jax.lax.dynamic_update_slice_in_dim(basis, following, index, axis=-1)

    first = _normalized(vector)
    basis = jnp.concatenate([first, *[jnp.zeros_like(first)] * (_VECTORS - 1)], axis=-1)
    basis = jax.lax.fori_loop(1, _VECTORS, extend, basis)
    mix = jnp.linalg.eigh(gram(matmul(a, basis)))[1][..., -1:]
    return _normalized(matmul(basis, mix))


def by_krylov(given: _Given) -> Matrices:
    """Turn a vector to the largest singular value's by a few rounds."""
    a, vector = given
    return jax.lax.fori_loop(0, _ROUNDS, lambda _, vector: _better(a, vector), vector)


def _by_decomposition(given: _Given) -> Matrices:
    """Find the vector among all eigenvectors of the Gram matrix."""
    return jnp.linalg.eigh(gram(given[0]))[1][..., -1:]


# The vector of the largest image may turn without changing its length.
_leading = by_platform(
    by_krylov, _by_decomposition, lambda _, leading: leading, stacked=True
)


def leading_vector(a: Matrices, vector: Matrices) -> tuple[Matrices, PerMatrix]:
    r"""Turn a vector to the largest singular value's, and say how far it may be off.

    Args:
      a: matrices of numbers that are not extreme.
      vector: a right singular vector of each, or what it was for a matrix like it.

    Returns:
      The right singular vector, or the given one of a matrix of zeros, and the length
      of $A^* A v - \lVert A v \rVert^2 v$, a bound on how far the square of the
      image's length is from that of a singular value.
    """
    vector = vary(vector, varying_axes(a))
    leading = jnp.where(frobenius(a) > 0, _leading((a, vector)), vector)
    image = matmul(a, leading)
    square = jnp.square(frobenius(image))
    return leading, frobenius(matmul(adjoint(a), image) - scaled(leading, square))
