"""Trace the gradient of one example, and evaluate the trace for a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from optaxclip.leaves import counts
from optaxclip.per_example.batches import Batch, arrays_of
from optaxclip.per_example.plans import Plan, plan_leaf
from optaxclip.per_example.program import Program
from optaxclip.per_example.ways import Kept


class Recorded(NamedTuple):
    """What was recorded for each example; arrays have a leading axis of examples.

    Attributes:
      value: the loss.
      aux: the auxiliary output of the loss.
      kept: the arrays that each leaf's way keeps.
    """

    value: jax.Array
    aux: PyTree
    kept: list[Kept]


@dataclass(frozen=True)
class Traced:
    """The gradient of one example as a program, and a plan for each leaf."""

    program: Program
    plans: list[Plan]
    aux: Any

    def record(
        self, params: PyTree, batch: Batch, in_axes: tuple[Any, ...]
    ) -> Recorded:
        """Evaluate one forward and backward pass, up to the factors of products."""
        outvars = self.program.jaxpr.outvars
        known = outvars[: len(outvars) - len(self.plans)]
        ways = [plan.way for plan in self.plans]
        wanted = [atom for way in ways if way is not None for atom in way.atoms]

        def evaluate(*example: Any) -> list[Any]:
            args = arrays_of((params, *example))
            found = self.program.evaluate(args, [*known, *wanted])
            return [jnp.asarray(x) for x in found]

        found = jax.vmap(evaluate, in_axes)(*batch)
        values = iter(found[len(known) :])
        kept = [
            () if way is None else way.hold([next(values) for _ in way.atoms])
            for way in ways
        ]
        aux = jax.tree.unflatten(self.aux, found[1 : len(known)])
        return Recorded(found[0], aux, kept)


def _is_number(x: Any) -> bool:
    """Return whether an object is a number or an array."""
    return isinstance(x, jax.Array | np.ndarray | np.generic | complex | float | int)


def _told(x: Any) -> str:
    """Describe an object that is not a number."""
    return f"an array of {jnp.shape(x)}" if _is_number(x) else type(x).__name__


def trace(
    loss: Callable[..., Any], params: PyTree, example: Batch, has_aux: bool
) -> Traced:
    """Trace the gradient of one example, and plan each leaf."""
    leaves, treedef = jax.tree.flatten(example)

    def both(params: PyTree, *arrays: Any) -> tuple[Any, Any]:
        given = iter(arrays)
        parts = [next(given) if hasattr(x, "dtype") else x for x in leaves]
        example = jax.tree.unflatten(treedef, parts)
        result = loss(params, *example)
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

    gradient = jax.value_and_grad(both, has_aux=True)
    closed, shape = jax.make_jaxpr(gradient, return_shape=True)(
        params, *arrays_of(example)
    )
    (_, aux), grads = shape
    program = Program(closed)
    outs = program.jaxpr.outvars
    number = len(jax.tree.leaves(grads))
    plans = [plan_leaf(program, atom) for atom in outs[len(outs) - number :]]
    return Traced(program, plans, jax.tree.structure(aux))


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
