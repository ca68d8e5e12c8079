"""A band around the average of a group's past magnitudes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optaxclip.arguments import check_decay, check_nonnegative, check_order
from optaxclip.numbers import Number
from optaxclip.thresholds.ema import EmaState, average, empty_average
from optaxclip.thresholds.memory import Remembering, choose, like


@dataclass(frozen=True)
class Band(Remembering):
    r"""AGGC's band: the group's magnitude clipped to an interval around its average.

    $$
    L_t = \max(n_{\min}, \alpha_{\mathrm{low}} S_t), \qquad
    U_t = \max(L_t, \alpha_{\mathrm{high}} S_t), \qquad
    c_t = \min(\max(x_t, L_t), U_t)
    $$

    S is the bias-corrected average of the previous $c_t$, with decay β. Use it with the
    response `normalize`, which scales a group below the band up, scales one above it
    down, and leaves one inside unchanged; `shrink` would only use the upper edge. Zeros
    are ignored, as in `Ema`. A group has no limit before its first magnitude.

    Attributes:
      low: where the band begins, as a multiple of the average; 0 for no lower edge.
      high: where it ends, as a multiple of the average, at least `low`; `low` where a
        traced number is below it.
      floor: the floor under both edges, $n_{\min}$ >= 0.
      decay: β, at least 0 and below 1.
    """

    low: ArrayLike = 0.5
    high: ArrayLike = 2.0
    floor: ArrayLike = 0.0
    decay: ArrayLike = 0.98

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        check_nonnegative(self.low, "low")
        check_nonnegative(self.high, "high")
        check_order(self.low, self.high)
        check_nonnegative(self.floor, "floor")
        check_decay(self.decay)

    def first(self, group: jax.ShapeDtypeStruct) -> EmaState:
        """See `Remembering.first`."""
        return empty_average(group)

    def step(self, size: Number, memory: EmaState) -> tuple[Number, EmaState]:
        """See `Remembering.step`."""
        floor = like(self.floor, size)
        lower = jnp.maximum(floor, like(self.low, size) * memory.mean)
        upper = jnp.maximum(lower, like(self.high, size) * memory.mean)
        known = memory.weight > 0
        nearest = jnp.where(known, jnp.clip(size, lower, upper), size)
        limit = jnp.where(known, nearest, jnp.inf)
        new = average(memory, nearest, self.decay)
        return limit, choose(size > 0, new, memory)
