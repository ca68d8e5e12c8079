"""A limit that grows while the loss falls."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from optaxclip.arguments import check_between, check_decay
from optaxclip.groups import PerGroup
from optaxclip.numbers import Number
from optaxclip.thresholds.constant import take_thresholds
from optaxclip.thresholds.ema import EmaState, average, empty_average
from optaxclip.thresholds.loss import loss_of
from optaxclip.thresholds.memory import begin, choose, full, like, remember
from optaxclip.thresholds.threshold import GroupShapes, Observation
from optaxclip.thresholds.tracked import within_floats


class GreedyState(NamedTuple):
    """The factor on the start limit, and the average of past losses."""

    factor: Float[Array, "..."]
    loss: EmaState


def _first(group: jax.ShapeDtypeStruct) -> GreedyState:
    return GreedyState(full(group, 1), empty_average(group))


@dataclass(frozen=True)
class Greedy:
    r"""A limit that grows while the loss falls, and backs off when it rises.

    $$
    c_t = s_t c_0, \qquad s_t = s_{t-1} \cdot
    \begin{cases}
    g & \text{if } \ell_t < \bar\ell_{t-1} \\
    b & \text{if } \ell_t > \bar\ell_{t-1}
    \end{cases}
    $$

    The loss $\ell_t$ is the extra argument ``value`` of the update, as elsewhere in
    Optax. It is compared with the average of the previous finite losses, with decay β;
    β = 0 compares with the last one. The first loss changes nothing. Losses and groups
    that are not finite are ignored.

    Attributes:
      start: the first limit, $c_0$.
      growth: g >= 1.
      backoff: b, from 0 to 1.
      decay: β, at least 0 and below 1.
    """

    start: Any  # Any limit; converted to a threshold.
    growth: ArrayLike = 1.05
    backoff: ArrayLike = 0.95
    decay: ArrayLike = 0.9

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        take_thresholds(self, "start")
        check_between(self.growth, 1, jnp.inf, "growth")
        check_between(self.backoff, 0, 1, "backoff")
        check_decay(self.decay)

    def init(self, groups: GroupShapes) -> tuple[Any, Any]:
        """See `Threshold.init`."""
        return self.start.init(groups), begin(_first, groups)

    def update(
        self, seen: Observation, state: tuple[Any, Any]
    ) -> tuple[PerGroup, tuple[Any, Any]]:
        """See `Threshold.update`."""
        loss = loss_of(seen.extra_args)
        if loss is None:
            raise ValueError(
                "a greedy limit needs the loss; call update(updates, state, params, "
                "value=loss)."
            )
        loss = jax.lax.stop_gradient(loss)
        start, first = self.start.update(seen, state[0])

        def step(
            size: Number, memory: GreedyState, start: Number
        ) -> tuple[Number, GreedyState]:
            return self._step(size, memory, start, like(loss, size))

        limit, memory = remember(_first, step, seen.magnitude, state[1], start)
        return limit, (first, memory)

    def _step(
        self, size: Number, memory: GreedyState, start: Number, loss: Number
    ) -> tuple[Number, GreedyState]:
        one = jnp.ones_like(size)
        past, known = memory.loss.mean, memory.loss.weight > 0
        growth = jnp.where(known & (loss < past), like(self.growth, size), one)
        backoff = jnp.where(known & (loss > past), like(self.backoff, size), one)
        factor = within_floats(memory.factor * growth * backoff)
        learned = jnp.isfinite(size) & jnp.isfinite(loss)
        new = GreedyState(factor, average(memory.loss, loss, self.decay))
        new = choose(learned, new, memory)
        return like(start, size) * new.factor, new
