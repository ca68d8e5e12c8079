"""Thresholds made of other thresholds."""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int32, PyTree

from optaxclip.arguments import check_steps
from optaxclip.groups import PerGroup, map_groups
from optaxclip.norms import Magnitude
from optaxclip.numbers import Number
from optaxclip.thresholds.constant import take_thresholds
from optaxclip.thresholds.memory import begin, full, increment, like
from optaxclip.thresholds.threshold import GroupShapes, Observation


@dataclass(frozen=True)
class _Pair(ABC):
    """Two thresholds; each sees the magnitudes and learns from its own limit.

    Attributes:
      first: a threshold.
      second: another one.
    """

    first: Any  # Any limit; converted to a threshold.
    second: Any  # Any limit; converted to a threshold.

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        take_thresholds(self, "first", "second")

    @abstractmethod
    def _chosen(self, first: Number, second: Number) -> Number: ...

    def init(self, groups: GroupShapes) -> tuple[Any, Any]:
        """See `Threshold.init`."""
        return self.first.init(groups), self.second.init(groups)

    def update(
        self, seen: Observation, state: tuple[Any, Any]
    ) -> tuple[PerGroup, tuple[Any, Any]]:
        """See `Threshold.update`."""
        first, first_state = self.first.update(seen, state[0])
        second, second_state = self.second.update(seen, state[1])

        def chosen(size: Number, first: Number, second: Number) -> Number:
            return self._chosen(like(first, size), like(second, size))

        limit = map_groups(chosen, seen.magnitude, first, second)
        return limit, (first_state, second_state)


@dataclass(frozen=True)
class Minimum(_Pair):
    """The smaller of two limits, such as an adaptive one and a bound on it.

    Attributes:
      first: a threshold.
      second: another one.
    """

    def _chosen(self, first: Number, second: Number) -> Number:
        return jnp.minimum(first, second)


@dataclass(frozen=True)
class Maximum(_Pair):
    """The larger of two limits, such as an adaptive one and a floor under it.

    Attributes:
      first: a threshold.
      second: another one.
    """

    def _chosen(self, first: Number, second: Number) -> Number:
        return jnp.maximum(first, second)


@dataclass(frozen=True)
class IgnoringZeros:
    """Hides zero magnitudes from a threshold.

    A tensor that a step does not use has a zero gradient, such as an expert without
    tokens, and guards turn broken steps into zeros. A z-score or percentile that sees
    many zeros falls to 0, and then keeps the group there.

    Attributes:
      threshold: a threshold with memory.
    """

    threshold: Any  # Any limit; converted to a threshold.

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        take_thresholds(self, "threshold")

    def init(self, groups: GroupShapes) -> Any:
        """See `Threshold.init`."""
        return self.threshold.init(groups)

    def update(self, seen: Observation, state: Any) -> tuple[PerGroup, Any]:
        """See `Threshold.update`."""

        def told(size: Number) -> Number:
            return jnp.where(size == 0, jnp.inf, size)  # Memories skip infinity.

        return self.threshold.update(
            _showing(map_groups(told, seen.magnitude), seen), state
        )


def _showing(shown: PerGroup, seen: Observation) -> Observation:
    """Replace the magnitudes of an observation."""
    size = Magnitude(shown, jax.tree.map(jnp.ones_like, shown))
    return dataclasses.replace(seen, size=size)


class WarmupState(NamedTuple):
    """The memories of both thresholds, and the number of finite magnitudes so far."""

    during: Any
    after: Any
    step: PyTree[Int32[Array, "..."]]


def _no_steps(group: jax.ShapeDtypeStruct) -> Array:
    return full(group, 0, jnp.int32)


@dataclass(frozen=True)
class Warmup:
    """One limit during a warm-up, and another one after it.

    The later threshold learns from the first step on, so it has a history when it takes
    over: during the warm-up it sees the magnitudes as clipped by the other threshold.
    Each group counts its own finite magnitudes.

    Attributes:
      during: the threshold during the warm-up.
      after: the threshold after it.
      warmup_steps: the length of the warm-up, in finite magnitudes.
    """

    during: Any  # Any limit; converted to a threshold.
    after: Any  # Any limit; converted to a threshold.
    warmup_steps: ArrayLike

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        take_thresholds(self, "during", "after")
        check_steps(self.warmup_steps, 0, "warmup_steps")

    def init(self, groups: GroupShapes) -> WarmupState:
        """See `Threshold.init`."""
        return WarmupState(
            self.during.init(groups), self.after.init(groups), begin(_no_steps, groups)
        )

    def _warm(self, step: Array) -> Bool[Array, "..."]:
        return step < jnp.asarray(self.warmup_steps).astype(step.dtype)

    def update(
        self, seen: Observation, state: WarmupState
    ) -> tuple[PerGroup, WarmupState]:
        """See `Threshold.update`."""

        def let_through(size: Number, limit: Number, step: Array) -> Number:
            clipped = jnp.minimum(size, like(limit, size))
            return jnp.where(self._warm(step) & jnp.isfinite(size), clipped, size)

        def handed_over(size: Number, early: Number, late: Number, step: Array):
            return jnp.where(self._warm(step), like(early, size), like(late, size))

        def counted(size: Number, step: Array) -> Array:
            return jnp.where(jnp.isfinite(size), increment(step), step)

        early, during = self.during.update(seen, state.during)
        shown = map_groups(let_through, seen.magnitude, early, state.step)
        late, after = self.after.update(_showing(shown, seen), state.after)
        limit = map_groups(handed_over, seen.magnitude, early, late, state.step)
        step = map_groups(counted, seen.magnitude, state.step)
        return limit, WarmupState(during, after, step)
