"""Responses that multiply each group by one factor, which keeps its direction."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool

from optaxclip.numbers import Leaf, Number, computed_once, multiply
from optaxclip.responses.pointwise import Pointwise
from optaxclip.responses.response import GroupFactors, Response


def loud(magnitude: Number, result: Number) -> Number:
    """Return NaN where the magnitude is not finite, so that errors stay visible."""
    return jnp.where(magnitude < jnp.inf, result, jnp.nan)


def weights_of(
    left: Bool[Array, "..."], bound: Number, value: Number, scale: Number
) -> GroupFactors:
    """Return two weights whose product is bound / value, times the scale.

    A group is scaled before it is multiplied by the quotient: one weight alone could
    underflow or overflow where no product does. Numbers that vanish by that are too
    small to matter in a group that large. XLA repeats cheap arithmetic for every number
    of a leaf, but no division, so little follows the quotient.

    Args:
      left: which groups are left unchanged; their product is 1.
      bound: the limits of the groups, scaled where their numbers are not.
      value: their magnitudes, scaled.
      scale: by what their numbers are scaled; 1 where their limits are.
    """
    one = jnp.ones_like(scale)
    # Groups are not selected afterwards: the derivative of 0 * inf would be NaN.
    divisor = jnp.where(left, one, loud(value, value))
    return jnp.where(left, one, scale), jnp.where(left, one, bound) / divisor


def _within(value: Number, scale: Number, limit: Number) -> Bool[Array, "..."]:
    return (value <= limit * scale) | (limit == jnp.inf)


def _unless(left: Bool[Array, "..."], number: Number) -> Number:
    """Return 1 where the mask holds."""
    return jnp.where(left, jnp.ones((), number.dtype), number)


class Scaling(ABC):
    """Multiply each group by the product of its weights."""

    @abstractmethod
    def reach(self, magnitude: Number, limit: Number) -> Number:
        """See `Response.reach`."""

    def apply(self, leaf: Leaf, *weights: Number) -> Leaf:
        """See `Response.apply`."""
        for weight in weights:
            leaf = multiply(leaf, weight.astype(jnp.finfo(leaf.dtype).dtype))
        return leaf

    def pointwise(self) -> Response:
        """See `Response.pointwise`."""
        return Pointwise(self.reach, repr(self))


@dataclass(frozen=True)
class _Shrink(Scaling):
    def __repr__(self) -> str:
        return "responses.shrink"

    def reach(self, magnitude: Number, limit: Number) -> Number:
        within = (magnitude <= limit) | (limit == jnp.inf)
        return jnp.where(within, magnitude, loud(magnitude, limit))

    def weigh(self, value: Number, scale: Number, limit: Number) -> GroupFactors:
        left, one = _within(value, scale, limit), jnp.ones_like(scale)
        bound = limit * jnp.maximum(scale, one)
        return weights_of(left, bound, value, jnp.minimum(scale, one))


@dataclass(frozen=True)
class _Normalize(Scaling):
    gamma: float = 0.0

    def __repr__(self) -> str:
        return (
            f"responses.auto_s({self.gamma})" if self.gamma else "responses.normalize"
        )

    def reach(self, magnitude: Number, limit: Number) -> Number:
        left = (magnitude == 0) | (limit == jnp.inf)
        safe = jnp.where(left, jnp.ones_like(magnitude), magnitude)
        # Without gamma the quotient is 1, but its derivative would overflow.
        reached = limit * (safe / (safe + self.gamma)) if self.gamma else limit
        return jnp.where(left, magnitude, loud(magnitude, reached))

    def weigh(self, value: Number, scale: Number, limit: Number) -> GroupFactors:
        left = (value == 0) | (limit == jnp.inf)
        if self.gamma:  # Beside a larger gamma a magnitude may underflow.
            faint = value < self.gamma * scale
            value = jnp.where(faint, value / scale, value)
            scale = _unless(faint, scale)
        raised = value + self.gamma * scale
        # Where the quotient could overflow or underflow otherwise, the limit is scaled,
        # not the numbers. If it does all the same, a group ends up below its limit.
        finfo = jnp.finfo(value.dtype)
        large = limit > jnp.where(scale < 1, 2.0 ** (finfo.maxexp // 4), 1)
        scaled = large == (scale < 1)
        bound, scale = jnp.where(scaled, limit * scale, limit), _unless(scaled, scale)
        first, quotient = weights_of(left, bound, raised, scale)
        return first, jnp.minimum(quotient, finfo.max)


@dataclass(frozen=True)
class _Drop(Scaling):
    def __repr__(self) -> str:
        return "responses.drop"

    def reach(self, magnitude: Number, limit: Number) -> Number:
        kept = self._kept(magnitude, jnp.ones_like(magnitude), limit)
        return jnp.where(kept == 1, magnitude, kept)

    def weigh(self, value: Number, scale: Number, limit: Number) -> GroupFactors:
        return (computed_once(self._kept(value, scale, limit)),)

    def _kept(self, value: Number, scale: Number, limit: Number) -> Number:
        nothing = loud(value, jnp.zeros_like(value))
        dropped = jnp.where(jnp.isnan(limit), jnp.nan, nothing)
        return _unless(_within(value, scale, limit), dropped)


shrink: Response = _Shrink()
"""Multiply a group by limit / magnitude if its magnitude is above the limit."""

normalize: Response = _Normalize()
"""Multiply every group by limit / magnitude, up as well as down; zeros stay zero."""

drop: Response = _Drop()
"""Set a group to zero if its magnitude is above the limit."""


def auto_s(gamma: float = 0.01) -> Response:
    r"""Return the response that normalizes stably, from automatic clipping.

    $$u \leftarrow u \cdot \frac{c}{m + \gamma}$$

    Small magnitudes m are not scaled up all the way to the limit c, and none exceeds
    it.

    Args:
      gamma: the number added to the magnitude, at least 0; with 0 this is `normalize`.

    Returns:
      The response.

    Raises:
      ValueError: if `gamma` is negative, NaN or infinite.

    References:
      Bu et al., Automatic clipping: differentially private deep learning made easier
      and stronger, 2022, arXiv:2206.07136.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be at least 0 and finite, not {gamma}.")
    return _Normalize(float(gamma))
