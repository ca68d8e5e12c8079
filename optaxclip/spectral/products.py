"""Maps of singular values by a fixed number of matrix products, for accelerators.

Accelerators multiply matrices fast, but are slow at decompositions and branches.
"""

import jax
import jax.numpy as jnp

from optaxclip.spectral.bounds import upper_bound
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
from optaxclip.spectral.polar import polar

# The smallest limit, relative to the largest singular value, that rounding errors do
# not swamp.
_STEEPEST = 2.0**-15


def project(a: Matrices, limit: PerMatrix) -> Matrices:
    r"""Map singular values to $\min(\sigma, c)$.

    With the polar decomposition $A = Q H$, the excess of H over c is subtracted:
    $A - Q \max(H - c I, 0)$, where the maximum is $\frac12 X (I + \mathrm{sign} X)$.
    So Q only has to be accurate for singular values above c.

    Args:
      a: the matrices.
      limit: c, not 0. If it is too small for the precision, a larger one is used, and
        the result is scaled down.
    """
    square = jax.lax.stop_gradient(gram(a))
    bound = jnp.minimum(upper_bound(square), jnp.sqrt(_trace(square)))
    bound = jnp.maximum(bound, limit)
    reached = jnp.maximum(limit, _STEEPEST * bound)
    (factor,) = polar((scaled(a, 1 / bound),))
    hermitian = matmul(adjoint(factor), a)
    hermitian = scaled(hermitian + adjoint(hermitian), 0.5)
    spread = jnp.maximum(bound - reached, reached)
    shifted = scaled(hermitian, 1 / spread) - scaled(eye(hermitian), reached / spread)
    (sign,) = polar((shifted,))
    beyond = scaled(matmul(shifted, eye(sign) + sign), spread / 2)
    return scaled(a - matmul(factor, beyond), limit / reached)


def _trace(square: Matrices) -> PerMatrix:
    return jnp.trace(square, axis1=-2, axis2=-1).real[:, None, None]


def bend_by_products(a: Matrices, scale: PerMatrix) -> Matrices:
    r"""Map singular values to $\sigma / \sqrt{1 + \sigma^2 / c^2}$.

    Stacked on top of c I, the matrix has the singular values $\sqrt{\sigma^2 + c^2}$;
    the upper block of the polar factor, times c, is the result.

    Args:
      a: the matrices.
      scale: c, not 0.
    """
    bound = jax.lax.stop_gradient(frobenius(a))
    larger = jnp.maximum(bound, scale)
    top = larger * jnp.sqrt(jnp.square(bound / larger) + jnp.square(scale / larger))
    parts = scaled(a, 1 / top), scaled(eye(a), scale / top)
    return scaled(polar(parts)[0], scale)
