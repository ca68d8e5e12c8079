"""One factor a group, so that its direction stays: to a limit, or to nothing."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from optaxclip.magnitudes import Leaf, Number
from optaxclip.responses.pointwise import Pointwise, multiply
from optaxclip.responses.response import Response, Weights


def loud(magnitude: Number, result: Number) -> Number:
    """Answer a magnitude that is not finite with NaN: what is broken has to be loud."""
    return jnp.where(magnitude < jnp.inf, result, jnp.nan)


def ratio_of(value: Number, unit: Number, limit: Number) -> tuple[Number, Number]:
    """Give limit / (value * unit) as two factors, whose product may be very small.

    The first is a power of two that brings a large magnitude near to 1, so that the
    second has no reason to underflow where the result does not.
    """
    finfo = jnp.finfo(value.dtype)
    power = lax.reduce_precision(lax.stop_gradient(value), finfo.nexp, 0)
    first = 1 / jnp.clip(power * unit, 1, 2.0 ** (finfo.maxexp - 2))
    rest = jnp.maximum(value * (unit * first), finfo.tiny)
    return first, loud(value, limit / rest)


def _within(value: Number, unit: Number, limit: Number) -> Bool[Array, "..."]:
    return (value <= limit / unit) | (limit == jnp.inf)


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
        return Pointwise(self.reach)


@dataclass(frozen=True)
class _Shrink(Scaling):
    def reach(self, magnitude: Number, limit: Number) -> Number:
        within = (magnitude <= limit) | (limit == jnp.inf)
        return jnp.where(within, magnitude, loud(magnitude, limit))

    def weigh(self, value: Number, unit: Number, limit: Number) -> Weights:
        within = _within(value, unit, limit)
        one = jnp.ones_like(value)
        ratio = ratio_of(jnp.where(within, one, value), unit, limit)
        return tuple(jnp.where(within, one, factor) for factor in ratio)


@dataclass(frozen=True)
class _Normalize(Scaling):
    gamma: float = 0.0

    def reach(self, magnitude: Number, limit: Number) -> Number:
        left = (magnitude == 0) | (limit == jnp.inf)
        safe = jnp.where(left, jnp.ones_like(magnitude), magnitude)
        reached = limit * (safe / (safe + self.gamma))
        return jnp.where(left, magnitude, loud(magnitude, reached))

    def weigh(self, value: Number, unit: Number, limit: Number) -> Weights:
        left = (value == 0) | (limit == jnp.inf)
        one = jnp.ones_like(value)
        raised = value + self.gamma / unit
        ratio = ratio_of(jnp.where(left, one, raised), unit, limit)
        return tuple(jnp.where(left, one, factor) for factor in ratio)


@dataclass(frozen=True)
class _Drop(Scaling):
    def reach(self, magnitude: Number, limit: Number) -> Number:
        (kept,) = self.weigh(magnitude, jnp.ones_like(magnitude), limit)
        return jnp.where(kept == 1, magnitude, kept)

    def weigh(self, value: Number, unit: Number, limit: Number) -> Weights:
        one = jnp.ones_like(value)
        dropped = jnp.where(jnp.isnan(limit), jnp.nan, loud(value, 0 * one))
        return (jnp.where(_within(value, unit, limit), one, dropped),)


shrink: Response = _Shrink()
"""Multiply a group by limit / magnitude if its magnitude is above the limit."""

normalize: Response = _Normalize()
"""Multiply a group by limit / magnitude, up as well as down; zeros stay."""

drop: Response = _Drop()
"""Set a group to zero if its magnitude is above the limit."""


def auto_s(gamma: float = 0.01) -> Response:
    r"""Give the response that normalizes stably, as automatic clipping does.

    $$u \leftarrow u \cdot \frac{c}{m + \gamma}$$

    Small magnitudes m are not blown up to the limit c, and none exceeds it.

    Args:
      gamma: what is added to the magnitude, at least 0; with 0 this is `normalize`.

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
