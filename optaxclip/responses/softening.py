"""Smooth responses: curves that saturate at the limit."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from optaxclip.numbers import Number
from optaxclip.responses.response import GroupFactors, Response
from optaxclip.responses.scaling import Scaling, loud, weights_of
from optaxclip.sentences import uncalled


@dataclass(frozen=True)
class Curve:
    r"""A curve $\varphi$ with slope 1 at 0 that rises to 1.

    Attributes:
      name: the name it prints as.
      height: returns $\varphi(r)$, for r > 0 whose square is finite.
    """

    name: str
    height: Callable[[Number], Number]

    def __repr__(self) -> str:
        return f"responses.{self.name}"


# Below the one ratio all curves have slope 1; above the other they no longer rise.
_NEAR, _FAR = 1e-18, 1e18


@dataclass(frozen=True)
class _Soften(Scaling):
    curve: Curve

    def __repr__(self) -> str:
        return f"responses.soften({self.curve})"

    def _part(self, size: Number, bound: Number) -> Number:
        far = size > _FAR * bound
        # The derivative of what is not taken must be finite, too.
        part = size / jnp.where(far | (bound == 0), jnp.ones_like(bound), bound)
        return jnp.where(far, _FAR, part)

    def reach(self, magnitude: Number, limit: Number) -> Number:
        part = self._part(magnitude, limit)
        left = (part < _NEAR) | (limit == jnp.inf)
        one = jnp.ones_like(magnitude)
        height = self.curve.height(jnp.where(left, one, part))
        bent = jnp.where(left, one, limit) * height
        return jnp.where(left, magnitude, loud(magnitude, bent))

    def weigh(self, value: Number, scale: Number, limit: Number) -> GroupFactors:
        part = self._part(value, limit * scale)
        left = (value == 0) | (part < _NEAR) | (limit == jnp.inf)
        large = ~(part <= 1) & ~left
        one = jnp.ones_like(value)
        part = jnp.where(left, one, part)
        height = self.curve.height(part)
        # For small parts the quotient undoes the scale, which its derivative needs.
        down = jnp.minimum(scale, one)
        bound = jnp.where(large, limit * jnp.maximum(scale, one), 1 / down)
        return weights_of(left, bound * height, jnp.where(large, value, part), down)


tanh = Curve("tanh", jnp.tanh)
arctan = Curve("arctan", lambda r: jnp.arctan(jnp.pi / 2 * r) / (jnp.pi / 2))
algebraic = Curve("algebraic", lambda r: r / (1 + r))
pseudo_huber = Curve("pseudo_huber", lambda r: r / jnp.sqrt(1 + jnp.square(r)))


def soften(curve: Curve = tanh) -> Response:
    r"""Return the response that saturates magnitudes smoothly at their limit.

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
        raise TypeError(
            f"curve must be a Curve such as responses.tanh, not {uncalled(curve)}."
        )
    return _Soften(curve)
