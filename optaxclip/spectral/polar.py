"""The polar factor of a matrix by polynomials, which map singular values to 1."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optaxclip.spectral.linear_algebra import Matrices, eye, gram, matmul, scaled

# Singular values from this to 1 become 1.
_SMALLEST = 2.0**-16
# On a long interval [least, 1] the best polynomial nearly vanishes inside, which would
# amplify rounding errors; so intervals start at this or above.
_LONGEST = 2.0**-3
# Headroom above 1 for rounding errors, which early polynomials multiply by 25.
_MARGIN = 1 + 2.0**-10


def _nearest_to_one(least: float) -> tuple[np.ndarray, float]:
    """Find the odd quintic closest to 1 on [least, 1], and its error.

    The error alternates in sign between both ends and the two extrema inside (Remez).
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
    """Compose the best polynomials greedily, so that values never exceed 1.

    Each row has the coefficients of x, x^3 and x^5.
    """
    least, rows = _SMALLEST, []
    while least < 0.999:
        coefficients, error = _nearest_to_one(max(least, _LONGEST))
        top = (1 + error) * (_MARGIN if least < 0.5 else 1.0)
        rows.append(coefficients / top)
        least = min(float(coefficients @ [least, least**3, least**5]), 1 - error) / top
    # The flattest quintic at 1; its error is 5/2 times the cube of the remaining one.
    return np.stack([*rows, np.array([15.0, -10.0, 3.0]) / 8])


def polar(parts: tuple[Matrices, ...]) -> tuple[Matrices, ...]:
    r"""Map the singular values of a matrix to 1, except very small ones.

    Each step is $X \leftarrow X (a I + b X^* X + c (X^* X)^2)$, with the quintic that
    is best for the interval that then contains the singular values.

    Args:
      parts: the blocks of a matrix, stacked vertically, with singular values up to 1.

    Returns:
      The blocks of the polar factor. For a Hermitian matrix it is the matrix sign.
      Singular values below 2^-16 become something between 0 and 1, in the same order.

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
