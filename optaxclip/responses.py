r"""What happens to a group that is too big?

A response weighs each group by its magnitude and limit, once, and then applies the
weights to the leaves. All but `clamp` multiply a group by one number, so that its
direction stays and the product fuses into whatever the optimizer does next.

What every strategy does at the edges, written once:

| input | outcome |
|---|---|
| group within its limit | the same bits (soft curves: slope 1 at 0) |
| zero updates | zeros; the derivative is finite |
| limit 0 | zeros, never NaN |
| limit infinity | exact no-op, even with inf or NaN inside |
| negative or NaN limit | ValueError; traced: as 0, as NaN |
| squares that overflow or underflow | clipped as float64 would |
| NaN or inf in a group | that group is NaN, no other; `clamp`: inf to the limit |
| bfloat16, float16, float64, mixed | at least float32 inside; leaves keep their type |
| complex | by modulus; the phase stays |
| integers, bools, float0, keys | passed through and not counted |
| None, MaskedNode, empty leaves | passed through and not counted |
| subnormal numbers | 0 wherever XLA flushes them, as on CPU when multiplying |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from optaxclip.magnitudes import Leaf, Number, modulus, times

Weights = tuple[Number, ...]


@runtime_checkable
class Response(Protocol):
    """What a response has to answer, for one array of groups."""

    def weigh(self, value: Number, unit: Number, limit: Number) -> Weights:
        """Decide on groups of the magnitude ``value * unit``."""
        ...

    def apply(self, leaf: Leaf, *weights: Number) -> Leaf:
        """Do to a leaf, of at least float32, what was decided for its groups."""
        ...

    def outcome(self, magnitude: Number, *weights: Number) -> Number:
        """Tell what a magnitude becomes."""
        ...


def _ratio(value: Number, unit: Number, limit: Number) -> tuple[Number, Number]:
    """Give limit / (value * unit) as two factors, whose product may be very small.

    A magnitude that is not finite makes it NaN: what is broken has to be loud.
    """
    one = jnp.ones_like(unit)
    second = limit / (value * jnp.minimum(unit, one))
    return 1 / jnp.maximum(unit, one), jnp.where(value < jnp.inf, second, jnp.nan)


def _within(value: Number, unit: Number, limit: Number) -> Bool[Array, "..."]:
    return (value <= limit / unit) | (limit == jnp.inf)


class _Scaling:
    """Multiply each group by the product of its weights."""

    def apply(self, leaf: Leaf, *weights: Number) -> Leaf:
        for weight in weights:
            leaf = times(leaf, weight.astype(jnp.finfo(leaf.dtype).dtype))
        return leaf

    def outcome(self, magnitude: Number, *weights: Number) -> Number:
        for weight in weights:
            magnitude = magnitude * weight
        return magnitude


@dataclass(frozen=True)
class _Shrink(_Scaling):
    def weigh(self, value: Number, unit: Number, limit: Number) -> Weights:
        within = _within(value, unit, limit)
        one = jnp.ones_like(value)
        ratio = _ratio(jnp.where(within, one, value), unit, limit)
        return tuple(jnp.where(within, one, factor) for factor in ratio)


@dataclass(frozen=True)
class _Normalize(_Scaling):
    def weigh(self, value: Number, unit: Number, limit: Number) -> Weights:
        left = (value == 0) | (limit == jnp.inf)
        one = jnp.ones_like(value)
        ratio = _ratio(jnp.where(left, one, value), unit, limit)
        return tuple(jnp.where(left, one, factor) for factor in ratio)


@dataclass(frozen=True)
class _Drop(_Scaling):
    def weigh(self, value: Number, unit: Number, limit: Number) -> Weights:
        one = jnp.ones_like(value)
        dropped = jnp.where(value < jnp.inf, 0 * one, jnp.nan)
        dropped = jnp.where(jnp.isnan(limit), jnp.nan, dropped)
        return (jnp.where(_within(value, unit, limit), one, dropped),)


@dataclass(frozen=True)
class Curve:
    r"""A curve $\varphi$ with slope 1 at 0 that rises to 1.

    Attributes:
      name: what it prints as.
      slope: gives $\varphi(r) / r$ for 0 < r <= 1.
      height: gives $\varphi(r)$ for r >= 1, from 1 / r.
    """

    name: str
    slope: Callable[[Number], Number]
    height: Callable[[Number], Number]

    def __repr__(self) -> str:
        return f"responses.{self.name}"


@dataclass(frozen=True)
class _Soften(_Scaling):
    curve: Curve

    def weigh(self, value: Number, unit: Number, limit: Number) -> Weights:
        one = jnp.ones_like(value)
        bound = limit / unit
        still = (value == 0) | (limit == jnp.inf)
        small = (value <= bound) & ~still
        large = ~small & ~still
        part = jnp.where(small, value, one) / jnp.where(small, bound, one)
        slope = self.curve.slope(part)
        big = jnp.where(large, value, one)
        first, second = _ratio(big, unit, limit)
        second = second * self.curve.height(jnp.where(large, bound / big, one))
        return (
            jnp.where(large, first, one),
            jnp.where(large, second, jnp.where(small, slope, one)),
        )


@dataclass(frozen=True)
class _Clamp:
    def weigh(self, value: Number, unit: Number, limit: Number) -> Weights:
        return (limit,)

    def apply(self, leaf: Leaf, *weights: Number) -> Leaf:
        (limit,) = weights
        finfo = jnp.finfo(leaf.dtype)
        limit = limit.astype(finfo.dtype)
        unlimited = limit >= finfo.max
        if not jnp.iscomplexobj(leaf):
            return jnp.where(unlimited, leaf, jnp.clip(leaf, -limit, limit))
        size = modulus(leaf)
        inside = (size <= limit) | unlimited
        direction = _direction(leaf)
        size = jnp.where(inside, jnp.ones_like(size), modulus(direction))
        at_limit = times(times(direction, 1 / size), limit)
        return jnp.where(inside, leaf, at_limit)

    def outcome(self, magnitude: Number, *weights: Number) -> Number:
        return jnp.minimum(magnitude, weights[0])


def _direction(leaf: Leaf) -> Leaf:
    """Replace an infinite complex number by a finite one that points its way."""
    real, imag = leaf.real, leaf.imag
    infinite = jnp.isinf(real) | jnp.isinf(imag)
    parts = [
        jnp.where(infinite, jnp.where(jnp.isinf(part), jnp.sign(part), 0.0), part)
        for part in (real, imag)
    ]
    return lax.complex(*parts)


shrink: Response = _Shrink()
"""Multiply a group by limit / magnitude if its magnitude is above the limit."""

clamp: Response = _Clamp()
"""Bring every number of a group, by modulus, down to the group's limit."""

normalize: Response = _Normalize()
"""Multiply a group by limit / magnitude, up as well as down; zeros stay."""

drop: Response = _Drop()
"""Set a group to zero if its magnitude is above the limit."""

# tanh(32) is 1 in every type; a larger argument would have no finite derivative.
tanh = Curve(
    "tanh", lambda r: jnp.tanh(r) / r, lambda q: jnp.tanh(1 / jnp.maximum(q, 1 / 32))
)
arctan = Curve(
    "arctan",
    lambda r: jnp.arctan(jnp.pi / 2 * r) / (jnp.pi / 2 * r),
    lambda q: 1 - jnp.arctan(q / (jnp.pi / 2)) / (jnp.pi / 2),
)
algebraic = Curve("algebraic", lambda r: 1 / (1 + r), lambda q: 1 / (1 + q))
pseudo_huber = Curve(
    "pseudo_huber",
    lambda r: 1 / jnp.sqrt(1 + jnp.square(r)),
    lambda q: 1 / jnp.sqrt(1 + jnp.square(q)),
)


def soften(curve: Curve = tanh) -> Response:
    r"""Give the response that bends magnitudes below their limit, without a corner.

    $$u \leftarrow u \cdot \frac{c}{m} \varphi\left(\frac{m}{c}\right)$$

    Args:
      curve: $\varphi$, one of `tanh`; `arctan`, $\frac2\pi
        \arctan\frac{\pi r}2$; `algebraic`, $\frac r{1+r}$; `pseudo_huber`,
        $\frac r{\sqrt{1+r^2}}$; or a `Curve`.

    Returns:
      The response.

    Raises:
      TypeError: if `curve` is not a `Curve`.
    """
    if not isinstance(curve, Curve):
        raise TypeError(f"curve must be a Curve such as responses.tanh, not {curve!r}.")
    return _Soften(curve)
