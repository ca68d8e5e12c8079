"""Smooth saturation: curves with slope 1 at 0 that rise to 1."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from optaxclip.magnitudes import Number


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
