"""Two passes for losses that rematerialize: first the norms, then the weighted sum.

A loss that computes its layers again holds little. If their inputs and cotangents were
kept for the sum, all of that would be lost. Instead each layer's gradient is measured
where it arises, also inside a loop, and kept nowhere; the plain gradient of the losses,
each multiplied by its factor, is the sum. That takes about twice the time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from optaxclip.numbers import multiply
from optaxclip.per_example.batches import Batch, replaced
from optaxclip.per_example.calls import Atom, Inner, Reduced
from optaxclip.per_example.decisions import LeafGroups
from optaxclip.per_example.linear import Linear
from optaxclip.per_example.plans import Plan
from optaxclip.per_example.tracing import Traced
from optaxclip.per_example.ways import Factors, Squares, no_squares, power_of_two


@dataclass(frozen=True)
class Twice:
    """The norms of a first pass, and what the second takes.

    Attributes:
      loss: the loss of one example, without an auxiliary output.
      params: the parameters.
      batch: the examples.
      in_axes: which arguments have an axis of examples.
      value: the losses.
      aux: the auxiliary outputs.
      found: the squared norms of each leaf's gradients.
    """

    loss: Callable[..., Any]
    params: PyTree
    batch: Batch
    in_axes: tuple[Any, ...]
    value: jax.Array
    aux: PyTree
    found: list[Squares]

    def squares(self) -> list[Squares]:
        """Return the squared norms of each leaf's gradients."""
        return self.found

    def totals(
        self, factors: dict[int, Factors], good: jax.Array, params: PyTree
    ) -> list[jax.Array]:
        """Sum each leaf's gradients, multiplied by the factors.

        What is not finite would spoil the sum even if it were multiplied by 0, so that
        a good example takes the place of a bad one. The unit of the first factors is
        kept apart, since the product of both factors may underflow.
        """
        batch = replaced(self.in_axes, self.batch, good)

        def losses(params: PyTree) -> jax.Array:
            return jax.vmap(self.loss, (None, *self.in_axes))(params, *batch)

        values, back = jax.vjp(losses, self.params)
        some = jnp.any(good)
        sums: dict[int, tuple[jax.Array, list[jax.Array]]] = {}
        found = []
        for i, leaf in enumerate(jax.tree.leaves(params)):
            pair = factors.get(i)
            if pair is None:
                found.append(jnp.zeros_like(leaf))
                continue
            if id(pair) not in sums:
                unit = power_of_two(jnp.max(jnp.where(good, pair[0], 0), initial=0.0))
                weights = jnp.where(good, pair[0] / unit * pair[1], 0)
                found_by = back(weights.astype(values.dtype))[0]
                sums[id(pair)] = unit, jax.tree.leaves(found_by)
            unit, leaves = sums[id(pair)]
            found.append(_multiplied(leaves[i], unit, some))
        return found


@jax.jit
def _multiplied(leaf: jax.Array, unit: jax.Array, some: jax.Array) -> jax.Array:
    """Multiply by the unit of the factors; zeros if no example is good."""
    total = multiply(leaf, unit.astype(leaf.dtype))
    return jnp.where(some, total, jnp.zeros_like(total))


def runs_twice(traced: Traced, groups: LeafGroups) -> bool:
    """Return whether a loss is better clipped in two passes.

    Each limit takes a backward pass; and what is computed in less than float32 would
    round the factors and the sum, by more than one example may add to it.
    """
    program = traced.program
    return program.rematerializes and len(groups) <= 2 and not program.narrow


def in_two_passes(
    traced: Traced,
    loss: Callable[..., Any],
    params: PyTree,
    batch: Batch,
    in_axes: tuple[Any, ...],
) -> Twice:
    """Measure the gradients of a batch, holding none of them."""
    parts = [_parts(plan) for plan in traced.plans]
    wanted = [atom for atoms, _ in parts for atom in atoms]
    shared = traced.shared_values(params, batch)
    value, aux, found = traced.evaluate(params, batch, in_axes, wanted)
    values = iter(found)
    squares = []
    for atoms, way in parts:
        here = [next(values) for _ in atoms]
        if way is not None:
            way = way.knowing(shared)
            squares.append(way.squares(way.hold(here)))
        elif here:
            total, error, some = jnp.moveaxis(here[0], 1, 0)
            squares.append(Squares(total, error, some == 0))
        else:
            squares.append(no_squares(value))
    return Twice(loss, params, batch, in_axes, value, aux, squares)


def _parts(plan: Plan) -> tuple[tuple[Atom, ...], Linear | None]:
    """Return what is to be evaluated, and the way by which it is squared afterwards."""
    if plan.way is None:
        return (), None
    if plan.inside is not None:
        loop, each = plan.inside
        # Without norms, gradients are formed one after another.
        if each.way is not None and each.way.norms is not None:
            inner = Inner(loop, _squares_of(each.way), None)
            return (Reduced((inner,), lambda x: jnp.sum(x, axis=0)),), None
    return plan.way.atoms, plan.way


def _squares_of(way: Linear) -> Reduced:
    """Square the gradient of one example as soon as its factors are known."""
    number = len(way.atoms)

    def run(*values: Any) -> jax.Array:
        arrays = [jax.lax.expand_dims(x, (0,)) for x in values[:number]]
        shared = dict(zip(way.shared, map(jnp.asarray, values[number:]), strict=True))
        knowing = way.knowing(shared)
        return _packed(knowing.squares(knowing.hold(arrays)))

    return Reduced((*way.atoms, *way.shared), run)


@jax.jit
def _packed(found: Squares) -> jax.Array:
    """Put the squares, their errors and which are not zero in one array."""
    none = jnp.zeros_like(found.total)
    error = none if found.error is None else found.error
    some = none + 1 if found.zero is None else ~found.zero
    return jnp.concatenate([found.total, error, some.astype(none.dtype)])
