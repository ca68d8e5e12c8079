"""The vectors of the few singular values above a limit, searched for in a subspace."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from optaxclip.reductions import vary, varying_axes
from optaxclip.spectral.bounds import any_above, exceeds
from optaxclip.spectral.polar import Matrices, PerColumn, PerMatrix, matmul
from optaxclip.spectral.subspace import (
    Ritz,
    all_above,
    best_in,
    filtered,
    growth,
    lengths,
)

# Squares are known to a rounding of the largest; so where the limit is further below it
# than this, it is approached in several rounds.
_STEEPEST = 32.0
# A subspace of so many vectors, as a share of the columns, costs little to look into.
_SHARE = 16
# Matrices of fewer vectors than these are not worth looking for them.
_FEWEST = 16
# The error in the spectral norm, relative to the limit, at which the search ends, and
# the one that a filter is made for.
_SETTLED = 4e-4
_AIM = 1e-4
# The work that a search may take, in degrees of polynomials, before all eigenvectors
# are cheaper: looking at what a filter has left is as much as some, and so no filter is
# of a lower degree than the least.
_MOST_WORK = 60
_LOOK = 4
_LEAST_DEGREE = 2
# The first filter, which knows of no singular value yet, damps those below this share
# of the limit.
_FIRST_DEGREE = 9
_FIRST_DAMPED = 0.75
# Where a polynomial of a higher degree would be needed, in one filter or two, there is
# no gap worth the name.
_MOST_AT_ONCE = 14
# A filter damps singular values below this share of the limit at least.
_LEAST_DAMPED = 0.25
# A random vector has one in the root of so many of any direction; with this margin.
_CERTAINTY = 10.0


class Found(NamedTuple):
    """What a search for singular values above a limit has found.

    Attributes:
      vectors: right singular vectors.
      top: the largest singular value, if settled; else something no larger, or NaN.
      settled: whether no singular value is above the limit but theirs.
    """

    vectors: Matrices
    top: PerMatrix
    settled: Bool[Array, "1 1 1"]


class _Search(NamedTuple):
    """How far the search is.

    Attributes:
      found: what was found.
      need: the degree of the filter that would be enough by all that is known.
      spent: the work done before.
      raised: by which power of e a singular vector above the limit has been enlarged,
        in comparison with the smallest one found.
    """

    found: Ritz
    need: PerMatrix
    spent: PerMatrix
    raised: PerMatrix


def few(a: Matrices) -> int:
    """Tell how many singular values can be looked for; 0 if it is not worth it."""
    count = a.shape[-1] // _SHARE
    return count if count >= _FEWEST else 0


def level(limit: PerMatrix, top: PerMatrix) -> PerMatrix:
    """Tell where singular values are brought down to at once, from the largest."""
    return jnp.maximum(limit, top / _STEEPEST)


def _damped(found: Ritz, limit: PerMatrix) -> PerMatrix:
    """Tell below what a filter shall damp singular values."""
    return jnp.maximum(found.sizes[..., :1], _LEAST_DAMPED * limit)


def _errors(found: Ritz, limit: PerMatrix) -> PerColumn:
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


def _for_errors(found: Ritz, limit: PerMatrix) -> PerMatrix:
    """Estimate of which degree a filter would make the errors small enough."""
    errors = _errors(found, limit)
    powers = jnp.log(jnp.maximum(errors / _AIM, 1))
    each = powers / growth(found.sizes + found.off, _damped(found, limit))
    need = jnp.max(each, -1, keepdims=True)
    # All of them above the limit: so may be others.
    need = jnp.where(found.sizes[..., :1] > limit, jnp.inf, need)
    total = jnp.sqrt(jnp.sum(jnp.square(errors), -1, keepdims=True))
    return jnp.where(total <= _SETTLED, 0, need)


def _for_hidden(found: Ritz, limit: PerMatrix, raised: PerMatrix) -> PerMatrix:
    """Tell of which degree a filter would show what others may still hide."""
    enough = math.log(_CERTAINTY * math.sqrt(found.vectors.shape[-2]))
    least = (enough - raised) / growth(_noticed(limit), _damped(found, limit))
    return jnp.maximum(least, 0)


def _start(square: Matrices, limit: PerMatrix) -> _Search:
    """Begin with random vectors, unless they show at once that many are above."""
    shape = square.shape[-1], few(square)
    vectors = jax.random.normal(jax.random.key(0), shape, limit.dtype)
    vectors = vary(vectors.astype(square.dtype)[None], varying_axes(square))
    images = matmul(square, vectors)
    # Nothing is known of the sizes but that the largest is none below what any vector
    # was lengthened by.
    top = jnp.sqrt(jnp.max(lengths(images) / lengths(vectors), -1, keepdims=True))
    first = jnp.broadcast_to(_FIRST_DAMPED * level(limit, top), (1, 1, shape[-1]))
    sizes = jnp.concatenate([first[..., 1:], jnp.maximum(first[..., :1], top)], -1)
    none = vary(jnp.zeros_like(limit), varying_axes(square))
    need = jnp.where(all_above(vectors, images, limit), jnp.inf, _FIRST_DEGREE)
    return _Search(
        Ritz(sizes, vectors, images, jnp.zeros_like(sizes)), need, none, none
    )


def search(square: Matrices, limit: PerMatrix) -> Found:
    r"""Find the singular vectors of few singular values, or find out that many are.

    Of the approximate singular vectors in a subspace, those of the largest singular
    values are enlarged by a Chebyshev polynomial until what they are off does not
    matter, and until none above the limit could have been missed; the degrees follow
    the gaps between what is found.

    Args:
      square: $A^* A$ of one matrix, of so many columns that `few` is not 0.
      limit: above which singular values are looked for; or above the `level`, where
        the largest is far above it.

    References:
      Zhou et al., Self-consistent-field calculations using Chebyshev-filtered subspace
      iteration, Journal of Computational Physics 219, 2006.

      Halko et al., Finding structure with randomness, 2009, arXiv:0909.4061.
    """

    def goes_on(search: _Search) -> Bool[Array, ""]:
        left = jnp.minimum(_MOST_WORK - search.spent, _MOST_AT_ONCE)
        return jnp.all((search.need > 0) & (search.need <= left))

    def go_on(search: _Search) -> _Search:
        to = level(limit, search.found.sizes[..., -1:])
        damped = _damped(search.found, to)
        wanted = jnp.maximum(jnp.ceil(search.need), _LEAST_DEGREE)
        vectors, degree = filtered(square, search.found, damped, to, wanted)
        found = best_in(square, vectors)
        smallest = jnp.minimum(found.sizes[..., :1], _noticed(to))
        ahead = growth(_noticed(to), damped) - growth(smallest, damped)
        raised = search.raised + degree * ahead
        to = level(limit, found.sizes[..., -1:])
        need = jnp.maximum(_for_errors(found, to), _for_hidden(found, to, raised))
        return _Search(found, need, search.spent + degree + _LOOK, raised)

    start = _start(square, limit)
    end = jax.lax.while_loop(goes_on, go_on, start)
    top = end.found.sizes[..., -1:]
    settled, many = end.need <= 0, jnp.isinf(start.need)
    # A factor costs little beside all eigenvectors, and tells if any are needed.
    unclear = ~settled & ~many & ~exceeds(top, limit)
    none_above = jax.lax.cond(
        jnp.all(unclear), lambda: ~any_above(square, limit), lambda: settled
    )
    return Found(end.found.vectors, top, settled | none_above)
