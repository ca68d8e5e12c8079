"""The few singular values above a limit, found in a subspace and brought down to it."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from optaxclip.reductions import vary, varying_axes
from optaxclip.spectral.polar import (
    Matrices,
    PerColumn,
    PerMatrix,
    adjoint,
    gram,
    matmul,
    scaled,
)

# A subspace of so many vectors, as a share of the columns, costs little to look into.
_SHARE = 16
# Matrices of fewer vectors than these are not worth looking for them.
_FEWEST = 16
# The error in the spectral norm, relative to the limit, at which the search ends, and
# the one that a filter is made for.
_SETTLED = 4e-4
_AIM = 1e-4
# The work that a search may take, in degrees of polynomials: looking at what a filter
# has left is as much as some.
_MOST_WORK = 40
_LOOK = 2
_HIGHEST_DEGREE = 8
# Where a polynomial of a higher degree would be needed, there is no gap worth the name.
_MOST_AT_ONCE = 10
# How much more than others a filter may enlarge a vector without drowning them.
_CONTRAST = 1e6
# A filter damps singular values below this share of the limit at least.
_LEAST_DAMPED = 0.25
# A random vector has one in the root of so many of any direction; with this margin.
_CERTAINTY = 10.0


class Deflated(NamedTuple):
    """Matrices of which the singular values above a limit were looked for.

    Attributes:
      matrices: the projections, where all of those values were found.
      above: whether there are any.
      settled: whether both can be relied on.
    """

    matrices: Matrices
    above: Bool[Array, "_ 1 1"]
    settled: Bool[Array, "_ 1 1"]


class _Ritz(NamedTuple):
    """Approximate singular vectors, in the order of the singular values.

    Attributes:
      sizes: the approximate singular values s, from below.
      left: left singular vectors u.
      right: $A^* u$, right singular vectors times s.
      images: $A A^* u$.
      off: how far $A A^* u / s$ is from $s u$, beside which singular values are.
    """

    sizes: PerColumn
    left: Matrices
    right: Matrices
    images: Matrices
    off: PerColumn


class _Search(NamedTuple):
    """How far the search is.

    Attributes:
      found: what was found.
      need: the degree of the filter that would be enough by all that is known.
      spent: the work done before.
      raised: by which power of e a singular vector above the limit has been enlarged,
        in comparison with the smallest one found.
    """

    found: _Ritz
    need: PerMatrix
    spent: Int[Array, "_ 1 1"]
    raised: PerMatrix


def few(a: Matrices) -> int:
    """Tell how many singular values can be looked for; 0 if it is not worth it."""
    count = a.shape[-1] // _SHARE
    return count if count >= _FEWEST else 0


def _lengths(a: Matrices) -> PerColumn:
    return jnp.linalg.norm(a, axis=-2, keepdims=True)


def _divided(a: Matrices, by: PerColumn) -> Matrices:
    """Divide where there is anything to divide by."""
    return scaled(a, 1 / jnp.where(by == 0, 1, by))


def _ritz(a: Matrices, vectors: Matrices) -> _Ritz:
    """Find the best approximations in the span of vectors; linear algebra of few."""
    left, _ = jnp.linalg.qr(vectors)
    right = matmul(adjoint(a), left)
    squares, mix = jnp.linalg.eigh(gram(right))
    squares = squares[..., None, :]
    # What rounding errors leave unknown is taken at its most.
    unknown = jnp.finfo(squares.dtype).eps * squares[..., -1:]
    sizes = jnp.sqrt(jnp.maximum(squares, unknown))
    left, right = matmul(left, mix), matmul(right, mix)
    images = matmul(a, right)
    off = _lengths(_divided(images, sizes) - scaled(left, sizes))
    return _Ritz(sizes, left, right, images, off)


def _damped(found: _Ritz, limit: PerMatrix) -> PerMatrix:
    """Tell below what a filter shall damp singular values."""
    return jnp.maximum(found.sizes[..., :1], _LEAST_DAMPED * limit)


def _growth(sizes: PerColumn, damped: PerMatrix) -> PerColumn:
    """Tell by which power of e a degree of the filter enlarges a singular vector."""
    return jnp.arccosh(jnp.maximum(2 * jnp.square(sizes / damped) - 1, 1 + 1e-6))


def _errors(found: _Ritz, limit: PerMatrix) -> PerColumn:
    """Estimate from above what each vector lets the projection err by, per limit.

    To first order, the share of what it is off that is above the limit, measured from
    where all is known; those below may turn out to be above by what they are off.
    """
    most = found.sizes + found.off
    least = jnp.finfo(most.dtype).eps * limit
    reach = jnp.maximum(most - _damped(found, limit), least)
    return found.off / limit * (jnp.maximum(most - limit, 0) / reach)


def _noticed(limit: PerMatrix) -> PerMatrix:
    """Tell from where on a singular value may not be missed."""
    return limit * (1 + _SETTLED)


def _search(limit: PerMatrix, found: _Ritz, spent: Array, raised: PerMatrix) -> _Search:
    errors = _errors(found, limit)
    growth = _growth(found.sizes + found.off, _damped(found, limit))
    each = jnp.log(jnp.maximum(errors / _AIM, 1)) / growth
    need = jnp.max(each, -1, keepdims=True)
    # All of them above the limit: so may be others.
    need = jnp.where(found.sizes[..., :1] > limit, jnp.inf, need)
    total = jnp.sqrt(jnp.sum(jnp.square(errors), -1, keepdims=True))
    need = jnp.where(total <= _SETTLED, 0, need)
    # Vectors of others may hide one that has not been enlarged enough to stand out.
    enough = math.log(_CERTAINTY * math.sqrt(found.right.shape[-2]))
    unseen = (enough - raised) / _growth(_noticed(limit), _damped(found, limit))
    return _Search(found, jnp.maximum(need, jnp.maximum(unseen, 0)), spent, raised)


def _degree(search: _Search, limit: PerMatrix) -> Int[Array, "_ 1 1"]:
    damped = _damped(search.found, limit)
    contrast = _growth(search.found.sizes[..., -1:], damped) - _growth(limit, damped)
    most = jnp.log(_CONTRAST) / jnp.maximum(contrast, 1e-3)
    most = jnp.clip(most, 1, _HIGHEST_DEGREE)
    # What was found first hides how much there is: a look after a little is worth it.
    most = jnp.where(search.spent == 0, jnp.minimum(most, 3), most)
    return jnp.minimum(jnp.maximum(jnp.ceil(search.need), 2), most).astype(jnp.int32)


def _filtered(
    a: Matrices, found: _Ritz, damped: PerMatrix, degree: Int[Array, "_ 1 1"]
) -> Matrices:
    r"""Apply a Chebyshev polynomial of $A A^*$, which is small below `damped`."""
    twice = 2 / jnp.square(damped)
    before, latest = found.left, scaled(found.images, twice) - found.left

    def raise_degree(
        reached: Array, both: tuple[Matrices, Matrices]
    ) -> tuple[Matrices, Matrices]:
        before, latest = both
        images = matmul(a, matmul(adjoint(a), latest))
        following = scaled(images, 2 * twice) - 2 * latest - before
        more = reached < degree
        return jnp.where(more, latest, before), jnp.where(more, following, latest)

    start = before, latest
    _, latest = jax.lax.fori_loop(1, jnp.max(degree), raise_degree, start)
    return _divided(latest, _lengths(latest))


def deflate(a: Matrices, limit: PerMatrix, wanted: Bool[Array, "_ 1 1"]) -> Deflated:
    r"""Clip singular values where few are above the limit, or find out that many are.

    Of the approximate singular vectors in a subspace, those of the largest singular
    values are enlarged by a Chebyshev polynomial until what they are off does not
    matter, and until none above the limit could have been missed; the degrees follow
    the gaps between what is found. With V for the right ones of singular values above
    c, the projection is $A - A V (I - c \Sigma^{-1}) V^*$.

    Args:
      a: matrices no wider than tall, of numbers that are not extreme, and of so many
        columns that `few` is not 0.
      limit: c.
      wanted: which of the matrices matter.

    References:
      Zhou et al., Self-consistent-field calculations using Chebyshev-filtered subspace
      iteration, Journal of Computational Physics 219, 2006.

      Halko et al., Finding structure with randomness, 2009, arXiv:0909.4061.
    """

    def goes_on(search: _Search) -> Bool[Array, "_ 1 1"]:
        left = jnp.minimum(_MOST_WORK - search.spent, _MOST_AT_ONCE)
        return wanted & (search.need > 0) & (search.need <= left.astype(a.real.dtype))

    def go_on(search: _Search) -> _Search:
        degree, damped = _degree(search, limit), _damped(search.found, limit)
        found = _ritz(a, _filtered(a, search.found, damped, degree))
        least = jnp.minimum(found.sizes[..., :1], _noticed(limit))
        ahead = _growth(_noticed(limit), damped) - _growth(least, damped)
        raised = search.raised + degree.astype(ahead.dtype) * ahead
        after = _search(limit, found, search.spent + degree + _LOOK, raised)
        on = goes_on(search)
        return jax.tree.map(lambda new, old: jnp.where(on, new, old), after, search)

    start = jax.random.normal(jax.random.key(0), (a.shape[-1], few(a)), limit.dtype)
    first = _ritz(a, matmul(a, start.astype(a.dtype)[None]))
    none = vary(jnp.zeros_like(limit), varying_axes(a))
    start = _search(limit, first, none.astype(jnp.int32), none)
    found, need, *_ = jax.lax.while_loop(lambda s: jnp.any(goes_on(s)), go_on, start)
    room = 1 + 32 * jnp.finfo(limit.dtype).eps
    above = found.sizes[..., -1:] > limit * room
    sizes = jnp.maximum(found.sizes, limit)
    share = (1 - limit / sizes) / jnp.square(sizes)
    excess = matmul(scaled(found.images, share), adjoint(found.right))
    return Deflated(jnp.where(above, a - excess, a), above, need <= 0)
