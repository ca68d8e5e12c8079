"""Gradients that loops stack step by step, measured and summed where they arise.

The norms of all examples are taken from a step inside of the loop, and so is their
weighted sum. Thus neither inputs nor cotangents of all steps are held.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array

from optaxclip.per_example.assembly import Values, constant_of, put_together
from optaxclip.per_example.calls import Atom, Equation, Inner, Reduced, Value
from optaxclip.per_example.linear import Linear
from optaxclip.per_example.terms import Shared, Sum
from optaxclip.per_example.ways import Factors, Good, Squares, is_narrow


def rounded(held: Sequence[Array]) -> list[Array]:
    """Let the norm and the sum take the same values.

    XLA leaves out the rounding to a narrow type where it fuses what comes next. By that
    sums of bfloat16 exceeded their limit by 1e-4.
    """
    return [jax.lax.optimization_barrier(x) if is_narrow(x.dtype) else x for x in held]


# Takes arrays of all examples, and those that they share.
OfAll = Callable[[list[Array], list[Array]], Array]


@dataclass(frozen=True)
class Step:
    """What a loop stacks at every step.

    Attributes:
      loop: the loop.
      way: how this is clipped.
    """

    loop: Equation
    way: Linear

    def squares(self, added: Array | None) -> Inner:
        """Square each example's gradient, to which all may add something alike."""
        way, part, along = self.way, Value(None), () if added is None else (added,)
        if along:
            way = Linear(Sum((way.term, Shared(part))), way.norms)
        shared = [atom for atom in way.shared if atom is not part]
        known = [*shared, part]

        def of_all(own: list[Array], alike: list[Array]) -> Array:
            here = way.knowing(dict(zip(known, alike, strict=False)))
            return _packed(here.squares(here.hold(rounded(own))))

        each = _for_all(of_all, lambda found: found[0], True)
        return self._inner(each, way.atoms, shared, along)

    def total(self, factors: tuple[Array, Array], good: Array) -> Inner:
        """Sum the gradients of good examples, multiplied by an example's factors."""
        way = self.way

        def of_all(own: list[Array], alike: list[Array]) -> Array:
            *held, first, second, fine = own
            here = way.knowing(dict(zip(way.shared, alike, strict=True)))
            return here.total(here.hold(rounded(held)), (first, second), fine)

        summed = _for_all(of_all, lambda found: found, False)

        def of_one(own: list[Array], alike: list[Array]) -> Array:
            return summed([*own, *factors, good], alike)

        return self._inner(of_one, way.atoms, way.shared, ())

    def _inner(
        self,
        of_one: OfAll,
        own: Sequence[Atom],
        shared: Sequence[Atom],
        along: tuple[Array, ...],
    ) -> Inner:
        def run(*values: Any) -> Array:
            arrays = [jnp.asarray(x) for x in values]  # Literals are no arrays yet.
            return of_one(arrays[: len(own)], arrays[len(own) :])

        return Inner(self.loop, Reduced((*own, *shared), run, along=along), None)


def _for_all(
    of_all: OfAll, of_one: Callable[[Array], Array], by_example: bool
) -> OfAll:
    """Let `jax.vmap` hand all examples to a function at once."""

    @custom_vmap
    def one(own: list[Array], alike: list[Array]) -> Array:
        return of_one(of_all([x[None] for x in own], alike))

    @one.def_vmap
    def _(
        size: int, batched: Any, own: list[Array], alike: list[Any]
    ) -> tuple[Array, bool]:
        own = [
            x if has_axis else jnp.broadcast_to(x, (size, *x.shape))
            for x, has_axis in zip(own, batched[0], strict=True)
        ]
        pairs = zip(alike, batched[1], strict=True)
        alike = [jnp.asarray(x[0] if has_axis else x) for x, has_axis in pairs]
        return of_all(own, alike), by_example

    return one


@jax.jit
def _packed(found: Squares) -> Array:
    """Put the squares, their errors and which are not zero in one array."""
    none = jnp.zeros_like(found.total)
    error = none if found.error is None else found.error
    some = none + 1 if found.zero is None else ~found.zero
    return jnp.stack([found.total, error, some.astype(none.dtype)], axis=-1)


@dataclass(frozen=True)
class Stepwise:
    """A gradient that is put together from what loops stack.

    Its norm is that of all of this, but for what all examples add alike.

    Attributes:
      outer: how it is put together.
      steps: the step that stacks each of its cuts.
    """

    outer: Linear
    steps: tuple[Step, ...]

    @property
    def shared(self) -> tuple[Atom, ...]:
        """The values that all examples share."""
        return self.outer.shared

    def knowing(self, values: Values) -> "Stepwise":
        """Return the same, with the shared values."""
        return replace(self, outer=self.outer.knowing(values))

    @functools.cached_property
    def _added(self) -> tuple[Array, Sequence[Array]] | None:
        return self.outer.constant() if constant_of(self.outer.term) else None

    def each(self) -> list[Atom]:
        """Return what is to be evaluated for each example."""
        added = [None] * len(self.steps) if self._added is None else self._added[1]
        inner = [s.squares(x) for s, x in zip(self.steps, added, strict=True)]
        return [Reduced((x,), lambda found: jnp.sum(found, axis=0)) for x in inner]

    def alike(self, factors: tuple[Array, Array], good: Array) -> list[Atom]:
        """Return what is to be evaluated for all, given the factors of an example."""
        return [step.total(factors, good) for step in self.steps]

    def squares(self, found: Sequence[Array]) -> Squares:
        """Return the squared norms, given the values of `each`."""
        total, error, some = jnp.moveaxis(sum(found[1:], found[0]), -1, 0)
        if self._added is not None:
            total = total + self._beyond(*self._added)
        return Squares(total, error, some == 0)

    def _beyond(self, alone: Array, back: Sequence[Array]) -> Array | float:
        """Square what all examples add where no loop stacks anything."""
        if sum(x.size for x in back) == math.prod(alone.shape):
            return 0.0
        within = put_together(self.outer.term, back, self.outer.values, 0.0)
        return jnp.sum(jnp.square(alone - within))

    def total(self, found: Sequence[Array], factors: Factors, good: Good) -> Array:
        """Return the weighted sum, given the values of `each` and of `alike`."""
        sums = found[len(self.steps) :]
        return self.outer.put_together(sums, factors, good)
