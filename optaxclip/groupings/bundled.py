"""Few groups, of whole leaves: one array for all of them, however many leaves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from optaxclip.groupings.grouping import Grouping
from optaxclip.magnitudes import Leaf, Number, PerGroup
from optaxclip.reductions import Reduction, spread_over, vary, varying_axes


@dataclass(frozen=True)
class Bundled(Grouping):
    """Few groups, of whole leaves or of their leading slices, as one array.

    Attributes:
      members: the positions of each group's leaves.
    """

    members: tuple[tuple[int, ...], ...]

    def _lead(self, position: int) -> tuple[int, ...]:
        shape = self.shapes[position]
        return shape[: len(shape) - len(self.dims[position])]

    @property
    def lengths(self) -> list[int]:
        """Tell how many groups each of `members` stands for: one a leading slice."""
        return [math.prod(self._lead(positions[0])) for positions in self.members]

    def _array(self, segments: list[Array]) -> Array:
        empty = jnp.zeros(int(self.single), jnp.float32)
        vector = jnp.concatenate(segments) if segments else empty
        return vector.reshape(()) if self.single else vector

    def _local(
        self, op: Reduction, terms: list[Number], among: set[int]
    ) -> list[Array]:
        """Reduce the terms of some leaves over each group; empty where it has none."""
        found = []
        empty = jnp.zeros(0, jnp.float32)
        for positions in self.members:
            here = [i for i in positions if i in among]
            lead = self._lead(positions[0])
            dims = self.dims[positions[0]] if lead else None
            part = op.bundled([terms[i] for i in here], dims) if here else empty
            found.append(part.ravel())
        return found

    def reduce(self, op: Reduction, leaves: list[Leaf], terms: list[Number]) -> Array:
        """See `Grouping.reduce`."""
        axes = [spread_over(*each) for each in zip(leaves, self.axes, strict=True)]
        parts: list[list[Array]] = [[] for _ in self.members]
        for over in dict.fromkeys(axes):
            local = self._local(op, terms, {i for i, a in enumerate(axes) if a == over})
            if over:
                joined = op.across(jnp.concatenate(local), over)
                local = jax.lax.split(joined, [part.size for part in local])
            for found, part in zip(parts, local, strict=True):
                found.extend([part] if part.size else [])
        return self._array([op.of(part) for part in parts])

    def spread(self, of_group: PerGroup) -> list[Number]:
        """See `Grouping.spread`."""
        if of_group.ndim == 0 or not self.members:
            return [of_group] * len(self.shapes)
        found: dict[int, Number] = {}
        segments = jax.lax.split(of_group, self.lengths)
        for positions, segment in zip(self.members, segments, strict=True):
            for i in positions:
                lead = self._lead(i)
                shape = (*lead, *(1 for _ in self.dims[i])) if lead else ()
                found[i] = segment.reshape(shape)
        return [found[i] for i in range(len(self.shapes))]

    def full(self, value: float, leaves: list[Leaf], dtype: DTypeLike) -> Array:
        """See `Grouping.full`."""
        pairs = zip(leaves, self.axes, strict=True)
        varying = [varying_axes(leaf) - frozenset(axes) for leaf, axes in pairs]
        start = jnp.full(self.report_shape, value, dtype)
        return vary(start, frozenset().union(*varying))

    def like(self, leaves: list[Leaf], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        """See `Grouping.like`."""
        return jax.ShapeDtypeStruct(self.report_shape, dtype)

    @property
    def report_shape(self) -> tuple[int, ...]:
        """See `Grouping.report_shape`."""
        return () if self.single else (sum(self.lengths),)

    def sizes(self, leaves: list[Leaf], dtype: DTypeLike) -> Array:
        """See `Grouping.sizes`."""
        numbers = self._numbers(leaves)
        totals = [sum(numbers[i] for i in positions) for positions in self.members]
        vector = np.repeat(np.asarray(totals, dtype), self.lengths)
        return jnp.asarray(vector.sum() if self.single else vector, dtype)

    def digest(
        self, numbers: Sequence[PerGroup], held: PyTree[Bool[Array, "..."]]
    ) -> tuple[list[Float[Array, "..."]], Float[Array, ""]]:
        """See `Grouping.digest`."""
        each = [
            jnp.broadcast_to(x, self.report_shape).astype(jnp.float32) for x in numbers
        ]
        return each, jnp.sum(held, dtype=jnp.float32) / max(held.size, 1)


@dataclass(frozen=True)
class Single(Bundled):
    """One group of all leaves."""

    @property
    def single(self) -> bool:
        """See `Grouping.single`."""
        return True
