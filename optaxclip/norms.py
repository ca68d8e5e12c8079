"""How big is a group of numbers?

A norm is written once, for a pool of numbers in groups. It is accumulated in float32
or wider, and is right where a power overflows or underflows. Usual numbers are read
once; the loop of `PowerNorm` goes round again only where its first unit does not suit.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from optaxclip.arguments import answers, not_static
from optaxclip.magnitudes import Leaf, Magnitude, Norm, Number, PerGroup, Pool, modulus


def _scaled(x: Leaf, scale: Number) -> Leaf:
    return x * scale.astype(x.dtype)


def _loud(x: Leaf) -> Number:
    """Take NaN for infinity, since a maximum across devices can lose NaN."""
    size = modulus(x)
    return jnp.where(jnp.isnan(size), jnp.inf, size)


def _kept(x: Leaf) -> Number:
    """Give the absolute value of a scaled number, written as none.

    XLA takes the square of a number that it knows apart, and that of the scale alone
    overflows; it would drop an absolute value there, but not this.
    """
    return modulus(x) if jnp.iscomplexobj(x) else jnp.maximum(x, -x)


def _reciprocal(unit: PerGroup) -> PerGroup:
    """Invert powers of two, exactly."""
    return jax.tree.map(lambda u: 1 / u, unit)


def _unit_of(largest: Number) -> Number:
    """Choose a unit in which the largest number has a reciprocal."""
    stride = 2.0 ** (jnp.finfo(largest.dtype).maxexp // 2)
    one = jnp.ones_like(largest)
    small = jnp.where(largest < 1 / stride, 1 / stride, one)
    return jnp.where(largest > stride, stride, small)


def _root(total: Number, order: float) -> Number:
    """Take a root whose derivative at 0 is 0, not infinite."""
    safe = jnp.where(total == 0, jnp.ones_like(total), total)
    root = jnp.sqrt(safe) if order == 2 else safe ** (1 / order)
    return jnp.where(total == 0, jnp.zeros_like(total), root)


@dataclass(frozen=True)
class PowerNorm:
    r"""The norm $(\sum_i |x_i|^p)^{1/p}$ with p = 1 or 2, in one pass.

    Attributes:
      order: the exponent p.
    """

    order: int

    def _power(self, x: Leaf, scale: Number) -> Number:
        x = _scaled(x, scale)
        if self.order == 1:
            return modulus(x)
        if jnp.iscomplexobj(x):
            return jnp.square(_kept(x.real)) + jnp.square(_kept(x.imag))
        return jnp.square(_kept(x))

    def _visible_power(self, x: Leaf, scale: Number) -> Number:
        """Keep what is not zero from underflowing to zero: a sum of 0 means zeros."""
        power, x = self._power(x, scale), _scaled(x, scale)
        # If it were not scaled, XLA would move this out of the loop, to memory.
        return power + jax.lax.min(_kept(x), jnp.finfo(power.dtype).tiny)

    def total(self, pool: Pool) -> Magnitude:
        """Sum in a unit that suits usual gradients; rescale where it does not.

        Zeros, which are usual among many groups, must not send the loop round again.
        """
        power = self._power if pool.single else self._visible_power
        finfo = jnp.finfo(pool.dtype)
        # float32: units of 2^-104, 2^-40 (the first tried), 2^24 and 2^88.
        stride = 2.0 ** (finfo.maxexp // 2)
        smallest = 2.0 ** -(finfo.maxexp * 13 // 16)
        largest = 2.0 ** (finfo.maxexp * 11 // 16)
        # Below this sum per number, terms lost to underflow reach its last bit.
        faint = float(finfo.tiny) / float(finfo.eps)

        def growth(total: Number, unit: Number, size: Number) -> Number:
            too_big = (total > finfo.max) & (unit < largest)
            too_small = (total < size * faint) & (unit > smallest)
            zero = (total == 0) & (not pool.single)
            less = jnp.where(too_small & ~zero, 1 / stride, jnp.ones_like(unit))
            return jnp.where(too_big, stride, less)

        def factors(carry: tuple[PerGroup, PerGroup]) -> PerGroup:
            return jax.tree.map(growth, *carry, sizes)

        def unsettled(carry: tuple[PerGroup, PerGroup]) -> Bool[Array, ""]:
            changes = [jnp.any(f != 1) for f in jax.tree.leaves(factors(carry))]
            return jnp.any(jnp.stack(changes)) if changes else jnp.array(False)

        def rescale(carry: tuple[PerGroup, PerGroup]) -> tuple[PerGroup, PerGroup]:
            unit = jax.tree.map(jnp.multiply, carry[1], factors(carry))
            return pool.sum(power, _reciprocal(unit)), unit

        # Starting from "overflow in the smallest unit" makes the first sum the
        # loop's first round, so that the sum is traced and compiled once.
        sizes = pool.sizes()
        start = pool.full(jnp.inf), pool.full(smallest)
        return Magnitude(*jax.lax.while_loop(unsettled, rescale, start))

    def measure(self, pool: Pool) -> Magnitude:
        """See `Norm.measure`."""
        total, unit = self.total(pool)
        return Magnitude(jax.tree.map(lambda t: _root(t, self.order), total), unit)

    def value(self, pool: Pool, unit: PerGroup) -> PerGroup:
        """See `Norm.value`."""
        total = pool.sum(self._power, _reciprocal(unit))
        return jax.tree.map(lambda t: _root(t, self.order), total)


@dataclass(frozen=True)
class MaxNorm:
    r"""The norm $\max_i |x_i|$."""

    def measure(self, pool: Pool) -> Magnitude:
        """See `Norm.measure`."""
        largest = pool.max(_loud)
        unit = jax.tree.map(_unit_of, largest)
        plain = jax.tree.map(_scaled, largest, _reciprocal(unit))
        # A modulus overflows where neither of its parts does.
        return Magnitude(self.value(pool, unit) if pool.complex else plain, unit)

    def value(self, pool: Pool, unit: PerGroup) -> PerGroup:
        """See `Norm.value`."""
        return pool.max(lambda x, s: _loud(_scaled(x, s)), _reciprocal(unit))


@dataclass(frozen=True)
class GeneralNorm:
    r"""The norm $(\sum_i |x_i|^p)^{1/p}$ for any p, in two passes.

    The second divides by the largest number, which the first finds: no fixed unit
    reaches far once p is large.

    Attributes:
      order: the exponent p.
    """

    order: float

    def _power(self, x: Leaf, scale: Number, largest: Number) -> Number:
        ratio = modulus(_scaled(x, scale)) / largest
        safe = jnp.where(ratio == 0, jnp.ones_like(ratio), ratio)
        return jnp.where(ratio == 0, jnp.zeros_like(ratio), safe**self.order)

    def measure(self, pool: Pool) -> Magnitude:
        """See `Norm.measure`."""
        unit = jax.tree.map(_unit_of, pool.max(modulus))
        return Magnitude(self.value(pool, unit), unit)

    def value(self, pool: Pool, unit: PerGroup) -> PerGroup:
        """See `Norm.value`; the largest number cancels out of the derivative."""
        scale = _reciprocal(unit)
        largest = jax.tree.map(
            lambda m: jax.lax.stop_gradient(jnp.where(m == 0, jnp.ones_like(m), m)),
            pool.max(lambda x, s: modulus(_scaled(x, s)), scale),
        )
        total = pool.sum(self._power, scale, largest)
        return jax.tree.map(lambda t, m: _root(t, self.order) * m, total, largest)


@dataclass(frozen=True)
class Averaged:
    r"""The root of a mean, $(\frac1n \sum_i |x_i|^p)^{1/p}$: one rounding, not two."""

    norm: PowerNorm

    def _root_of_mean(self, pool: Pool, total: PerGroup) -> PerGroup:
        def root_of_mean(total: Number, number: Number) -> Number:
            return _root(total / jnp.maximum(number, 1), self.norm.order)

        return jax.tree.map(root_of_mean, total, pool.sizes())

    def measure(self, pool: Pool) -> Magnitude:
        """See `Norm.measure`."""
        total, unit = self.norm.total(pool)
        return Magnitude(self._root_of_mean(pool, total), unit)

    def value(self, pool: Pool, unit: PerGroup) -> PerGroup:
        """See `Norm.value`."""
        return self._root_of_mean(pool, pool.sum(self.norm._power, _reciprocal(unit)))


l1: Norm = PowerNorm(1)
"""The sum of absolute values."""

l2: Norm = PowerNorm(2)
"""The Euclidean norm."""

linf: Norm = MaxNorm()
"""The largest absolute value."""

mean: Norm = Averaged(PowerNorm(1))
"""The mean absolute value."""

rms: Norm = Averaged(PowerNorm(2))
"""The root mean square."""


def p_norm(order: float) -> Norm:
    r"""Give the norm $(\sum_i |x_i|^p)^{1/p}$ of any order.

    Args:
      order: p >= 1; infinity gives the largest absolute value.

    Returns:
      The norm.

    Raises:
      TypeError: if `order` is not a number, or is traced.
      ValueError: if `order` is below 1 or NaN.

    Examples:
      >>> optaxclip.norms.p_norm(2) == optaxclip.norms.l2
      True
    """
    if not isinstance(order, int | float):
        raise not_static("ord", "number", order)
    if order == math.inf:
        return linf
    if not order >= 1:
        raise ValueError(f"ord must be at least 1 or infinity, not {order}.")
    return PowerNorm(int(order)) if order in (1, 2) else GeneralNorm(float(order))


def as_norm(ord: Any) -> Norm:
    """Take a norm as it is, and a number as the order of one."""
    return ord if answers(ord, Norm) else p_norm(ord)
