"""Responses that change the modulus of every number and keep its sign or phase."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax

from optaxclip.numbers import Leaf, Number, modulus, multiply
from optaxclip.responses.response import GroupFactors, Response


@dataclass(frozen=True)
class Pointwise:
    """Map the modulus of every number, keeping its sign or phase.

    Attributes:
      reach: maps a modulus and a limit to the new modulus.
      name: the name it prints as.
    """

    reach: Callable[[Number, Number], Number]
    name: str

    def __repr__(self) -> str:
        return self.name

    def weigh(self, value: Number, scale: Number, limit: Number) -> GroupFactors:
        """See `Response.weigh`."""
        return (limit,)

    def apply(self, leaf: Leaf, *weights: Number) -> Leaf:
        """See `Response.apply`."""
        limit = _of_width(leaf, *weights)
        if not jnp.iscomplexobj(leaf):
            # Not |x|, which has no derivative at 0.
            sign = jnp.where(jnp.signbit(leaf), -1, 1).astype(leaf.dtype)
            return sign * self.reach(sign * leaf, limit)
        some = jnp.where(leaf == 0, jnp.ones_like(leaf), leaf)
        # The modulus of half a number is finite even where that of the number is not.
        overflows = jnp.isinf(modulus(some)) & ~jnp.isinf(some)
        unit = jnp.where(overflows, 2, 1).astype(limit.dtype)
        size = modulus(multiply(some, 1 / unit))
        reached = self.reach(size, limit / unit)
        left = (leaf == 0) | (reached == size) | (limit == jnp.inf)
        direction = _direction(jnp.where(left, jnp.ones_like(leaf), leaf))
        return jnp.where(left, leaf, multiply(direction, reached * unit))

    def pointwise(self) -> Response:
        """See `Response.pointwise`."""
        return self


def _of_width(leaf: Leaf, limit: Number) -> Number:
    """Cast a limit to the width of a leaf; from its largest number on it is none."""
    finfo = jnp.finfo(leaf.dtype)
    limit = limit.astype(finfo.dtype)
    return jnp.where(limit >= finfo.max, jnp.inf, limit)


def _direction(leaf: Leaf) -> Leaf:
    """Divide complex numbers by their moduli, which may be infinite but not zero."""
    real, imag = leaf.real, leaf.imag
    infinite = jnp.isinf(real) | jnp.isinf(imag)
    real, imag = (
        jnp.where(infinite, jnp.where(jnp.isinf(part), jnp.sign(part), 0.0), part)
        for part in (real, imag)
    )
    half = jnp.where(jnp.maximum(jnp.abs(real), jnp.abs(imag)) > 1, 0.5, 1.0)
    real, imag = real * half.astype(real.dtype), imag * half.astype(imag.dtype)
    size = modulus(lax.complex(real, imag))
    return lax.complex(real / size, imag / size)


class _Clamp(Pointwise):
    def apply(self, leaf: Leaf, *weights: Number) -> Leaf:
        if jnp.iscomplexobj(leaf):
            return super().apply(leaf, *weights)
        limit = _of_width(leaf, *weights)
        return jnp.clip(leaf, -limit, limit)


clamp: Pointwise = _Clamp(jnp.minimum, "responses.clamp")
"""Clip the modulus of every number of a group to the group's limit."""
