"""Refine a guess of the leading right singular vector."""

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

# The number of vectors per round, and of rounds.
_VECTORS = 8
_ROUNDS = 2

_Given = tuple[Matrices, Matrices]


def _normalized(vector: Matrices) -> Matrices:
    size = frobenius(vector)
    return vector / jnp.where(size == 0, 1, size).astype(vector.dtype)


def _beyond(basis: Matrices, vector: Matrices) -> Matrices:
    """Normalize the part of a vector outside a basis; return zeros if there is none."""
    left = vector
    for _ in range(2):  # The second time removes the rounding errors of the first.
        left = left - matmul(basis, matmul(adjoint(basis), left))
    size, whole = frobenius(left), frobenius(vector)
    stays = size <= jnp.finfo(size.dtype).eps * whole
    return jnp.where(stays, jnp.zeros_like(left), _normalized(left))


def _better(a: Matrices, vector: Matrices) -> Matrices:
    """Find the vector with the largest image in the Krylov subspace of a vector."""

    def extend(index: Array, basis: Matrices) -> Matrices:
        latest = jax.lax.dynamic_slice_in_dim(basis, index - 1, 1, axis=-1)
        led_to = matmul(adjoint(a), matmul(a, latest))
        # The last vector covers directions that the others may miss.
        following = jnp.where(index < _VECTORS - 1, led_to, irregular(a))
        following = _beyond(basis, following)
        return jax.lax.dynamic_update_slice_in_dim(basis, following, index, axis=-1)

    first = _normalized(vector)
    basis = jnp.concatenate([first, *[jnp.zeros_like(first)] * (_VECTORS - 1)], axis=-1)
    basis = jax.lax.fori_loop(1, _VECTORS, extend, basis)
    mix = jnp.linalg.eigh(gram(matmul(a, basis)))[1][..., -1:]
    return _normalized(matmul(basis, mix))


def by_krylov(given: _Given) -> Matrices:
    """Refine a guess of the leading vector by a few rounds of Krylov subspaces."""
    a, vector = given
    return jax.lax.fori_loop(0, _ROUNDS, lambda _, vector: _better(a, vector), vector)


def _by_decomposition(given: _Given) -> Matrices:
    """Find the leading vector from all eigenvectors of the Gram matrix."""
    return jnp.linalg.eigh(gram(given[0]))[1][..., -1:]


# To first order, turning the leading vector does not change the length of its image.
_leading = by_platform(
    by_krylov, _by_decomposition, lambda _, leading: leading, stacked=True
)


def leading_vector(a: Matrices, vector: Matrices) -> tuple[Matrices, PerMatrix]:
    r"""Find the leading right singular vector, and bound its error.

    Args:
      a: matrices without extreme entries.
      vector: a guess for each, such as the vector of a similar matrix.

    Returns:
      The right singular vector (for a matrix of zeros, the given one), and the length
      of $A^* A v - \lVert A v \rVert^2 v$, which bounds the distance from
      $\lVert A v \rVert^2$ to the square of a singular value.
    """
    vector = vary(vector, varying_axes(a))
    leading = jnp.where(frobenius(a) > 0, _leading((a, vector)), vector)
    image = matmul(a, leading)
    square = jnp.square(frobenius(image))
    return leading, frobenius(matmul(adjoint(a), image) - scaled(leading, square))
