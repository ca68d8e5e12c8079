"""Remembering something of each group, and nothing of a step that was not finite.

A memory is a named tuple, each field of which is a tree like the magnitudes. Its first
field is a number of float32 or wider, in whose type the memory is kept. Limits that
come from memory are constants to a derivative.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool

from optaxclip.groups import PerGroup, map_groups
from optaxclip.numbers import Number
from optaxclip.thresholds.threshold import GroupShapes, Observation

Memory = Any
FirstFunction = Callable[[jax.ShapeDtypeStruct], Memory]
StepFunction = Callable[..., tuple[Number, Memory]]


def begin(first: FirstFunction, groups: GroupShapes) -> Memory:
    """Give each array of groups its first memory; each field is a tree like them."""
    shapes, tree = jax.tree.flatten(groups)
    columns = zip(*(jax.tree.leaves(first(group)) for group in shapes), strict=True)
    fields = list(columns) if shapes else [()] * _kind(first).num_leaves
    return _kind(first).unflatten([tree.unflatten(field) for field in fields])


def _kind(first: FirstFunction) -> Any:
    """Give the structure of the memory of one array."""
    return jax.tree.structure(first(jax.ShapeDtypeStruct((), jnp.float32)))


def full(
    group: jax.ShapeDtypeStruct, value: ArrayLike, dtype: DTypeLike | None = None
) -> Array:
    """Give every group the same number, sharded as the groups are."""
    dtype = group.dtype if dtype is None else dtype
    return jax.lax.full(group.shape, value, dtype, sharding=group.sharding)


def remember(
    first: FirstFunction,
    step: StepFunction,
    magnitude: PerGroup,
    memory: Memory,
    *of_group: PerGroup,
) -> tuple[PerGroup, Memory]:
    """Ask for the limits of a step, and learn from the groups that are finite.

    Args:
      first: gives the first memory of an array of groups.
      step: takes the magnitudes of an array of groups, with infinity for all that is
        not finite; their memory; and what else is known of them. It gives their
        limits and the new memory, which is dropped where a group was not finite.
      magnitude: how big each group is.
      memory: what is known of each group.
      of_group: what else `step` takes.

    Returns:
      The limits, and the new memory.
    """
    kind = _kind(first)
    arrays, tree = jax.tree.flatten(memory)
    number = kind.num_leaves
    length = len(arrays) // number
    fields = [arrays[i * length : (i + 1) * length] for i in range(number)]

    def one(magnitude: Number, *given: Array) -> tuple[Array, ...]:
        known, others = kind.unflatten(given[:number]), given[number:]
        size = like(jax.lax.stop_gradient(magnitude), given[0])
        finite = jnp.isfinite(size)
        limit, new = step(jnp.where(finite, size, jnp.inf), known, *others)
        return limit, *jax.tree.leaves(choose(finite, new, known))

    if not length:
        return magnitude, memory
    limit, *new = map_groups(one, magnitude, *fields, *of_group)
    return limit, tree.unflatten(jax.tree.leaves(new))


class Remembering(ABC):
    """A threshold that answers from what it remembers of each group, and from no more.

    Derive yours from it and write `first` and `step`, for one array of groups. It then
    works at every scope, keeps its memory in trees like the updates wherever groups lie
    within leaves, and learns nothing from a group that is not finite.

    Examples:
      >>> import typing
      >>> Last = typing.NamedTuple("Last", [("size", jax.Array)])
      >>> class TwiceTheLast(optaxclip.thresholds.Remembering):
      ...     def first(self, group):
      ...         return Last(jnp.full(group.shape, jnp.inf))
      ...
      ...     def step(self, size, memory):
      ...         return 2 * memory.size, Last(size)
      >>> clip = optaxclip.clip_global_norm(TwiceTheLast())
      >>> state = clip.init(jnp.zeros(1))
      >>> for number in 1.0, 9.0:
      ...     updates, state = clip.update(jnp.array([number]), state)
      >>> updates
      Array([2.], dtype=float32)
    """

    @abstractmethod
    def first(self, group: jax.ShapeDtypeStruct, /) -> Memory:
        """Give the memory of an array of groups before the first step.

        Args:
          group: the shape and type in which the magnitudes will come.

        Returns:
          A named tuple of arrays of that shape, or with more dimensions behind it.
        """

    @abstractmethod
    def step(self, size: Number, memory: Memory, /) -> tuple[Number, Memory]:
        """Give the limits of a step, and the new memory.

        Args:
          size: the magnitudes of an array of groups; infinity for a group that is not
            finite, whose new memory is dropped.
          memory: what is known of these groups.
        """

    def init(self, groups: GroupShapes) -> Any:
        """See `Threshold.init`."""
        return begin(self.first, groups)

    def update(self, seen: Observation, state: Any) -> tuple[PerGroup, Any]:
        """See `Threshold.update`."""
        return remember(self.first, self.step, seen.magnitude, state)


def choose(groups: Bool[Array, "..."], new: Memory, old: Memory) -> Memory:
    """Take the new memory of some groups, and keep the old of the others."""

    def of_one(new: Array, old: Array) -> Array:
        last = tuple(range(groups.ndim, old.ndim))
        return jnp.where(jnp.expand_dims(groups, last), new.astype(old.dtype), old)

    return jax.tree.map(of_one, new, old)


def like(value: ArrayLike, number: Number) -> Number:
    """Take a hyperparameter in the type of a magnitude."""
    return jnp.asarray(value).astype(number.dtype)


def increment(step: Array) -> Array:
    """Count one more step, up to the largest number there is."""
    return jnp.asarray(optax.safe_increment(step))
