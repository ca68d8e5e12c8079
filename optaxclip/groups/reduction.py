"""Sums, maxima and minima: between leaves, within a leaf, and across a mesh."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from optaxclip.mesh import MeshAxes, spread_over, varying_axes
from optaxclip.numbers import Number

# XLA compiles one kernel per sum. Leaves of the same shape are first added element by
# element, this many at a time: fewer kernels to compile, and faster ones.
_BUNDLE = 16


Numbers = Any  # An array, or a tuple of arrays that are reduced in one pass.


def _likeness(numbers: Numbers, position: int) -> Hashable:
    """Return a key, equal for arrays that can be added without moving data.

    Where XLA chooses the sharding, it is unknown here, so no two keys are equal.
    """
    x = jax.tree.leaves(numbers)[0]
    kind = jax.typeof(x)
    mesh = kind.sharding.mesh
    if any(mesh.shape[axis] > 1 for axis in mesh.auto_axes):
        return position
    return kind.shape, kind.dtype, kind.sharding, varying_axes(x)


@dataclass(frozen=True)
class Combination:
    """An associative and commutative operation.

    Attributes:
      between: combines two arrays element by element.
      within: combines the elements of an array along dimensions.
    """

    between: Callable[[Numbers, Numbers], Numbers]
    within: Callable[..., Numbers]

    def of(self, arrays: Iterable[Numbers]) -> Numbers:
        """Combine arrays of the same shape, pairwise for accuracy."""
        found = list(arrays)
        while len(found) > 1:
            pairs = zip(found[::2], found[1::2], strict=False)
            found = [
                *(self.between(*pair) for pair in pairs),
                *found[len(found) & ~1 :],
            ]
        return found[0]

    def bundled(
        self, arrays: Sequence[Numbers], dims: Sequence[tuple[int, ...]]
    ) -> Numbers:
        """Reduce each array along its `dims` and combine them, with few kernels."""
        alike: dict[tuple[Hashable, tuple[int, ...]], list[Numbers]] = {}
        for position, (x, along) in enumerate(zip(arrays, dims, strict=True)):
            alike.setdefault((_likeness(x, position), along), []).append(x)
        return self.of(
            self.within(self.of(same[start : start + _BUNDLE]), axis=along)
            for (_, along), same in alike.items()
            for start in range(0, len(same), _BUNDLE)
        )


@dataclass(frozen=True)
class Reduction(Combination):
    """A combination that also works across a mesh.

    Attributes:
      across: combines arrays across mesh axes.
    """

    across: Callable[..., Numbers]

    def over(self, x: Number, axes: MeshAxes) -> Number:
        """Combine across the mesh axes over which an array is sharded."""
        axes = spread_over(x, axes)
        return self.across(x, axes) if axes else x


SUM = Reduction(jnp.add, jnp.sum, jax.lax.psum)
MAX = Reduction(jnp.maximum, jnp.max, jax.lax.pmax)
MIN = Reduction(jnp.minimum, jnp.min, jax.lax.pmin)
