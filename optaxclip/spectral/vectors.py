"""Singular values above a limit, brought down to it along their singular vectors."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

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
from optaxclip.spectral.search import Found, few, level, search
from optaxclip.spectral.subspace import lengths

# Of the vectors of all singular values, the products take one of these shares; each is
# a program to compile, which small matrices are not worth.
_SHARES = (8, 4, 2, 1)


def _lowered(a: Matrices, vectors: Matrices, to: PerMatrix) -> Matrices:
    r"""Bring singular values down along right singular vectors V.

    It is $A - A V \max(I - c \Sigma^{-1}, 0) V^*$. The singular values are measured
    anew as lengths, which err by the square of what the vectors are off, and not by a
    rounding of the largest.
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
    needed = jnp.sum(sizes > to)
    choice = jnp.sum(needed > jnp.asarray(widths[:-1], needed.dtype))

    def lowered(width: int) -> Matrices:
        return _lowered(a, vectors[..., -width:], to)

    return jax.lax.switch(choice, [partial(lowered, width) for width in widths])


class _Round(NamedTuple):
    """How far a matrix has come down.

    Attributes:
      a: the matrix, in a unit of its own.
      limit: the limit in that unit.
      above: whether any singular value was above it.
      more: whether another round is needed.
    """

    a: Matrices
    limit: PerMatrix
    above: Bool[Array, "1 1 1"]
    more: Bool[Array, "1 1 1"]


def _lower(before: _Round) -> _Round:
    """Find singular vectors, and bring down what they show above the limit."""
    a, limit = before.a, before.limit
    square = gram(a)

    def down(
        top: PerMatrix, lowered: Callable[[PerMatrix], Matrices]
    ) -> tuple[Matrices, PerMatrix]:
        over = jnp.all(exceeds(top, limit))
        to = level(limit, top)
        return jax.lax.cond(over, lambda: lowered(to), lambda: a), top

    def along_few(found: Found) -> tuple[Matrices, PerMatrix]:
        return down(found.top, lambda to: _lowered(a, found.vectors, to))

    def along_all() -> tuple[Matrices, PerMatrix]:
        squares, vectors = jnp.linalg.eigh(square)
        sizes = jnp.sqrt(jnp.maximum(squares[..., None, :], 0))
        return down(sizes[..., -1:], lambda to: _lowered_by_last(a, sizes, vectors, to))

    if few(a):
        found = search(square, limit)
        lowered, top = jax.lax.cond(
            jnp.all(found.settled), along_few, lambda _: along_all(), found
        )
    else:
        lowered, top = along_all()
    reached, above = level(limit, top), exceeds(top, limit)
    more = above & (reached > limit)
    # After many rounds, squares would be too small for floats.
    unit = jnp.where(more, reached, 1)
    lowered = jax.lax.cond(
        jnp.all(more), lambda: scaled(lowered, 1 / unit), lambda: lowered
    )
    return _Round(lowered, limit / unit, before.above | above, more)


def clip_by_vectors(
    a: Matrices, limit: PerMatrix
) -> tuple[Matrices, Bool[Array, "1 1 1"]]:
    r"""Map singular values to $\min(\sigma, c)$, and tell whether any was above.

    If there are few above, their vectors are found in a subspace; if there are more,
    among all eigenvectors of $A^* A$. Either way they come down to the limit in
    rounds, as squares do not tell of what is far below the largest.

    Args:
      a: one matrix, no wider than tall, of numbers that are not extreme.
      limit: c, not 0.
    """
    axes = varying_axes(a)
    none, one = (vary(jnp.full(limit.shape, x), axes) for x in (False, True))
    start = _Round(a, limit, none, one)
    end = jax.lax.while_loop(lambda state: jnp.all(state.more), _lower, start)
    return jnp.where(end.above, scaled(end.a, limit / end.limit), a), end.above
