"""Limits from a ring buffer of the last magnitudes."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int32

from optaxclip.arguments import (
    check_between,
    check_nonnegative,
    check_percentile,
    check_window,
)
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
      percentile: p, 0 or from 1 to 100: no quantile.
      window: how many magnitudes of each group are kept, n >= 1.
    """

    percentile: ArrayLike = 10.0
    window: int = 1000

    def __post_init__(self) -> None:
        """Check what is known now."""
        check_percentile(self.percentile)
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

    The magnitudes are those before clipping, and the present one is not among them. A
    spike of any size raises the limit until it has left the window, and no longer.
    There is no limit until the window is full, or holds `min_steps` magnitudes.

    Attributes:
      sigmas: k >= 0.
      window: how many magnitudes of each group are kept, n >= 1.
      min_steps: how many of them there have to be before the first limit, from 1 to
        n; n if not given. Levanter's ``clip_update_by_historical_norm`` takes n / 2.
    """

    sigmas: ArrayLike = 3.0
    window: int = 128
    min_steps: ArrayLike | None = None

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        check_nonnegative(self.sigmas, "sigmas")
        check_window(self.window)
        if self.min_steps is not None:
            check_between(self.min_steps, 1, self.window, "min_steps")

    def first(self, group: jax.ShapeDtypeStruct) -> Window:
        """See `Remembering.first`."""
        return _empty_window(group, self.window)

    def step(self, size: Number, memory: Window) -> tuple[Number, Window]:
        """See `Remembering.step`."""
        least = self.window if self.min_steps is None else self.min_steps
        enough = memory.filled >= jnp.asarray(least).astype(jnp.int32)
        known = (memory.values < jnp.inf) & enough[..., None]
        values = jnp.where(known, memory.values, 0)
        # In units of the largest, whose square can neither overflow nor vanish.
        largest = jnp.max(values, axis=-1)
        unit = jnp.where(largest > 0, largest, 1)
        scaled = values / unit[..., None]
        known = known | ~enough[..., None]  # no mean is that of nothing
        sigmas = like(self.sigmas, size) * jnp.std(scaled, axis=-1, where=known)
        limit = unit * (jnp.mean(scaled, axis=-1, where=known) + sigmas)
        return jnp.where(enough, limit, jnp.inf), memory.pushed(size)
