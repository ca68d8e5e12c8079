"""A limit that tracks a quantile of the magnitudes."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from optaxclip.arguments import check_between, check_nonnegative
from optaxclip.groups import PerGroup
from optaxclip.numbers import Number
from optaxclip.thresholds.constant import take_thresholds
from optaxclip.thresholds.memory import begin, full, like, remember
from optaxclip.thresholds.threshold import GroupShapes, Observation


class FactorState(NamedTuple):
    """The factor on the start limit."""

    factor: Float[Array, "..."]


def unit_factor(group: jax.ShapeDtypeStruct) -> FactorState:
    """Return the initial factor, 1."""
    return FactorState(full(group, 1))


def within_floats(factor: Number) -> Number:
    """Keep a factor from becoming 0 or infinite, from which it could not recover."""
    finfo = jnp.finfo(factor.dtype)
    return jnp.clip(factor, finfo.tiny, finfo.max)


@dataclass(frozen=True)
class TrackedQuantile:
    r"""A running estimate of a quantile of the magnitudes, in one number per group.

    $$
    c_{t+1} = c_t \exp(-\eta (b_t - \gamma)), \qquad b_t = 1 \text{ if } x_t \le c_t,
    \text{ else } 0
    $$

    Each step moves the limit by a factor of $e^{\eta \gamma}$ up or
    $e^{\eta (1 - \gamma)}$ down. No spike moves it further than that.

    Attributes:
      start: the first limit, $c_0$.
      quantile: the share of magnitudes within the limit, $\gamma$, from 0 to 1.
      learning_rate: η >= 0.
    """

    start: Any  # Any limit; converted to a threshold.
    quantile: ArrayLike = 0.5
    learning_rate: ArrayLike = 0.2

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        take_thresholds(self, "start")
        check_between(self.quantile, 0, 1, "quantile")
        check_nonnegative(self.learning_rate, "learning_rate")

    def init(self, groups: GroupShapes) -> tuple[Any, Any]:
        """See `Threshold.init`."""
        return self.start.init(groups), begin(unit_factor, groups)

    def update(
        self, seen: Observation, state: tuple[Any, Any]
    ) -> tuple[PerGroup, tuple[Any, Any]]:
        """See `Threshold.update`."""
        start, first = self.start.update(seen, state[0])
        limit, memory = remember(
            unit_factor, self._step, seen.magnitude, state[1], start
        )
        return limit, (first, memory)

    def _step(
        self, size: Number, memory: FactorState, start: Number
    ) -> tuple[Number, FactorState]:
        limit = like(start, size) * memory.factor
        below = (size <= limit).astype(size.dtype)
        drift = like(self.learning_rate, size) * (like(self.quantile, size) - below)
        return limit, FactorState(within_floats(memory.factor * jnp.exp(drift)))
