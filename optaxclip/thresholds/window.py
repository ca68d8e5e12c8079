"""Limits from a ring buffer of the last magnitudes."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int32

from optaxclip.arguments import check_between, check_limit, check_window
from optaxclip.numbers import Number
from optaxclip.thresholds.memory import Remembering, full, like


class Window(NamedTuple):
    """The last magnitudes of each group, and the position of the next one.

    Empty slots hold infinity, since only finite magnitudes are kept.
    """

    values: Float[Array, "... window"]
    position: Int32[Array, "..."]

    def pushed(self, size: Number) -> "Window":
        """Replace the oldest magnitude."""
        here = _places(self.values) == self.position[..., None]
        values = jnp.where(here, size[..., None], self.values)
        return Window(values, (self.position + 1) % self.values.shape[-1])

    @property
    def filled(self) -> Int32[Array, "..."]:
        """The number of magnitudes in the window."""
        return jnp.sum(self.values < jnp.inf, axis=-1, dtype=jnp.int32)


def _empty_window(group: jax.ShapeDtypeStruct, window: int) -> Window:
    free = jnp.broadcast_to(full(group, jnp.inf)[..., None], (*group.shape, window))
    return Window(free, full(group, 0, jnp.int32))


def _places(values: Array) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)


def _at(ordered: Array, rank: Array) -> Array:
    """Pick one number per group, by a sum, which can be sharded, unlike a gather."""
    return jnp.sum(jnp.where(_places(ordered) == rank[..., None], ordered, 0), axis=-1)


@dataclass(frozen=True)
class RollingPercentile(Remembering):
    r"""The p-th percentile of the last `window` magnitudes, including the current one.

    $$c_t = \mathrm{percentile}_p(x_{t-n+1}, \dots, x_t)$$

    It is interpolated linearly, as NumPy does by default. Until the window is full, it
    is the percentile of all magnitudes so far; the first magnitude is its own limit.
    Memory and time grow with the window, not with the number of steps.

    Attributes:
      percentile: p, from 0 to 100.
      window: the number of magnitudes kept per group, n >= 1.
    """

    percentile: ArrayLike = 10.0
    window: int = 1000

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        check_between(self.percentile, 0, 100, "percentile")
        check_window(self.window)

    def first(self, group: jax.ShapeDtypeStruct) -> Window:
        """See `Remembering.first`."""
        return _empty_window(group, self.window)

    def step(self, size: Number, memory: Window) -> tuple[Number, Window]:
        """See `Remembering.step`."""
        new = memory.pushed(size)
        ordered = jnp.sort(new.values, axis=-1)
        last = jnp.maximum(new.filled - 1, 0)
        rank = last.astype(size.dtype) * like(self.percentile, size) / 100
        below = jnp.clip(jnp.floor(rank).astype(jnp.int32), 0, last)
        low, high = _at(ordered, below), _at(ordered, jnp.minimum(below + 1, last))
        between = low + (high - low) * (rank - below.astype(size.dtype))
        return jnp.where(new.filled > 0, between, jnp.inf), new


@dataclass(frozen=True)
class HistoricalSigma(Remembering):
    r"""The mean plus k standard deviations of the last `window` magnitudes.

    $$c_t = \mu + k \sigma \text{ over } x_{t-n}, \dots, x_{t-1}$$

    The magnitudes are those before clipping, without the current one. A spike of any
    size raises the limit only until it leaves the window. There is no limit until the
    window is full.

    Attributes:
      sigmas: k >= 0.
      window: the number of magnitudes kept per group, n >= 1.
    """

    sigmas: ArrayLike = 3.0
    window: int = 128

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        check_limit(self.sigmas, "sigmas")
        check_window(self.window)

    def first(self, group: jax.ShapeDtypeStruct) -> Window:
        """See `Remembering.first`."""
        return _empty_window(group, self.window)

    def step(self, size: Number, memory: Window) -> tuple[Number, Window]:
        """See `Remembering.step`."""
        full = memory.filled == self.window
        values = jnp.where(full[..., None], memory.values, 0)
        # Divide by the largest, so that squares neither overflow nor all underflow.
        largest = jnp.max(values, axis=-1)
        unit = jnp.where(largest > 0, largest, 1)
        scaled = values / unit[..., None]
        sigmas = like(self.sigmas, size) * jnp.std(scaled, axis=-1)
        limit = unit * (jnp.mean(scaled, axis=-1) + sigmas)
        return jnp.where(full, limit, jnp.inf), memory.pushed(size)
