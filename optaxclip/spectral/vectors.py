"""Singular values above a limit, brought down to it along their singular vectors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from optaxclip.reductions import vary, varying_axes
from optaxclip.spectral.bounds import exceeds
from optaxclip.spectral.polar import (
    Matrices,
    PerColumn,
    PerMatrix,
    adjoint,
    gram,
    matmul,
    scaled,
)
from optaxclip.spectral.search import few, level, search
from optaxclip.spectral.subspace import lengths

# Of the vectors of all singular values, the products take one of these shares.
_SHARES = (8, 4, 2, 1)


def _lowered(a: Matrices, vectors: Matrices, to: PerMatrix) -> Matrices:
    r"""Bring singular values down along right singular vectors V.

    It is $A - A V \max(I - c \Sigma^{-1}, 0) V^*$. The singular values are measured
    anew as lengths: they err by the square of what the vectors are off.
    """
    images = matmul(a, vectors)
    share = 1 - to / jnp.maximum(lengths(images), to)
    return a - matmul(scaled(images, share), adjoint(vectors))


def _lowered_by_last(
    a: Matrices, sizes: PerColumn, vectors: Matrices, to: PerMatrix
) -> Matrices:
    """Bring singular values down along the last vectors, no more than are needed."""
    columns = a.shape[-1]
    widths = [columns // share for share in (_SHARES if few(a) else (1,))]
    needed = jnp.max(jnp.sum(sizes > to, -1))
    choice = jnp.sum(needed > jnp.asarray(widths[:-1], needed.dtype))
    choices = [
        lambda v, width=width: _lowered(a, v[..., -width:], to) for width in widths
    ]
    return jax.lax.switch(choice, choices, vectors)


def clip_by_vectors(
    a: Matrices, limit: PerMatrix, wanted: Bool[Array, "_ 1 1"]
) -> tuple[Matrices, Bool[Array, "_ 1 1"]]:
    r"""Map singular values to $\min(\sigma, c)$, and tell where any was above.

    If there are few above, their vectors are found in a subspace; if there are more,
    among all eigenvectors of $A^* A$. Either way they come down to the limit in
    rounds, as squares do not tell of what is far below the largest.

    Args:
      a: matrices no wider than tall, of numbers that are not extreme.
      limit: c, not 0.
      wanted: which of the matrices to map.
    """

    def lower(
        state: tuple[Matrices, PerMatrix, Array, Array],
    ) -> tuple[Matrices, PerMatrix, Array, Array]:
        a, limit, above, wanted = state
        square = gram(a)
        rest, top = wanted, jnp.zeros_like(limit)
        if few(a):
            found = search(square, limit, wanted)
            rest, top = wanted & ~found.settled, found.top
            lowered = _lowered(a, found.vectors, level(limit, top))
            a = jnp.where(wanted & found.settled & exceeds(top, limit), lowered, a)

        def by_all(a: Matrices, top: PerMatrix) -> tuple[Matrices, PerMatrix]:
            squares, vectors = jnp.linalg.eigh(square)
            sizes = jnp.sqrt(jnp.maximum(squares[..., None, :], 0))
            most = sizes[..., -1:]
            lowered = _lowered_by_last(a, sizes, vectors, level(limit, most))
            some = rest & exceeds(most, limit)
            return jnp.where(some, lowered, a), jnp.where(rest, most, top)

        a, top = jax.lax.cond(jnp.any(rest), by_all, lambda *same: same, a, top)
        reached, over = level(limit, top), wanted & exceeds(top, limit)
        wanted = over & (reached > limit)
        # After many rounds, squares would be too small for floats.
        unit = jnp.where(wanted, reached, 1)
        a = jax.lax.cond(jnp.any(wanted), lambda a: scaled(a, 1 / unit), lambda a: a, a)
        return a, limit / unit, above | over, wanted

    none = vary(jnp.zeros_like(wanted), varying_axes(a))
    lowered, least, above, _ = jax.lax.while_loop(
        lambda state: jnp.any(state[-1]), lower, (a, limit, none, wanted)
    )
    return jnp.where(above, scaled(lowered, limit / least), a), above
