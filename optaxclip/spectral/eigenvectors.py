"""Any number of singular values above a limit, found among the eigenvectors of A*A."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

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
    room = 1 + 64 * jnp.finfo(limit.dtype).eps

    def lower(
        state: tuple[Matrices, Array, Array],
    ) -> tuple[Matrices, Array, Array]:
        a, above, wanted = state
        squares, vectors = jnp.linalg.eigh(gram(a))
        squares = squares[..., None, :]
        top = jnp.sqrt(jnp.maximum(squares[..., -1:], 0))
        level = jnp.maximum(limit, top / _STEEPEST)
        sizes = jnp.sqrt(jnp.maximum(squares, jnp.square(level)))
        over = wanted & (squares[..., -1:] > jnp.square(limit) * room)

        def act(a: Matrices) -> Matrices:
            excess = scaled(matmul(a, vectors), 1 - level / sizes)
            return jnp.where(over, a - matmul(excess, adjoint(vectors)), a)

        a = jax.lax.cond(jnp.any(over), act, lambda a: a, a)
        return a, above | over, over & (level > limit)

    state = a, jnp.zeros_like(wanted), wanted
    a, above, _ = jax.lax.while_loop(lambda s: jnp.any(s[2]), lower, state)
    return a, above
