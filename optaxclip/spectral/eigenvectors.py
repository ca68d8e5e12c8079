"""Any number of singular values above a limit, found among the eigenvectors of A*A."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from optaxclip.reductions import vary, varying_axes
from optaxclip.spectral.polar import Matrices, PerMatrix, adjoint, gram, matmul, scaled

# Squares are known to a rounding of the largest; so where the limit is further below it
# than this, it is approached in several rounds.
_STEEPEST = 32.0


def clip_by_eigenvectors(
    a: Matrices, limit: PerMatrix, wanted: Bool[Array, "_ 1 1"]
) -> tuple[Matrices, Bool[Array, "_ 1 1"]]:
    r"""Map singular values to $\min(\sigma, c)$, and tell where any was above.

    With $A^* A = V \Sigma^2 V^*$, the projection is
    $A - A V \max(I - c \Sigma^{-1}, 0) V^*$.

    Args:
      a: matrices no wider than tall, of numbers that are not extreme.
      limit: c, not 0.
      wanted: which of the matrices to map.
    """
    room = 1 + 32 * jnp.finfo(limit.dtype).eps

    def lower(
        state: tuple[Matrices, Array, Array],
    ) -> tuple[Matrices, Array, Array]:
        a, above, wanted = state
        # After many rounds, the squares of what is left would be too small for floats.
        unit = jnp.max(jnp.abs(a), (-2, -1), keepdims=True)
        unit = jnp.where(unit == 0, 1, unit)
        squares, vectors = jnp.linalg.eigh(gram(scaled(a, 1 / unit)))
        sizes = jnp.sqrt(jnp.maximum(squares[..., None, :], 0)) * unit
        top = sizes[..., -1:]
        level = jnp.maximum(limit, top / _STEEPEST)
        over = wanted & (top > limit * room)

        def act(a: Matrices) -> Matrices:
            share = 1 - level / jnp.maximum(sizes, level)
            excess = scaled(matmul(a, vectors), share)
            return jnp.where(over, a - matmul(excess, adjoint(vectors)), a)

        a = jax.lax.cond(jnp.any(over), act, lambda a: a, a)
        return a, above | over, over & (level > limit)

    none = vary(jnp.zeros_like(wanted), varying_axes(a))
    state = a, none, wanted
    a, above, _ = jax.lax.while_loop(lambda s: jnp.any(s[2]), lower, state)
    return a, above
