"""The right singular vector of the largest singular value, from one that is near."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from optaxclip.reductions import vary, varying_axes
from optaxclip.spectral.bounds import frobenius, irregular
from optaxclip.spectral.polar import (
    Matrices,
    PerMatrix,
    adjoint,
    gram,
    matmul,
    scaled,
)

# How many vectors a round looks among.
_VECTORS = 8
_MOST_ROUNDS = 16
# How far from a singular vector the found one may be, in roundings.
_SETTLED = 16

# A vector, the square of its image's length, how far that may be off, and the rounds.
_Carry = tuple[Matrices, PerMatrix, PerMatrix, Array]


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


def _best(a: Matrices, vector: Matrices) -> tuple[Matrices, PerMatrix, PerMatrix]:
    r"""Find the vector of the largest image among several that a vector leads to.

    Give it, the square of its image's length, and a bound on how far that is from the
    square of a singular value: the length of $A^* A v - \lVert A v \rVert^2 v$.
    """

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
    best = _normalized(matmul(basis, mix))
    image = matmul(a, best)
    square = jnp.square(frobenius(image))
    return best, square, frobenius(matmul(adjoint(a), image) - scaled(best, square))


def leading_vector(a: Matrices, vector: Matrices) -> tuple[Matrices, PerMatrix]:
    r"""Turn a vector to the largest singular value's, and say how far it may be off.

    Args:
      a: matrices of numbers that are not extreme.
      vector: a right singular vector of each, or what it was for a matrix like it.

    Returns:
      The right singular vector, or the given one of a matrix of zeros, and the length
      of $A^* A v - \lVert A v \rVert^2 v$.
    """

    def goes_on(carry: _Carry) -> Bool[Array, ""]:
        _, square, off, rounds = carry
        far = off > _SETTLED * jnp.finfo(off.dtype).eps * square
        return jnp.any(far) & (rounds < _MOST_ROUNDS)

    def turn(carry: _Carry) -> _Carry:
        vector, _, _, rounds = carry
        return *_best(a, vector), rounds + 1

    size = frobenius(a)
    vector = vary(vector, varying_axes(a))
    start = vector, size, size + jnp.inf, jnp.zeros((), jnp.int32)
    leading, _, off, _ = jax.lax.while_loop(goes_on, turn, start)
    return jnp.where(size > 0, leading, vector), off
