"""Apply a response: check the limits, compute the weights, change the leaves."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optaxclip.arguments import check_fits
from optaxclip.groups import Groups, PerGroup, map_groups, share_trace
from optaxclip.leaves import is_one_leaf
from optaxclip.norms import Magnitude
from optaxclip.numbers import Leaf, Number, computed_once, widen
from optaxclip.responses.response import Response


def nonnegative(limit: PerGroup, size: PerGroup) -> PerGroup:
    """Set negative limits to 0, in the dtype in which the groups were measured.

    Args:
      limit: one limit, or one per group.
      size: one number per group.

    Returns:
      One limit, or limits like `size`.
    """
    if is_one_leaf(limit) and jnp.ndim(limit) == 0:
        like = jax.tree.leaves(size)
        return _nonnegative(like[0], limit) if like else limit
    return map_groups(_nonnegative, size, limit)


def _nonnegative(size: Number, limit: ArrayLike) -> Number:
    limit = jnp.asarray(limit).astype(size.dtype)
    check_fits(limit.shape, size.shape)
    return jnp.maximum(limit, jnp.zeros_like(limit))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def apply_response(
    response: Response, groups: Groups, size: Magnitude, limit: PerGroup
) -> list[Leaf]:
    """Apply a response to every group.

    Args:
      response: what happens to a group that is too big.
      groups: the leaves, in groups.
      size: the magnitude of each group.
      limit: the limit of each group, or one for all; not negative.

    Returns:
      The leaves, in their own dtypes.
    """
    if not groups.leaves:
        return []
    if groups.pointwise:
        response = response.pointwise()
    factors = map_groups(response.weigh, *size, limit)
    if groups.shared:
        # XLA would repeat these in every leaf, but not the division of the last one.
        factors = *map(computed_once, factors[:-1]), factors[-1]
    given = zip(*(groups.spread(factor) for factor in factors), strict=True)

    def applied(leaf: Leaf, *factors: Number) -> Leaf:
        # As wide as the factors, which may underflow in the dtype of the leaf.
        wide = widen(leaf, factors[0].dtype)
        return response.apply(wide, *factors).astype(leaf.dtype)

    call = share_trace(applied, groups.leaves)
    return [call(leaf, *each) for leaf, each in zip(groups.leaves, given, strict=True)]


class Outcome(NamedTuple):
    """The result of clipping.

    Attributes:
      leaves: the leaves after clipping, in their own dtypes.
      size: the magnitude of each group before clipping, as well as it is known now.
      reach: maps a magnitude and a limit to the magnitude after clipping.
    """

    leaves: list[Leaf]
    size: Magnitude
    reach: Callable[[Number, Number], Number]


@runtime_checkable
class Respond(Protocol):
    """Clips groups of known magnitude."""

    def __call__(self, groups: Groups, size: Magnitude, limit: PerGroup) -> Outcome:
        """Bring every group to its limit."""
        ...


@dataclass(frozen=True)
class ByResponse:
    """Apply one of `optaxclip.responses`."""

    response: Response

    def __call__(self, groups: Groups, size: Magnitude, limit: PerGroup) -> Outcome:
        """See `Respond`."""
        leaves = apply_response(self.response, groups, size, limit)
        return Outcome(leaves, size, self.response.reach)
