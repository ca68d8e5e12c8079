"""A limit from the exponential moving average of clipped magnitudes."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from optaxclip.arguments import check_decay, check_nonnegative
from optaxclip.averages import moved
from optaxclip.numbers import Number
from optaxclip.thresholds.memory import Remembering, choose, full, like


class EmaState(NamedTuple):
    """A weighted average, and the sum of its weights."""

    mean: Float[Array, "..."]
    weight: Float[Array, "..."]


def empty_average(group: jax.ShapeDtypeStruct) -> EmaState:
    """Return the average of no numbers, with total weight 0."""
    return EmaState(full(group, 0), full(group, 0))


def average(memory: EmaState, number: Number, decay: ArrayLike) -> EmaState:
    """Add a number to a bias-corrected average.

    The weights are those of `newest_share`, but summed step by step: there may be one
    group per number, and computing a power for each would dominate the cost.
    """
    new = like(1 - decay, number)
    weight = memory.weight + new * (1 - memory.weight)
    return EmaState(moved(memory.mean, number, new / weight), weight)


@dataclass(frozen=True)
class Ema(Remembering):
    r"""The limit $f \hat m$, where $\hat m$ averages past magnitudes after clipping.

    $$
    m_t = \beta m_{t-1} + (1 - \beta) \min(x_t, c_t), \qquad
    c_{t+1} = f \frac{m_t}{1 - \beta^t}
    $$

    A spike enters the average after clipping, so once there is some history it raises
    the limit by a factor of at most $\beta + (1 - \beta) f$. Zeros are ignored, as
    non-finite magnitudes are: an average of 0 could never rise again. A group has no
    limit before its first magnitude.

    Attributes:
      factor: f >= 0; below 1 the limit can only fall.
      decay: β, at least 0 and below 1.
    """

    factor: ArrayLike = 1.05
    decay: ArrayLike = 0.98

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        check_nonnegative(self.factor, "factor")
        check_decay(self.decay)

    def first(self, group: jax.ShapeDtypeStruct) -> EmaState:
        """See `Remembering.first`."""
        return empty_average(group)

    def step(self, size: Number, memory: EmaState) -> tuple[Number, EmaState]:
        """See `Remembering.step`."""
        known = memory.weight > 0
        limit = jnp.where(known, like(self.factor, size) * memory.mean, jnp.inf)
        new = average(memory, jnp.minimum(size, limit), self.decay)
        return limit, choose(size > 0, new, memory)
