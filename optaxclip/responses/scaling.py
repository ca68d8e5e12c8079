"""Responses that multiply each group by one factor, which keeps its direction."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool

from optaxclip.numbers import Leaf, Number, multiply
from optaxclip.responses.pointwise import Pointwise
from optaxclip.responses.response import GroupFactors, Response


def loud(magnitude: Number, result: Number) -> Number:
    """Return NaN where the magnitude is not finite, so that errors stay visible."""
    return jnp.where(magnitude < jnp.inf, result, jnp.nan)


def ratio_of(value: Number, scale: Number, limit: Number) -> tuple[Number, Number]:
    """Return limit * scale / value as two factors; as one it might underflow.

    Where a group was scaled down, a large limit can be scaled down with it. A small one
    would underflow, so the scale itself becomes the first factor, which is 1 elsewhere.
    Small means below 2^30 in float32, so no group that was scaled down is within such a
    limit: even the mean of 2^33 moduli that were is 2^31.
    """
    one = jnp.ones((), scale.dtype)
    small = limit < 2.0 ** (jnp.finfo(value.dtype).maxexp * 15 // 64)
    first = jnp.where(small, jnp.minimum(scale, one), one)
    rest = jnp.where(small, jnp.maximum(scale, one), scale)
    return first, loud(value, limit * rest / value)


def _within(value: Number, scale: Number, limit: Number) -> Bool[Array, "..."]:
    return (value <= limit * scale) | (limit == jnp.inf)


def _unless(left: Bool[Array, "..."], number: Number) -> Number:
    """Return 1 for unchanged groups: the derivative of 0 * inf would be NaN."""
    return jnp.where(left, jnp.ones((), number.dtype), number)


class Scaling(ABC):
    """Multiply each group by the product of its weights."""

    @abstractmethod
    def reach(self, magnitude: Number, limit: Number) -> Number:
        """See `Response.reach`."""

    def apply(self, leaf: Leaf, *weights: Number) -> Leaf:
        """See `Response.apply`."""
        # Apply the first weight last, so that intermediate products underflow least.
        for weight in reversed(weights):
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
        within = _within(value, scale, limit)
        first, second = ratio_of(_unless(within, value), scale, limit)
        return first, _unless(within, second)


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
        # A large limit times the scale of a tiny group, 2^72 in float32, may overflow.
        maxexp = jnp.finfo(value.dtype).maxexp
        large = (scale > 1) & (limit > 2.0 ** (maxexp // 4))
        unit = jnp.where(large, 2.0 ** (maxexp // 2), 1)
        first, second = ratio_of(_unless(left, raised), scale, limit / unit)
        return first, _unless(left, second * unit)


@dataclass(frozen=True)
class _Drop(Scaling):
    def __repr__(self) -> str:
        return "responses.drop"

    def reach(self, magnitude: Number, limit: Number) -> Number:
        (kept,) = self.weigh(magnitude, jnp.ones_like(magnitude), limit)
        return jnp.where(kept == 1, magnitude, kept)

    def weigh(self, value: Number, scale: Number, limit: Number) -> GroupFactors:
        nothing = loud(value, jnp.zeros_like(value))
        dropped = jnp.where(jnp.isnan(limit), jnp.nan, nothing)
        return (_unless(_within(value, scale, limit), dropped),)


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
