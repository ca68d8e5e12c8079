"""Magnitudes of groups, represented without overflow, and the interface of norms."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from optaxclip.groups import Groups, PerGroup, map_groups
from optaxclip.numbers import Leaf, Number, modulus


class Magnitude(NamedTuple):
    """The magnitude of each group, ``value / scale``.

    Attributes:
      value: a number for each group, measured after multiplying by the scale.
      scale: a power of two for each group, at which the value is right; 1 for all
        where each number is a group.
    """

    value: PerGroup
    scale: PerGroup

    @property
    def plain(self) -> PerGroup:
        """One number for each group; infinite where the quotient overflows."""
        return map_groups(jnp.divide, self.value, self.scale)


def unscaled(number: PerGroup) -> Magnitude:
    """Convert plain numbers to magnitudes."""
    return Magnitude(number, jax.tree.map(jnp.ones_like, number))


def in_units(number: Number, unit: Number) -> tuple[Number, Number]:
    """Return the value and scale of ``number * unit``.

    Args:
      number: magnitudes that are not far from 1.
      unit: powers of two whose reciprocals are finite and not 0.
    """
    stride = 2.0 ** (jnp.finfo(unit.dtype).maxexp * 5 // 16)
    usual = (unit < stride) & (unit > 1 / stride)
    scale = jnp.where(usual, jnp.ones_like(unit), 1 / unit)
    return number * (unit * scale), scale


@runtime_checkable
class Norm(Protocol):
    """Measures groups."""

    def measure(self, groups: Groups) -> Magnitude:
        """Measure every group; the derivative has to be finite at zero, too."""
        ...


@functools.partial(jax.jit, static_argnums=0, inline=True)
def measure(norm: Norm, groups: Groups) -> Magnitude:
    """Measure every group in at least float32."""
    if groups.pointwise and not groups.complex:
        # Any norm of one number is its modulus.
        return Magnitude(groups.max(modulus), jnp.ones((), groups.dtype))
    return norm.measure(groups)


@runtime_checkable
class Measure(Protocol):
    """Measures groups, possibly with memory."""

    def init(self, groups: Groups) -> Any:
        """Return the initial memory."""
        ...

    def __call__(self, groups: Groups, memory: Any) -> tuple[Magnitude, Any]:
        """Measure every group, and return the new memory."""
        ...


@dataclass(frozen=True)
class ByNorm:
    """Measure by a norm, without memory."""

    norm: Norm

    def init(self, groups: Groups) -> tuple[()]:
        """See `Measure`."""
        return ()

    def __call__(
        self, groups: Groups, memory: tuple[()]
    ) -> tuple[Magnitude, tuple[()]]:
        """See `Measure`."""
        return measure(self.norm, groups), memory


def nan_as_inf(x: Leaf) -> Number:
    """Return the modulus, and infinity for NaN, which a maximum can lose."""
    size = modulus(x)
    return jnp.where(jnp.isnan(size), jnp.inf, size)


def root(total: Number, order: float) -> Number:
    """Take a root whose derivative at 0 is 0, not infinite."""
    safe = jnp.where(total == 0, jnp.ones_like(total), total)
    found = jnp.sqrt(safe) if order == 2 else safe ** (1 / order)
    return jnp.where(total == 0, jnp.zeros_like(total), found)
