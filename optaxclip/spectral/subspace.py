"""Subspaces, what they tell of singular vectors, and how they come nearer to them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from optaxclip.spectral.bounds import frobenius
from optaxclip.spectral.polar import (
    Matrices,
    PerColumn,
    PerMatrix,
    adjoint,
    gram,
    matmul,
    scaled,
)

_HIGHEST_DEGREE = 10
# How much more than others a filter may enlarge a vector without drowning them, and
# how many vectors tell.
_CONTRAST = 1e6
_SAMPLE = 8


class Ritz(NamedTuple):
    """Approximate singular vectors of A, in the order of the singular values.

    Attributes:
      sizes: the approximate singular values s, from below.
      vectors: right singular vectors v.
      images: $A^* A v$.
      off: how far $A^* A v / s$ is from $s v$, beside which singular values are.
    """

    sizes: PerColumn
    vectors: Matrices
    images: Matrices
    off: PerColumn


class _Recurrence(NamedTuple):
    """Polynomials of a matrix, applied to vectors.

    Attributes:
      previous: of the degree before.
      current: of this degree.
      degree: the degree.
    """

    previous: Matrices
    current: Matrices
    degree: PerMatrix


def lengths(a: Matrices) -> PerColumn:
    """Measure the columns."""
    return jnp.linalg.norm(a, axis=-2, keepdims=True)


def _divided(a: Matrices, by: PerColumn) -> Matrices:
    """Divide where there is anything to divide by."""
    return scaled(a, 1 / jnp.where(by == 0, 1, by))


def best_in(square: Matrices, vectors: Matrices) -> Ritz:
    """Find the best approximations in the span of vectors; linear algebra of few.

    Args:
      square: $A^* A$.
      vectors: as columns.
    """
    vectors, _ = jnp.linalg.qr(vectors)
    images = matmul(square, vectors)
    squares, mix = jnp.linalg.eigh(matmul(adjoint(vectors), images))
    squares = squares[..., None, :]
    # What rounding errors leave unknown is taken at its most.
    unknown = jnp.finfo(squares.dtype).eps * squares[..., -1:]
    sizes = jnp.sqrt(jnp.maximum(squares, unknown))
    vectors, images = matmul(vectors, mix), matmul(images, mix)
    off = lengths(_divided(images, sizes) - scaled(vectors, sizes))
    return Ritz(sizes, vectors, images, off)


def all_above(
    vectors: Matrices, images: Matrices, limit: PerMatrix
) -> Bool[Array, "_ 1 1"]:
    """Tell whether no combination of vectors has an image below the limit.

    Then there are as many singular values above it at least.

    Args:
      vectors: as columns v.
      images: $A^* A v$.
      limit: how much A lengthens what is just at it.
    """
    least = scaled(gram(vectors), jnp.square(limit))
    excess = matmul(adjoint(vectors), images) - least
    factor = jax.lax.linalg.cholesky(excess, symmetrize_input=False)
    return jnp.all(jnp.isfinite(factor), axis=(-2, -1), keepdims=True)


def growth(sizes: PerColumn, damped: PerMatrix) -> PerColumn:
    """Tell by which power of e a degree of a filter enlarges singular vectors."""
    return jnp.arccosh(jnp.maximum(2 * jnp.square(sizes / damped) - 1, 1 + 1e-6))


def filtered(
    square: Matrices,
    found: Ritz,
    damped: PerMatrix,
    limit: PerMatrix,
    degree: PerMatrix,
) -> tuple[Matrices, PerMatrix]:
    r"""Apply a Chebyshev polynomial of $A^* A$, small below `damped`, to vectors.

    Args:
      square: $A^* A$, of one matrix.
      found: the vectors, and their images.
      damped: singular values below this are not enlarged.
      limit: vectors of singular values above this must not drown.
      degree: the degree that is wanted.

    Returns:
      The vectors, of length 1 or of NaN, and the degree that was reached: 1 at least,
      and no more than leaves all vectors in sight.
    """
    twice = 2 / jnp.square(damped)
    slowest = growth(limit, damped)
    most = jnp.minimum(degree, _HIGHEST_DEGREE)

    def goes_on(state: _Recurrence) -> Bool[Array, ""]:
        # The last columns are those of the largest; and random vectors are all alike.
        previous, current = (frobenius(each[..., -_SAMPLE:]) for each in state[:2])
        predicted = jnp.log(current * (current / previous))
        contrast = predicted - (state.degree + 1) * slowest
        return jnp.all((state.degree < most) & (contrast < math.log(_CONTRAST)))

    def raise_degree(state: _Recurrence) -> _Recurrence:
        previous, current, degree = state
        images = matmul(square, current)
        following = scaled(images, 2 * twice) - 2 * current - previous
        return _Recurrence(current, following, degree + 1)

    current = scaled(found.images, twice) - found.vectors
    start = _Recurrence(found.vectors, current, jnp.ones_like(twice))
    _, vectors, reached = jax.lax.while_loop(goes_on, raise_degree, start)
    size = lengths(vectors)
    # Not 0, which would seem to be a vector of no image.
    size = jnp.where(size < jnp.inf, size, jnp.nan)
    return _divided(vectors, size), reached
