"""Maps of singular values by singular value decomposition, for CPUs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from optaxclip.spectral.bounds import any_above, within
from optaxclip.spectral.linear_algebra import (
    Matrices,
    PerColumn,
    PerMatrix,
    gram,
    matmul,
    scaled,
)


def decomposed(a: Matrices) -> tuple[Matrices, PerColumn, Matrices]:
    r"""Return $U$, the singular values in descending order, and $V^*$."""
    u, sizes, v = jnp.linalg.svd(a, full_matrices=False)
    return u, sizes[..., None, :], v


def lowered(a: Matrices, limit: PerMatrix) -> tuple[Matrices, PerMatrix]:
    r"""Map singular values to $\min(\sigma, c)$, and return the largest before.

    The result is $A - U \max(\Sigma - c, 0) V^*$, so singular values up to c do not
    change. If $A$ is so large compared with c that its rounding errors matter, it is
    $U \min(\Sigma, c) V^*$, without singular values as small as such an error.
    """
    u, sizes, v = decomposed(a)
    top = sizes[..., :1]
    near = top <= 2 * limit
    sizes = jnp.where(sizes > jnp.finfo(sizes.dtype).eps * top, sizes, 0)
    change = jnp.where(near, -jnp.maximum(sizes - limit, 0), jnp.minimum(sizes, limit))
    rest = jnp.where(near, a, jnp.zeros_like(a))
    return rest + matmul(scaled(u, change), v), top


def bent(a: Matrices, scale: PerMatrix) -> Matrices:
    r"""Map singular values to $\sigma / \sqrt{1 + \sigma^2 / c^2}$."""
    u, sizes, v = decomposed(a)
    return matmul(scaled(u, sizes / jnp.hypot(sizes / scale, 1)), v)


def maybe_above(a: Matrices, limit: PerMatrix) -> Bool[Array, "_ 1 1"]:
    """Return which matrices may have a singular value above the limit, cheaply."""
    unsure = ~within(a, limit)
    return jax.lax.cond(
        jnp.any(unsure),
        lambda: unsure & any_above(gram(a), limit),
        lambda: unsure,
    )
