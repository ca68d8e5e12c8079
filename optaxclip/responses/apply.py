"""A response applied: limits made fit, groups weighed, and leaves multiplied."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optaxclip.groups import Groups, PerGroup, map_groups, share_trace
from optaxclip.leaves import is_one_leaf
from optaxclip.norms import Magnitude
from optaxclip.numbers import Leaf, Number, computed_once, widen
from optaxclip.responses.response import Response


def nonnegative(limit: PerGroup, size: PerGroup) -> PerGroup:
    """Take negative limits as 0, in the type in which the groups were measured.

    Args:
      limit: one limit, or one for each group.
      size: a number for each group.

    Returns:
      Limits like the numbers, or one for all.
    """
    if is_one_leaf(limit) and jnp.ndim(limit) == 0:
        like = jax.tree.leaves(size)
        return _nonnegative(like[0], limit) if like else limit
    return map_groups(_nonnegative, size, limit)


def _nonnegative(size: Number, limit: ArrayLike) -> Number:
    limit = jnp.asarray(limit).astype(size.dtype)
    ends = zip(reversed(limit.shape), reversed(size.shape), strict=False)
    if limit.ndim > size.ndim or not all(own in (1, wanted) for own, wanted in ends):
        raise ValueError(
            f"a limit of shape {limit.shape} does not fit groups of shape "
            f"{size.shape}; give one number, or one for each group."
        )
    return jnp.maximum(limit, jnp.zeros_like(limit))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def apply_response(
    response: Response, groups: Groups, size: Magnitude, limit: PerGroup
) -> list[Leaf]:
    """Do to every group what a response decides.

    Args:
      response: what happens to a group that is too big.
      groups: the leaves, in groups.
      size: how big each group is.
      limit: the limit of each group, or one for all; none of them negative.

    Returns:
      The leaves, in their own types.
    """
    if not groups.leaves:
        return []
    if groups.pointwise:
        response = response.pointwise()
    factors = map_groups(response.weigh, *size, limit)
    *some, last = factors
    if groups.shared:
        some = jax.tree.map(computed_once, some)
    if not groups.pointwise:  # The last one takes a division, the others take none.
        last = jax.tree.map(computed_once, last)
    factors = *some, last
    given = zip(*(groups.spread(factor) for factor in factors), strict=True)

    def applied(leaf: Leaf, *factors: Number) -> Leaf:
        # As wide as the factors, which may be too small for the type of the leaf.
        wide = widen(leaf, factors[0].dtype)
        return response.apply(wide, *factors).astype(leaf.dtype)

    call = share_trace(applied, groups.leaves)
    return [call(leaf, *each) for leaf, each in zip(groups.leaves, given, strict=True)]


class Outcome(NamedTuple):
    """What became of the groups.

    Attributes:
      leaves: the leaves after clipping, in their own types.
      size: how big each group was, as far as is known now.
      reach: tells what a magnitude becomes under a limit.
    """

    leaves: list[Leaf]
    size: Magnitude
    reach: Callable[[Number, Number], Number]


@runtime_checkable
class Respond(Protocol):
    """What a clip does to groups of a known size."""

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
