"""Remembering something of each group, and nothing of a step that was not finite.

A memory is a named tuple for each array of groups. Its first field is a number of
float32 or wider, in whose type the memory is kept. Limits that come from memory are
constants to a derivative.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool

from optaxclip.groupings import each_group
from optaxclip.magnitudes import Number, PerGroup
from optaxclip.thresholds.threshold import Groups, Observation

Memory = Any
Step = Callable[..., tuple[Number, Memory]]


def begin(first: Callable[[jax.ShapeDtypeStruct], Memory], groups: Groups) -> Any:
    """Give each array of groups its first memory."""
    return jax.tree.map(first, groups)


def full(
    group: jax.ShapeDtypeStruct, value: ArrayLike, dtype: DTypeLike | None = None
) -> Array:
    """Give every group the same number, sharded as the groups are."""
    dtype = group.dtype if dtype is None else dtype
    return jax.lax.full(group.shape, value, dtype, sharding=group.sharding)


def remember(
    step: Step, magnitude: PerGroup, memory: Any, *of_group: PerGroup
) -> tuple[PerGroup, Any]:
    """Ask for the limits of a step, and learn from the groups that are finite.

    Args:
      step: takes the magnitudes of an array of groups, with infinity for all that is
        not finite; their memory; and what else is known of them. It gives their
        limits and the new memory, which is dropped where a group was not finite.
      magnitude: how big each group is.
      memory: what is known of each group.
      of_group: what else `step` takes.

    Returns:
      The limits, and the new memory.
    """

    def one(magnitude: Number, memory: Memory, *given: Number) -> tuple[Number, Memory]:
        size = like(jax.lax.stop_gradient(magnitude), memory[0])
        finite = jnp.isfinite(size)
        limit, new = step(jnp.where(finite, size, jnp.inf), memory, *given)
        return limit, choose(finite, new, memory)

    both = each_group(one, magnitude, memory, *of_group)
    if not isinstance(both, list):
        return both
    return [limit for limit, _ in both], [new for _, new in both]


class Remembering(ABC):
    """A threshold that answers from its memory of each array of groups alone."""

    @abstractmethod
    def _first(self, group: jax.ShapeDtypeStruct) -> Memory:
        """Give the memory of an array of groups before the first step."""

    @abstractmethod
    def _step(self, size: Number, memory: Memory) -> tuple[Number, Memory]:
        """Give the limits of a step, and the new memory; `remember` calls it."""

    def init(self, groups: Groups) -> Any:
        """See `Threshold.init`."""
        return begin(self._first, groups)

    def update(self, seen: Observation, state: Any) -> tuple[PerGroup, Any]:
        """See `Threshold.update`."""
        return remember(self._step, seen.magnitude, state)


def choose(groups: Bool[Array, "..."], new: Memory, old: Memory) -> Memory:
    """Take the new memory of some groups, and keep the old of the others."""

    def of_one(new: Array, old: Array) -> Array:
        last = tuple(range(groups.ndim, old.ndim))
        return jnp.where(jnp.expand_dims(groups, last), new.astype(old.dtype), old)

    return jax.tree.map(of_one, new, old)


def like(value: ArrayLike, number: Number) -> Number:
    """Take a hyperparameter in the type of a magnitude."""
    return jnp.asarray(value).astype(number.dtype)


def count(step: Array) -> Array:
    """Count one more step, up to the largest number there is."""
    return jnp.asarray(optax.safe_increment(step))
