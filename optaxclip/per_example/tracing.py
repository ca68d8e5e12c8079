"""Trace the gradient of one example, and evaluate the trace for a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from optaxclip.jaxprs import TracedProgram, evaluate_precisely
from optaxclip.leaves import counts
from optaxclip.per_example.batches import Batch, arrays_of, differing, each_leaf
from optaxclip.per_example.calls import EFFECTS, Atom
from optaxclip.per_example.linear import Linear
from optaxclip.per_example.origins import Origins
from optaxclip.per_example.plans import NO_PRODUCT, Plan, plan_leaf, plan_steps
from optaxclip.per_example.program import Program
from optaxclip.per_example.terms import Given, Shared
from optaxclip.per_example.ways import Factors, Kept, Squares, no_squares


class Recorded(NamedTuple):
    """What was recorded for each example; arrays have a leading axis of examples.

    Attributes:
      value: the loss.
      aux: the auxiliary output of the loss.
      ways: the way of each leaf.
      kept: the arrays that each leaf's way keeps.
    """

    value: jax.Array
    aux: PyTree
    ways: list[Linear | None]
    kept: list[Kept]

    def squares(self) -> list[Squares]:
        """Square the norm of each leaf's gradients."""
        none = no_squares(self.value)
        return [
            none if way is None else way.squares(held)
            for way, held in zip(self.ways, self.kept, strict=True)
        ]

    def added_up(self, params: PyTree) -> list[jax.Array]:
        """Sum each leaf's gradients as they are."""
        one = jnp.ones(self.value.shape, jnp.float32)
        factors = dict.fromkeys(range(len(self.ways)), (one, one))
        return self.totals(factors, one > 0, params)

    def totals(
        self, factors: dict[int, Factors], good: jax.Array, params: PyTree
    ) -> list[jax.Array]:
        """Sum each leaf's gradients, multiplied by the factors."""
        leaves = enumerate(jax.tree.leaves(params))
        return [
            jnp.zeros_like(leaf) if way is None else way.total(held, factors[i], good)
            for (i, leaf), way, held in zip(leaves, self.ways, self.kept, strict=True)
        ]


@dataclass(frozen=True)
class Traced:
    """The gradient of one example as a program, and a plan for each leaf.

    Attributes:
      whole: the program, as JAX has traced it.
      program: the same, written out.
      plans: the plan of each leaf.
      aux: the structure of the auxiliary output.
    """

    whole: TracedProgram
    program: Program
    plans: list[Plan]
    aux: Any

    def precisely(self, params: PyTree, example: Batch) -> list[jax.Array]:
        """Compute the gradient of one example; JAX traces nothing anew."""
        found = evaluate_precisely(self.whole, arrays_of((params, *example)))
        return found[len(found) - len(self.plans) :]

    def evaluate(
        self,
        params: PyTree,
        batch: Batch,
        in_axes: tuple[Any, ...],
        atoms: Sequence[Atom],
        alike: Callable[[Any], Sequence[Atom]] = lambda _: (),
        own: Any = None,
    ) -> tuple[jax.Array, PyTree, list[jax.Array], list[jax.Array]]:
        """Evaluate a batch.

        Args:
          params: the parameters.
          batch: the examples.
          in_axes: which arguments have an axis of examples.
          atoms: what is asked for each example.
          alike: returns what is asked that is the same for all, given its argument.
          own: the argument, with a leading axis of examples.

        Returns:
          the losses, the auxiliary outputs, the values of `atoms` and of `alike`.
        """
        outputs = self.program.outputs
        known = [*outputs[: len(outputs) - len(self.plans)], *atoms]

        def of_one(own: Any, *example: Any) -> tuple[list[Any], list[Any]]:
            args = arrays_of((params, *example))
            *found, _ = self.program.evaluate(args, [*known, *alike(own), EFFECTS])
            found = [jnp.asarray(x) for x in found]
            return found[: len(known)], found[len(known) :]

        each, found = jax.vmap(of_one, (0, *in_axes), (0, None))(own, *batch)
        first = len(known) - len(atoms)
        aux = jax.tree.unflatten(self.aux, each[1:first])
        return each[0], aux, each[first:], found

    def record(
        self, params: PyTree, batch: Batch, in_axes: tuple[Any, ...]
    ) -> Recorded:
        """Evaluate one forward and backward pass, up to the factors of products."""
        ways = [plan.way for plan in self.plans]
        atoms = [atom for way in ways if way is not None for atom in way.atoms]
        value, aux, found, _ = self.evaluate(params, batch, in_axes, atoms)
        values = self.shared_values(params, batch, in_axes)
        ways = [None if way is None else way.knowing(values) for way in ways]
        held = iter(found)
        kept = [
            () if way is None else way.hold([next(held) for _ in way.atoms])
            for way in ways
        ]
        return Recorded(value, aux, ways, kept)

    def shared_values(
        self, params: PyTree, batch: Batch, in_axes: tuple[Any, ...]
    ) -> dict[Atom, Any]:
        """Evaluate what all examples share; no example is given."""
        each = [way for plan in self.plans for way in (plan.way, plan.steps)]
        ways = [way for way in each if way is not None]
        atoms = list(dict.fromkeys(atom for way in ways for atom in way.shared))
        hidden = jax.ShapeDtypeStruct((), jnp.float32)
        given = each_leaf(lambda *_: hidden, in_axes, batch)
        args = [None if x is hidden else x for x in arrays_of((params, *given))]
        found = self.program.evaluate(args, atoms)
        return dict(zip(atoms, map(jnp.asarray, found), strict=True))


def _is_number(x: Any) -> bool:
    """Return whether an object is a number or an array."""
    return isinstance(x, jax.Array | np.ndarray | np.generic | complex | float | int)


def _told(x: Any) -> str:
    """Describe an object that is not a number."""
    return f"an array of {jnp.shape(x)}" if _is_number(x) else type(x).__name__


def _checked(result: Any, has_aux: bool) -> tuple[Any, Any]:
    """Return the number and the auxiliary output that a loss returned."""
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            "loss must return a pair (value, aux) where has_aux is True, not "
            f"{_told(result)}."
        )
    value: Any
    value, aux = result if has_aux else (result, None)
    if not _is_number(value) or jnp.shape(value):
        raise TypeError(
            f"loss must return one number for one example, not {_told(value)}; "
            "reduce it with a sum or mean over all but the examples, or set "
            "has_aux=True."
        )
    dtype = jnp.asarray(value).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            "loss must return a floating-point number, not one of type "
            f"{dtype}; convert it to float."
        )
    return value, aux


def trace(
    loss: Callable[..., Any],
    params: PyTree,
    example: Batch,
    has_aux: bool,
    in_axes: Any = 0,
) -> Traced:
    """Trace the gradient of one example, and plan each leaf."""
    leaves, treedef = jax.tree.flatten(example)

    def both(params: PyTree, *arrays: Any) -> tuple[Any, Any]:
        given = iter(arrays)
        parts = [next(given) if hasattr(x, "dtype") else x for x in leaves]
        example = jax.tree.unflatten(treedef, parts)
        return _checked(loss(params, *example), has_aux)

    # Under jit, JAX's caches would keep the constants of the loss alive.
    gradient = jax.value_and_grad(both, has_aux=True)
    whole, shape = jax.make_jaxpr(gradient, return_shape=True)(
        params, *arrays_of(example)
    )
    (_, aux), grads = shape
    program = Program(whole)
    number = len(jax.tree.leaves(grads))
    gradients = program.outputs[len(program.outputs) - number :]
    shared = len(program.inputs) - len(arrays_of(example))
    pairs = zip(leaves, differing(in_axes, example), strict=True)
    varies = [False] * shared + [own for x, own in pairs if hasattr(x, "dtype")]
    inputs = [
        Given(value) if v else Shared(value)
        for value, v in zip(program.inputs, varies, strict=True)
    ]
    terms = Origins(program, inputs, gradients)
    plans = [_plan(terms, atom) for atom in gradients]
    return Traced(whole, program, plans, jax.tree.structure(aux))


def _plan(terms: Origins, gradient: Atom) -> Plan:
    call = terms.closed_call(gradient)
    reason = f"it comes out of the call {call}, whose inside is not known"
    plan = plan_leaf(terms.of(gradient), gradient, reason if call else NO_PRODUCT)
    if plan.way is None:
        return plan
    return replace(plan, steps=plan_steps(terms.stacked.get(gradient), terms.inside))


def checked_params(params: PyTree) -> PyTree:
    """Convert the parameters to arrays; all must be floating-point."""
    for path, leaf in jax.tree.leaves_with_path(params):
        if not counts(leaf) and getattr(leaf, "size", None) != 0:
            name = jax.tree_util.keystr(path) or "itself"
            told = getattr(leaf, "dtype", type(leaf).__name__)
            raise TypeError(
                f"params must hold only floating-point arrays, but {name} is {told}; "
                "pass the rest to the loss in another way, such as a closure."
            )
    if not jax.tree.leaves(params):
        raise ValueError("params must hold at least one array, not none.")
    return jax.tree.map(
        lambda x: x if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x), params
    )
