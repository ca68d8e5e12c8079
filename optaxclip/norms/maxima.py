"""Norms that use the largest number, on its own or as a divisor."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from optaxclip.groups import Groups, PerGroup
from optaxclip.norms.norm import Magnitude, nan_as_inf, root
from optaxclip.numbers import Leaf, Number, modulus, multiply


def _scale_of(largest: Number) -> Number:
    """Choose a power of two after which the largest number has a finite reciprocal."""
    stride = 2.0 ** (jnp.finfo(largest.dtype).maxexp // 2)
    one = jnp.ones_like(largest)
    small = jnp.where(largest < 1 / stride, stride, one)
    return jnp.where(largest > stride, 1 / stride, small)


def _scaled_size(x: Leaf, scale: Number) -> Number:
    return nan_as_inf(multiply(x, scale))


@dataclass(frozen=True)
class MaxNorm:
    r"""The norm $\max_i |x_i|$."""

    def __repr__(self) -> str:
        return "norms.linf"

    def measure(self, groups: Groups) -> Magnitude:
        """See `Norm.measure`."""
        largest = groups.max(nan_as_inf)
        scale = jax.tree.map(_scale_of, largest)
        if groups.complex:  # A modulus can overflow even if neither part does.
            return Magnitude(groups.max(_scaled_size, scale), scale)
        return Magnitude(jax.tree.map(jnp.multiply, largest, scale), scale)


@dataclass(frozen=True)
class GeneralNorm:
    r"""The norm $(\sum_i |x_i|^p)^{1/p}$ for any p, in two passes.

    The first pass finds the largest number, and the second divides by it, so a mesh
    talks twice. Sums at fixed scales, as for p = 1 and 2, would take one pass, but
    about 1.4 p of them in float32: between underflow and the overflow of 2^24 powers, a
    scale spans only 183 / p of the 254 powers of two.

    Attributes:
      order: the exponent p.
    """

    order: float

    def __repr__(self) -> str:
        return f"norms.p_norm({self.order})"

    def _power(self, x: Leaf, scale: Number, largest: Number) -> Number:
        ratio = modulus(multiply(x, scale)) / largest
        safe = jnp.where(ratio == 0, jnp.ones_like(ratio), ratio)
        return jnp.where(ratio == 0, jnp.zeros_like(ratio), safe**self.order)

    def measure(self, groups: Groups) -> Magnitude:
        """See `Norm.measure`; the largest number cancels out of the derivative."""
        size, scale = MaxNorm().measure(groups)
        largest = jax.tree.map(_divisor, size)
        total = groups.sum(self._power, scale, largest)
        return Magnitude(self._root(total, largest), scale)

    def _root(self, total: PerGroup, largest: PerGroup) -> PerGroup:
        return jax.tree.map(lambda t, m: root(t, self.order) * m, total, largest)


def _divisor(largest: Number) -> Number:
    safe = jnp.where(largest == 0, jnp.ones_like(largest), largest)
    return jax.lax.stop_gradient(safe)
