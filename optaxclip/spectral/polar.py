"""The polar factor of a matrix, by polynomials: all singular values become 1."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optaxclip.spectral.linear_algebra import Matrices, eye, gram, matmul, scaled

# Singular values from here to 1 become 1.
_SMALLEST = 2.0**-16
# The best polynomial for [least, 1] nearly vanishes inside, which would make rounding
# errors count; so it is taken for no longer an interval than this one.
_LONGEST = 2.0**-3
# Room above 1 for rounding errors, which early polynomials multiply by 25.
_MARGIN = 1 + 2.0**-10


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
def _steps() -> Float[np.ndarray, "steps 3"]:
    """Compose the best polynomials, greedily; after each, values reach 1 at most.

    Each row has the coefficients of x, x^3 and x^5.
    """
    least, rows = _SMALLEST, []
    while least < 0.999:
        coefficients, error = _nearest_to_one(max(least, _LONGEST))
        top = (1 + error) * (_MARGIN if least < 0.5 else 1.0)
        rows.append(coefficients / top)
        least = min(float(coefficients @ [least, least**3, least**5]), 1 - error) / top
    # The flattest quintic at 1, whose error is 5/2 of the third power of what is left.
    return np.stack([*rows, np.array([15.0, -10.0, 3.0]) / 8])


def polar(parts: tuple[Matrices, ...]) -> tuple[Matrices, ...]:
    r"""Bring the singular values of a matrix to 1, as far as they are large enough.

    Each step is $X \leftarrow X (a I + b X^* X + c (X^* X)^2)$, with the quintic that
    is best for the interval in which the singular values lie by then.

    Args:
      parts: matrices one above the other, of singular values at most 1 together.

    Returns:
      The parts of the polar factor. Of a Hermitian matrix it is the matrix sign.
      Singular values below 2^-16 become something between 0 and 1, in their order.

    References:
      Amsel et al., The Polar Express: optimal matrix sign methods and their
      application to the Muon algorithm, 2025, arXiv:2505.16932.
    """

    def step(
        parts: tuple[Matrices, ...], row: Array
    ) -> tuple[tuple[Matrices, ...], None]:
        a, b, c = row
        square = functools.reduce(jnp.add, map(gram, parts))
        higher = scaled(square, b) + scaled(matmul(square, square), c)
        factor = scaled(eye(square), a) + higher
        return tuple(matmul(part, factor) for part in parts), None

    rows = jnp.asarray(_steps(), jnp.finfo(parts[0].dtype).dtype)
    return jax.lax.scan(step, parts, rows)[0]
