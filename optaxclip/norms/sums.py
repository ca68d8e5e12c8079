"""Norms from sums of moduli or squares, without overflow or underflow.

Each group is summed at three fixed scales, and the accurate sum is picked at the end.
Sums at the same scale can always be added, between leaves and across devices. So no
loop and no collective depends on computed values.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from optaxclip.groups import Groups, PerGroup, map_groups
from optaxclip.norms.norm import Magnitude, root
from optaxclip.numbers import Leaf, Number, modulus
from optaxclip.platforms import by_platform


@dataclass(frozen=True)
class _Scales:
    """The powers of two by which numbers are multiplied before they are summed.

    Attributes:
      up: for numbers whose squares underflow; 2^72 in float32.
      down: for numbers whose squares overflow; 2^-80 in float32.
      least: the smallest sum at scale 1 that is trusted, 2^-79 in float32. Terms that
        underflow to 0 do not affect its last bit in groups of up to 2^24 numbers, and
        smaller sums cannot overflow when scaled up.
      most: sums at scale 1 from here on are not trusted. Squares overflow there; moduli
        do not yet, but a limit divided by more than 2^64 could underflow.
    """

    up: float
    down: float
    least: float
    most: float

    @classmethod
    def of(cls, dtype: np.dtype, order: int) -> "_Scales":
        finfo = jnp.finfo(dtype)
        return cls(
            up=2.0 ** (finfo.maxexp * 9 // 16),
            down=2.0 ** -(finfo.maxexp * 5 // 8),
            least=float(finfo.tiny) / float(finfo.eps) * 2.0**24,
            most=math.inf if order == 2 else 2.0 ** (finfo.maxexp // 2),
        )

    def suiting(self, plain: Number) -> Number:
        """Choose the scale from the sum at scale 1."""
        fits = jnp.where(plain < self.least, self.up, jnp.ones_like(plain))
        return jnp.where(plain >= self.most, self.down, fits)

    def pick(self, plain: Number, up: Number, down: Number) -> tuple[Number, Number]:
        """Return the accurate sum, and its scale."""
        total = jnp.where(plain < self.least, up, plain)
        return jnp.where(plain >= self.most, down, total), self.suiting(plain)


@dataclass(frozen=True)
class PowerNorm:
    r"""The norm $(\sum_i |x_i|^p)^{1/p}$ with p = 1 or 2.

    Attributes:
      order: the exponent p.
      averaged: whether to take the mean instead of the sum.
    """

    order: int
    averaged: bool = False

    def __repr__(self) -> str:
        names = {1: ("l1", "mean"), 2: ("l2", "rms")}
        return f"norms.{names[self.order][self.averaged]}"

    def _power(self, x: Leaf) -> Number:
        if self.order == 1:
            return modulus(x)
        if jnp.iscomplexobj(x):
            return jnp.square(x.real) + jnp.square(x.imag)
        return jnp.square(x)

    def _scaled_power(self, x: Leaf, scale: Number) -> Number:
        # XLA squares a scale that it knows separately, which overflows, and removes a
        # modulus; it keeps this maximum. On CPUs it fuses the maximum with the sum, but
        # not a clamp.
        def scaled(part: Number) -> Number:
            return jnp.maximum(part * scale, -(part * scale))

        return self._power_of_parts(scaled, x)

    def _held_power(self, x: Leaf, scale: Number) -> Number:
        # Ordinary numbers overflow when scaled up; that sum is not picked. But its
        # derivative, that of a square times 0, is only 0 if what is squared is finite.
        def held(part: Number) -> Number:
            return jax.lax.clamp(-largest, part * scale, largest)

        finfo = jnp.finfo(x.dtype)
        largest = finfo.dtype.type(2.0 ** (finfo.maxexp - 2))
        return self._power_of_parts(held, x)

    def _power_of_parts(self, change: Callable[[Number], Number], x: Leaf) -> Number:
        if jnp.iscomplexobj(x):
            return self._power(jax.lax.complex(change(x.real), change(x.imag)))
        return self._power(change(x))

    def _mean(self, groups: Groups, total: PerGroup) -> PerGroup:
        """Divide by the sizes before the root, which rounds once more."""
        if not self.averaged:
            return total
        return map_groups(lambda t, n: t / jnp.maximum(n, 1), total, groups.sizes())

    def measure(self, groups: Groups) -> Magnitude:
        """See `Norm.measure`."""
        if not groups.leaves or not groups.local:
            return self._in_one_pass(groups)
        measured = by_platform(self._in_one_pass, self._with_a_look, self._again)
        size = measured(groups)
        # A tangent of 0 times an infinite limit would be NaN.
        return size._replace(scale=jax.lax.stop_gradient(size.scale))

    def _roots(self, groups: Groups, total: PerGroup) -> PerGroup:
        mean = self._mean(groups, total)
        return map_groups(functools.partial(root, order=self.order), mean)

    def _in_one_pass(self, groups: Groups) -> Magnitude:
        """Sum at all scales, which reads memory only once, and pick one at the end."""
        scales = _Scales.of(groups.dtype, self.order)
        large, small = (jnp.asarray(x, groups.dtype) for x in (scales.up, scales.down))
        up = functools.partial(self._held_power, scale=large)
        down = functools.partial(self._scaled_power, scale=small)  # Infinity stays.
        sums = groups.sums(self._power, up, down)
        total, scale = map_groups(scales.pick, *sums)
        return Magnitude(self._roots(groups, total), scale)

    def _with_a_look(self, groups: Groups) -> Magnitude:
        """Sum again at another scale, but only if some plain sum is inaccurate."""
        scales = _Scales.of(groups.dtype, self.order)
        plain = groups.sum(self._power)
        scale = map_groups(scales.suiting, plain)

        def rooted(total: PerGroup) -> PerGroup:
            mean = self._mean(groups, total)
            # The derivative at 0 is that of `_again`.
            return mean if self.order == 1 else map_groups(jax.lax.sqrt, mean)

        def again(groups: Groups) -> PerGroup:
            return rooted(groups.sum(self._scaled_power, scale))

        rows = [x.ravel() for x in jax.tree.leaves(scale)]
        trusted = jnp.all(jnp.concatenate(rows) == 1)
        value = jax.lax.cond(trusted, lambda _: rooted(plain), again, groups)
        return Magnitude(value, scale)

    def _again(self, groups: Groups, known: Magnitude) -> Magnitude:
        """Sum at the scale that was found to be suitable, for the derivative."""
        total = groups.sum(self._scaled_power, known.scale)
        return Magnitude(self._roots(groups, total), known.scale)
