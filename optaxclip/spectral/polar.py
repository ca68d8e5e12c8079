"""The polar factor of a matrix, by polynomials: all singular values become 1."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Real

Matrices = Inexact[Array, "_ _ _"]
PerMatrix = Real[Array, "_ 1 1"]
PerColumn = Real[Array, "_ 1 _"]

# Which singular values become 1 where all are wanted, as a share of the largest.
_SMALLEST = 2.0**-32
# The best polynomial for [least, 1] nearly vanishes inside, which would make rounding
# errors count; so it is taken for no longer an interval, of which it is safe.
_LONGEST = 2.0**-17
# Room above 1 for rounding errors, which early polynomials multiply by 25.
_MARGIN = 1 + 2.0**-10


class _Steps(NamedTuple):
    """A row for each polynomial.

    Attributes:
      least: the least singular value that a row and those after it bring to 1.
      coefficients: of x, x^3 and x^5.
    """

    least: Float[np.ndarray, " steps"]
    coefficients: Float[np.ndarray, "steps 3"]


def _nearest_to_one(least: float) -> tuple[np.ndarray, float]:
    """Find the odd quintic that is nearest to 1 on [least, 1], and how near it is.

    The differences alternate in sign at both ends and the two extrema between.
    """
    points = np.array([least, (1 + 2 * least) / 3, (2 + least) / 3, 1.0])
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    a, b, c, error = 0.0, 0.0, 0.0, 1.0
    for _ in range(20):
        powers = np.stack([points, points**3, points**5, signs], axis=1)
        a, b, c, error = np.linalg.solve(powers, np.ones(4))
        root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        extrema = np.array([-3 * b - root, -3 * b + root]) / (10 * c)
        points[1:3] = np.sqrt(np.clip(extrema, least**2, 1.0))
    return np.array([a, b, c]), float(error)


@functools.cache
def _steps() -> _Steps:
    """Compose the best polynomials, greedily; after each, values reach 1 at most."""
    least, starts, rows = _SMALLEST, [], []
    while least < 0.999:
        coefficients, error = _nearest_to_one(max(least, _LONGEST))
        top = (1 + error) * (_MARGIN if least < 0.5 else 1.0)
        starts.append(least)
        rows.append(coefficients / top)
        least = min(float(coefficients @ [least, least**3, least**5]), 1 - error) / top
    # The flattest quintic at 1, whose error is 5/2 of the third power of what is left.
    starts.append(least)
    rows.append(np.array([15.0, -10.0, 3.0]) / 8)
    return _Steps(np.array(starts), np.stack(rows))


def matmul(a: Matrices, b: Matrices) -> Matrices:
    """Multiply in full precision; accelerators would round float32 otherwise."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def adjoint(a: Matrices) -> Matrices:
    """Transpose, and conjugate what is complex."""
    return jnp.conj(jnp.swapaxes(a, -1, -2))


def gram(a: Matrices) -> Matrices:
    """Multiply with the adjoint from the left."""
    return matmul(adjoint(a), a)


def scaled(a: Matrices, by: PerColumn | Real[Array, ""] | float) -> Matrices:
    """Multiply by real numbers, in the type of the matrices."""
    return a * jnp.asarray(by, a.dtype)


def eye(a: Matrices) -> Matrices:
    """Give the identity for square matrices."""
    return jnp.eye(a.shape[-1], dtype=a.dtype)[None]


def polar(parts: tuple[Matrices, ...], least: PerMatrix) -> tuple[Matrices, ...]:
    r"""Bring the singular values of a matrix to 1, as far as they are large enough.

    Each step is $X \leftarrow X (a I + b X^* X + c (X^* X)^2)$, with the quintic that
    is best for the interval in which the singular values lie by then. Where that
    interval starts further up, the first steps are left out.

    Args:
      parts: matrices one above the other, of singular values at most 1 together.
      least: the least singular value that has to become 1; smaller ones become
        something between 0 and 1, in their order.

    Returns:
      The parts of the polar factor. Of a Hermitian matrix it is the matrix sign.

    References:
      Amsel et al., The Polar Express: optimal matrix sign methods and their
      application to the Muon algorithm, 2025, arXiv:2505.16932.
    """
    table = _steps()
    needed = jax.lax.stop_gradient(jnp.min(least))
    first = jnp.sum(jnp.asarray(table.least[1:], needed.dtype) <= needed)

    def step(
        parts: tuple[Matrices, ...], row: tuple[Array, Array]
    ) -> tuple[tuple[Matrices, ...], None]:
        index, (a, b, c) = row

        def improve(parts: tuple[Matrices, ...]) -> tuple[Matrices, ...]:
            square = functools.reduce(jnp.add, map(gram, parts))
            higher = scaled(square, b) + scaled(matmul(square, square), c)
            factor = scaled(eye(square), a) + higher
            return tuple(matmul(part, factor) for part in parts)

        return jax.lax.cond(index >= first, improve, lambda x: x, parts), None

    rows = jnp.arange(len(table.least)), jnp.asarray(table.coefficients, needed.dtype)
    return jax.lax.scan(step, parts, rows)[0]
