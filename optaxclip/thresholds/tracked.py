"""A limit that steps up and down until a quantile of all magnitudes lies below it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from optaxclip.arguments import check_between, check_limit
from optaxclip.groups import PerGroup
from optaxclip.numbers import Number
from optaxclip.thresholds.constant import take_thresholds
from optaxclip.thresholds.memory import begin, full, like, remember
from optaxclip.thresholds.threshold import GroupShapes, Observation


class FactorState(NamedTuple):
    """By what the first limit is multiplied."""

    factor: Float[Array, "..."]


def unit_factor(group: jax.ShapeDtypeStruct) -> FactorState:
    """Start from the first limit as it is."""
    return FactorState(full(group, 1))


def within_floats(factor: Number) -> Number:
    """Keep a factor from becoming 0 or infinite, from where it could not return."""
    finfo = jnp.finfo(factor.dtype)
    return jnp.clip(factor, finfo.tiny, finfo.max)


@dataclass(frozen=True)
class TrackedQuantile:
    r"""A limit that a share of the magnitudes does not exceed, from one number.

    $$
    c_{t+1} = c_t \exp(-\eta (b_t - \gamma)), \qquad b_t = 1 \text{ if } x_t \le c_t,
    \text{ else } 0
    $$

    From a wrong start the limit moves by a factor of $e^{\eta \gamma}$ up or
    $e^{\eta (1 - \gamma)}$ down in each step. No spike moves it further than that.

    Attributes:
      start: the first limit, $c_0$.
      quantile: that share, $\gamma$, from 0 to 1.
      learning_rate: η >= 0.
    """

    start: Any  # a limit of any kind, taken as a threshold
    quantile: ArrayLike = 0.5
    learning_rate: ArrayLike = 0.2

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        take_thresholds(self, "start")
        check_between(self.quantile, 0, 1, "quantile")
        check_limit(self.learning_rate, "learning_rate")

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
