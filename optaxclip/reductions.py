"""Sums and maxima in their three places: between leaves, in a leaf, across a mesh."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

# XLA compiles a kernel for each sum. Leaves of one shape are added up element by
# element first, this many at a time: fewer kernels to compile, and faster ones.
_BUNDLE = 16

Axes = tuple[str, ...]
Numbers = Any  # an array, or a tuple of them that is reduced in one pass


def varying_axes(x: Array) -> frozenset[str]:
    """Name the mesh axes over which JAX knows an array to vary in ``shard_map``."""
    kind = jax.typeof(x)
    manual = getattr(kind, "manual_axis_type", None)  # called vma before JAX 0.10
    return getattr(kind, "vma", frozenset()) if manual is None else manual.varying


def spread_over(x: Array, axes: Axes) -> Axes:
    """Leave out the axes over which an array is known to be replicated."""
    return tuple(
        axis
        for axis in axes
        if axis in varying_axes(x) or not varying_axes(jax.lax.axis_index(axis))
    )


def vary(x: Array, axes: frozenset[str]) -> Array:
    """Mark a constant as varying over mesh axes, as a loop's start has to be."""
    missing = tuple(axes - varying_axes(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def _likeness(x: Numbers, position: int) -> Hashable:
    """Tell which arrays can be added element by element without moving any data.

    Where XLA chooses the sharding it is unknown here, so no two arrays are alike.
    """
    first = jax.tree.leaves(x)[0]
    kind = jax.typeof(first)
    mesh = kind.sharding.mesh
    if any(mesh.shape[axis] > 1 for axis in mesh.auto_axes):
        return position
    return kind.shape, kind.dtype, kind.sharding, varying_axes(first)


@dataclass(frozen=True)
class Reduction:
    """An operation that is associative and commutative.

    Attributes:
      between: combines two arrays element by element.
      within: combines the elements of an array along dimensions.
      across: combines arrays across mesh axes.
    """

    between: Callable[[Numbers, Numbers], Numbers]
    within: Callable[..., Numbers]
    across: Callable[..., Numbers]

    def of(self, arrays: Iterable[Numbers]) -> Numbers:
        """Combine arrays of one shape, in pairs for accuracy."""
        found = list(arrays)
        while len(found) > 1:
            pairs = zip(found[::2], found[1::2], strict=False)
            found = [
                *(self.between(*pair) for pair in pairs),
                *found[len(found) & ~1 :],
            ]
        return found[0]

    def bundled(
        self, arrays: Sequence[Numbers], dims: tuple[int, ...] | None
    ) -> Numbers:
        """Reduce each array along `dims` and combine, with as few kernels as can be."""
        alike: dict[Hashable, list[Numbers]] = {}
        for position, x in enumerate(arrays):
            alike.setdefault(_likeness(x, position), []).append(x)
        return self.of(
            self.within(self.of(same[start : start + _BUNDLE]), axis=dims)
            for same in alike.values()
            for start in range(0, len(same), _BUNDLE)
        )

    def over(self, x: Numbers, axes: Axes) -> Numbers:
        """Combine across the mesh axes over which an array is spread."""
        axes = spread_over(jax.tree.leaves(x)[0], axes)
        return self.across(x, axes) if axes else x


SUM = Reduction(jnp.add, jnp.sum, jax.lax.psum)
MAX = Reduction(jnp.maximum, jnp.max, jax.lax.pmax)
