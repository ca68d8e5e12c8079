"""Per-group memory for thresholds, which skips groups that are not finite.

A memory is a named tuple whose fields are trees like the magnitudes. Its first field
has float32 or a wider dtype, in which the memory is computed. Derivatives treat limits
from memory as constants.
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
from optaxclip.mesh import vary, varying_axes
from optaxclip.numbers import Number
from optaxclip.thresholds.threshold import GroupShapes, Observation

Memory = Any
FirstFunction = Callable[[jax.ShapeDtypeStruct], Memory]
StepFunction = Callable[..., tuple[Number, Memory]]


def begin(first: FirstFunction, groups: GroupShapes) -> Memory:
    """Return the initial memory of all groups; each field is a tree like them."""
    shapes, tree = jax.tree.flatten(groups)
    columns = zip(*(_numbers(first, group) for group in shapes), strict=True)
    fields = list(columns) if shapes else [()] * _kind(first).num_leaves
    return _kind(first).unflatten([tree.unflatten(field) for field in fields])


def _numbers(first: FirstFunction, group: jax.ShapeDtypeStruct) -> list[Array]:
    """Return the memory of one array of groups, which varies over a mesh as they do."""
    axes = varying_axes(group)
    return [vary(jnp.asarray(part), axes) for part in jax.tree.leaves(first(group))]


def _kind(first: FirstFunction) -> Any:
    """Return the structure of the memory of one array."""
    return jax.tree.structure(first(jax.ShapeDtypeStruct((), jnp.float32)))


def full(
    group: jax.ShapeDtypeStruct, value: ArrayLike, dtype: DTypeLike | None = None
) -> Array:
    """Return the same number for every group, sharded like the groups."""
    dtype = group.dtype if dtype is None else dtype
    return jax.lax.full(group.shape, value, dtype, sharding=group.sharding)


def remember(
    first: FirstFunction,
    step: StepFunction,
    magnitude: PerGroup,
    memory: Memory,
    *of_group: PerGroup,
) -> tuple[PerGroup, Memory]:
    """Compute the limits of a step, and learn from the groups that are finite.

    Args:
      first: returns the initial memory of an array of groups.
      step: takes the magnitudes of an array of groups (infinity for those that are not
        finite), their memory, and `of_group`. It returns their limits and new memory;
        the new memory is dropped where a group is not finite.
      magnitude: the magnitude of each group.
      memory: the memory of each group.
      of_group: further per-group arguments of `step`.

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
    """Base class of thresholds that depend only on each group's own magnitudes.

    Subclass it and define `first` and `step` for one array of groups. The threshold
    then works with every scope, keeps its memory in trees like the updates if groups
    lie within leaves, and learns nothing from groups that are not finite.

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
        """Return the initial memory of an array of groups.

        Args:
          group: the shape and dtype of the magnitudes.

        Returns:
          A named tuple of arrays of that shape, possibly with trailing dimensions.
        """

    @abstractmethod
    def step(self, size: Number, memory: Memory, /) -> tuple[Number, Memory]:
        """Return the limits of a step, and the new memory.

        Args:
          size: the magnitudes of an array of groups; infinity for groups that are not
            finite, whose new memory is dropped.
          memory: the memory of these groups.
        """

    def init(self, groups: GroupShapes) -> Any:
        """See `Threshold.init`."""
        return begin(self.first, groups)

    def update(self, seen: Observation, state: Any) -> tuple[PerGroup, Any]:
        """See `Threshold.update`."""
        return remember(self.first, self.step, seen.magnitude, state)


def choose(groups: Bool[Array, "..."], new: Memory, old: Memory) -> Memory:
    """Select the new memory for some groups, and the old memory for the others."""

    def of_one(new: Array, old: Array) -> Array:
        last = tuple(range(groups.ndim, old.ndim))
        return jnp.where(jnp.expand_dims(groups, last), new.astype(old.dtype), old)

    return jax.tree.map(of_one, new, old)


def like(value: ArrayLike, number: Number) -> Number:
    """Cast a hyperparameter to the dtype of a magnitude."""
    return jnp.asarray(value).astype(number.dtype)


def increment(step: Array) -> Array:
    """Count one more step, without overflow."""
    return jnp.asarray(optax.safe_increment(step))
