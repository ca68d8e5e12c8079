"""Groups of whole leaves: all leaves together, or those with the same label."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Float

from optaxclip.groups.entries import Entry
from optaxclip.groups.groups import Groups, PerGroup, Summary, is_above
from optaxclip.groups.reduction import Reduction
from optaxclip.mesh import spread_over
from optaxclip.numbers import Number, capped, computed_once


@dataclass(frozen=True)
class _Joint(Groups):
    """Groups that leaves may share."""

    @property
    def shared(self) -> bool:
        """See `Groups.shared`."""
        return True

    def _reduce(
        self, op: Reduction, term: Callable[..., Number], of_group: tuple[PerGroup, ...]
    ) -> Array:
        return self._of_terms(op, self._terms(term, of_group))

    @abstractmethod
    def _of_terms(self, op: Reduction, terms: list[Number]) -> Array:
        """Reduce the terms of all leaves, one per number, over each group."""

    def _combine(
        self, op: Reduction, terms: list[Number], members: tuple[int, ...]
    ) -> Number:
        """Reduce the terms of some leaves, with one collective per set of mesh axes."""
        spread: dict[tuple[str, ...], list[int]] = {}
        for i in members:
            axes = spread_over(self.leaves[i], self.axes[i])
            spread.setdefault(axes, []).append(i)
        parts = []
        for axes, alike in spread.items():
            part = op.bundled([terms[i] for i in alike], [self.dims[i] for i in alike])
            parts.append(op.across(part, axes) if axes else part)
        return op.of(parts)

    def summarize(self, value: Array, scale: Array, limit: Array) -> Summary:
        """See `Groups.summarize`."""
        magnitude = capped(value, scale)
        limit = jnp.broadcast_to(limit, magnitude.shape)
        return Summary(magnitude, limit, self.share(is_above(magnitude, limit)))

    def share(self, mask: Bool[Array, "..."]) -> Float[Array, ""]:
        """See `Groups.share`."""
        return jnp.sum(mask, dtype=jnp.float32) / max(mask.size, 1)


@dataclass(frozen=True)
class Whole(_Joint):
    """One group of all leaves."""

    def _of_terms(self, op: Reduction, terms: list[Number]) -> Array:
        if not terms:
            return jnp.zeros((), jnp.float32)
        return self._combine(op, terms, tuple(range(len(terms))))

    def spread(self, of_group: Array) -> list[Array]:
        """See `Groups.spread`."""
        return [of_group] * len(self.leaves)

    def sizes(self) -> Array:
        """See `Groups.sizes`."""
        return jnp.asarray(sum(self._sizes()), self.dtype)

    def struct(self) -> jax.ShapeDtypeStruct:
        """See `Groups.struct`."""
        return jax.ShapeDtypeStruct((), self.dtype)

    @property
    def report_shape(self) -> tuple[int, ...]:
        """See `Groups.report_shape`."""
        return ()


@dataclass(frozen=True)
class Labeled(_Joint):
    """One group per label; per-group numbers are a vector.

    Or one for each place along the first dimensions of all leaves, which are not
    measured together: a row of numbers.

    Attributes:
      members: the positions of each group's leaves.
      labels: what each group is called.
    """

    members: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]

    def _of_terms(self, op: Reduction, terms: list[Number]) -> Array:
        found = [self._combine(op, terms, members) for members in self.members]
        return jnp.stack(found) if found else jnp.zeros(0, jnp.float32)

    def spread(self, of_group: Array) -> list[Array]:
        """See `Groups.spread`."""
        if of_group.ndim == 0:
            return [of_group] * len(self.leaves)
        found: dict[int, Number] = {}
        for group, members in enumerate(self.members):
            # Otherwise the kernels of its leaves would each index the vector.
            number = computed_once(of_group[group])
            for i in members:
                last = range(number.ndim, self.leaves[i].ndim if number.ndim else 0)
                found[i] = jnp.expand_dims(number, tuple(last))
        return [found[i] for i in range(len(self.leaves))]

    def sizes(self) -> Array:
        """See `Groups.sizes`."""
        numbers = self._sizes()
        totals = [sum(numbers[i] for i in members) for members in self.members]
        return jnp.asarray(np.asarray(totals, self.dtype))

    def struct(self) -> jax.ShapeDtypeStruct:
        """See `Groups.struct`."""
        return jax.ShapeDtypeStruct(self.report_shape, self.dtype)

    @property
    def report_shape(self) -> tuple[int, ...]:
        """See `Groups.report_shape`."""
        return (len(self.members),)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """See `Groups.entries`."""
        return tuple(Entry(label, is_path=False) for label in self.labels)


for kind, fields in {Whole: [], Labeled: ["members", "labels"]}.items():
    register_dataclass(kind, ["leaves"], ["dims", "axes", *fields])
