"""Limits given by the user: numbers, schedules, and one limit per sign."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int32, PyTree

from optaxclip.arguments import check_limit, check_lower, is_real
from optaxclip.groups import Elements, PerGroup, map_groups
from optaxclip.leaves import is_one_leaf
from optaxclip.numbers import Leaf, Number, as_number
from optaxclip.roles import answers, check_schedule
from optaxclip.sentences import shown, uncalled
from optaxclip.thresholds.threshold import GroupShapes, Observation, Threshold


@dataclass(frozen=True)
class Constant:
    """The same limit at every step.

    Attributes:
      limit: a number, an array, or a tree of these as the scope accepts it.
    """

    limit: PyTree[ArrayLike]

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        _check_limits(self.limit, "limit")

    def init(self, groups: GroupShapes) -> tuple[()]:
        """See `Threshold.init`."""
        return ()

    def update(self, seen: Observation, state: tuple[()]) -> tuple[PerGroup, tuple[()]]:
        """See `Threshold.update`."""
        return _arranged(self.limit, seen), state


class ScheduledState(NamedTuple):
    """The number of steps taken."""

    step: Int32[Array, ""]


@dataclass(frozen=True)
class Scheduled:
    """A limit that depends on the clipper's own step count, starting from 0.

    Attributes:
      limit: a schedule, or a tree of schedules and numbers as the scope accepts it.
    """

    limit: PyTree[optax.Schedule | ArrayLike]

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        _check_limits(self.limit, "limit")

    def init(self, groups: GroupShapes) -> ScheduledState:
        """See `Threshold.init`."""
        return ScheduledState(jnp.zeros((), jnp.int32))

    def update(
        self, seen: Observation, state: ScheduledState
    ) -> tuple[PerGroup, ScheduledState]:
        """See `Threshold.update`."""
        limit = jax.tree.map(lambda given: _at(given, state.step), self.limit)
        step = jnp.asarray(optax.safe_increment(state.step))
        return _arranged(limit, seen), ScheduledState(step)


def _at(limit: Any, step: Array) -> Any:
    """Return a limit, or what a schedule gives for a step."""
    if not callable(limit):
        return limit
    found = limit(step)
    if not is_real(found):
        raise TypeError(
            f"a schedule must return a number, not {shown(found)}; change "
            f"{shown(limit)}."
        )
    return found


@dataclass(frozen=True)
class TwoSided:
    """Separate limits for negative and for other numbers, element by element.

    Complex numbers have no sign; their limit is `above`.

    Attributes:
      below: the limit of negative numbers.
      above: the limit of all other numbers.
    """

    below: Any  # Any limit; converted to a threshold.
    above: Any  # Any limit; converted to a threshold.

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        take_thresholds(self, "below", "above")

    def init(self, groups: GroupShapes) -> tuple[Any, Any]:
        """See `Threshold.init`."""
        return self.below.init(groups), self.above.init(groups)

    def update(
        self, seen: Observation, state: tuple[Any, Any]
    ) -> tuple[PerGroup, tuple[Any, Any]]:
        """See `Threshold.update`."""
        groups = seen.groups
        if not isinstance(groups, Elements):
            raise ValueError(
                "TwoSided needs the scope `element`: a group of several numbers has no "
                "sign; give such a group one limit."
            )
        below, below_state = self.below.update(seen, state[0])
        above, above_state = self.above.update(seen, state[1])

        numbers = groups.tree.unflatten(groups.leaves)
        below, above = (
            jax.tree.map(lambda c: c.astype(groups.dtype), limit)
            for limit in (below, above)
        )
        limits = map_groups(_by_sign, numbers, below, above)
        return limits, (below_state, above_state)


def _by_sign(leaf: Leaf, below: Number, above: Number) -> Number:
    negative = jnp.zeros(leaf.shape, bool) if jnp.iscomplexobj(leaf) else leaf < 0
    return jnp.where(negative, below, above)


def _arranged(limit: PyTree[ArrayLike], seen: Observation) -> PerGroup:
    if is_one_leaf(limit) and jnp.ndim(limit) == 0:
        return as_number(limit)
    return seen.limits(limit)


Limit = Threshold | PyTree[ArrayLike | optax.Schedule]
"""Anything accepted as a limit: a threshold, or a tree of numbers and schedules."""


def take_thresholds(owner: Any, *fields: str) -> None:
    """Convert fields of a frozen dataclass to thresholds, in place."""
    for field in fields:
        object.__setattr__(owner, field, as_threshold(getattr(owner, field), field))


def as_threshold(
    limit: Threshold | PyTree[ArrayLike | optax.Schedule], argument: str = "threshold"
) -> Threshold:
    """Convert numbers and schedules to a threshold; return thresholds unchanged.

    Args:
      limit: a threshold, a number, an array, a schedule, or a tree of the last three.
      argument: the name used in error messages.

    Returns:
      The threshold.

    Raises:
      TypeError: if `limit` is none of these.
      ValueError: if a number is negative or NaN, unless traced.
    """
    is_transformation = isinstance(limit, optax.GradientTransformation)
    if answers(limit, Threshold) and not is_transformation:
        return limit
    if is_transformation or isinstance(limit, type):
        raise TypeError(
            f"{argument} must be an object such as thresholds.ZScore(), a number or a "
            f"schedule, not {uncalled(limit)}."
        )
    _check_limits(limit, argument)
    changes = any(map(callable, jax.tree.leaves(limit)))
    return Scheduled(limit) if changes else Constant(limit)


def _check_limits(limit: PyTree[ArrayLike | optax.Schedule], argument: str) -> None:
    given = jax.tree.leaves(limit)
    if not given:
        raise TypeError(f"{argument} must be a number, not {shown(limit)}.")
    for value in given:
        (check_schedule if callable(value) else check_limit)(value, argument)


def as_interval(
    max_value: Threshold | PyTree[ArrayLike | optax.Schedule],
    min_value: ArrayLike | optax.Schedule | None,
) -> Threshold:
    """Convert an interval around zero to a threshold.

    Args:
      max_value: the largest value allowed, at least 0.
      min_value: the smallest value allowed, at most 0; ``-max_value`` if None.

    Returns:
      The threshold. With two bounds it needs the scope `element`.

    Raises:
      TypeError: if a bound is not a number, schedule or threshold.
      ValueError: if zero lies outside the bounds, or one is NaN, unless traced.
    """
    above = as_threshold(max_value, "max_value")
    if min_value is None:
        return above
    if callable(min_value):
        check_schedule(min_value, "min_value")
        below = as_threshold(lambda step: -as_number(_at(min_value, step)))
    else:
        check_lower(min_value, "min_value")
        below = as_threshold(-as_number(min_value))
    return TwoSided(below, above)
