"""Two passes for losses that rematerialize: first the norms, then the weighted sum.

A loss that computes its layers again holds little. If their inputs and cotangents were
kept for the sum, all of that would be lost. Instead each layer's gradient is measured
where it arises, also inside a loop, and kept nowhere; when the factors are known, all
is computed again, and summed where it arises. That takes about twice the time, for any
number of limits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from optaxclip.mesh import vary, varying_axes
from optaxclip.per_example.assembly import Values
from optaxclip.per_example.batches import Batch, without_bad
from optaxclip.per_example.calls import Atom
from optaxclip.per_example.decisions import LeafGroups
from optaxclip.per_example.linear import Linear
from optaxclip.per_example.microbatches import differences
from optaxclip.per_example.stepwise import rounded
from optaxclip.per_example.tracing import Traced
from optaxclip.per_example.ways import Factors, Good, Squares, no_squares


@dataclass(frozen=True)
class Outside:
    """A gradient of which no loop stacks the steps, with the interface of `Stepwise`.

    Attributes:
      way: how it is clipped.
    """

    way: Linear
    steps: tuple[Any, ...] = ()

    def knowing(self, values: Values) -> "Outside":
        """Return the same, with the shared values."""
        return Outside(self.way.knowing(values))

    def each(self) -> Sequence[Atom]:
        """Return what is to be evaluated for each example."""
        return self.way.atoms

    def alike(
        self, factors: tuple[jax.Array, jax.Array], good: jax.Array
    ) -> Sequence[Atom]:
        """Return what is to be evaluated for all."""
        return ()

    def squares(self, found: Sequence[jax.Array]) -> Squares:
        """Return the squared norms."""
        return self.way.squares(self.way.hold(found))

    def total(
        self, found: Sequence[jax.Array], factors: Factors, good: Good
    ) -> jax.Array:
        """Return the weighted sum."""
        return self.way.total(self.way.hold(found), factors, good)


@dataclass(frozen=True)
class Twice:
    """The norms of a first pass, and what the second takes.

    Attributes:
      run: evaluates a batch, given the factors of each group, and which are good.
      batch: the examples.
      in_axes: which arguments have an axis of examples.
      groups: the leaves that are measured together.
      value: the losses.
      aux: the auxiliary outputs.
      found: the squared norms of each leaf's gradients.
    """

    run: Callable[[Batch, list[Factors], Good], Any]
    batch: Batch
    in_axes: tuple[Any, ...]
    groups: LeafGroups
    value: jax.Array
    aux: PyTree
    found: list[Squares]

    def squares(self) -> list[Squares]:
        """Return the squared norms of each leaf's gradients."""
        return self.found

    def totals(
        self, factors: dict[int, Factors], good: Good, params: PyTree
    ) -> list[jax.Array]:
        """Sum each leaf's gradients, multiplied by the factors.

        Zeros take the place of bad examples. So what is computed depends on the first
        pass, and XLA does not hold the values of this to use them again.
        """
        batch = without_bad(self.in_axes, self.batch, good)
        pairs = [factors[group[0]] for group in self.groups if group]
        *_, totals = self.run(batch, pairs, good)
        leaves = jax.tree.leaves(params)
        return [
            jnp.zeros_like(leaf) if total is None else total
            for leaf, total in zip(leaves, totals, strict=True)
        ]


def in_two_passes(
    traced: Traced,
    params: PyTree,
    batch: Batch,
    in_axes: tuple[Any, ...],
    groups: LeafGroups,
    mask: jax.Array,
    dtype: np.dtype,
) -> Twice:
    """Measure the gradients of a batch, holding none of them.

    Both passes are traced as one, and XLA leaves out what each does not need.
    """
    _, together = differences(in_axes, batch)

    @jax.jit
    def both(params: PyTree, own: list[Any], factors: list[Factors], good: Good) -> Any:
        return _evaluated(traced, params, together(own), in_axes, groups, factors, good)

    def run(batch: Batch, factors: list[Factors], good: Good) -> Any:
        own, _ = differences(in_axes, batch)
        return both(params, own, factors, good)

    one = vary(jnp.ones(mask.shape, dtype), varying_axes(mask))
    none = [(one, one) for group in groups if group]
    value, aux, squares, _ = run(batch, none, mask)
    return Twice(run, batch, in_axes, groups, value, aux, squares)


def _evaluated(
    traced: Traced,
    params: PyTree,
    batch: Batch,
    in_axes: tuple[Any, ...],
    groups: LeafGroups,
    factors: list[Factors],
    good: Good,
) -> tuple[jax.Array, PyTree, list[Squares], list[jax.Array | None]]:
    """Return losses, auxiliary outputs, squares and weighted sums of the gradients."""
    shared = traced.shared_values(params, batch, in_axes)
    leaves = {
        i: (plan.steps or Outside(plan.way)).knowing(shared)
        for i, plan in enumerate(traced.plans)
        if plan.way is not None
    }
    group_of = {i: k for k, group in enumerate(filter(None, groups)) for i in group}
    each = {i: leaf.each() for i, leaf in leaves.items()}
    asked = [atom for atoms in each.values() for atom in atoms]

    def alike(own: tuple[list[Any], jax.Array]) -> list[Atom]:
        pairs, good = own
        found = (leaf.alike(pairs[group_of[i]], good) for i, leaf in leaves.items())
        return [atom for atoms in found for atom in atoms]

    own = factors, good
    value, aux, found, sums = traced.evaluate(params, batch, in_axes, asked, alike, own)
    values, sums = iter(rounded(found)), iter(sums)
    squares = [no_squares(value) for _ in traced.plans]
    totals: list[jax.Array | None] = [None for _ in traced.plans]
    for i, leaf in leaves.items():
        here = [next(values) for _ in each[i]]
        squares[i] = leaf.squares(here)
        here += [next(sums) for _ in leaf.steps]
        totals[i] = leaf.total(here, factors[group_of[i]], good)
    return value, aux, squares, totals
