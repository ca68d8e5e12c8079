"""Sums over examples of what is held, put together to the gradient of a leaf."""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from optaxclip.numbers import widest
from optaxclip.per_example.calls import Atom
from optaxclip.per_example.rules import JOINTLY
from optaxclip.per_example.terms import Cut, Made, Shared, Sum, Term, in_order

Values = Mapping[Atom, Array]


def cuts_of(term: Term) -> list[Cut]:
    """List the products and values that a term is made of."""
    return [x for x in in_order(term) if not isinstance(x, Shared | Made | Sum)]


def dtype_of(cut: Cut) -> np.dtype:
    """Return the type of the sum over examples of a cut, at least float32."""
    dtypes = (factor.atom.aval.dtype for factor in cut.factors)
    return widest(*(d for d in dtypes if jnp.issubdtype(d, jnp.floating)))


def shared_by(term: Term) -> list[Atom]:
    """List the values of all examples that a term needs."""
    atoms = (x.atom for x in in_order(term) if isinstance(x, Shared))
    return [atom for atom in atoms if atom is not None]


def put_together(
    term: Term, cuts: Sequence[Array], shared: Values, *count: Array | float
) -> Array:
    """Evaluate a term, given sums over examples of its cuts.

    Args:
      term: the term.
      cuts: one array for each of `cuts_of(term)`.
      shared: the values of `shared_by(term)`.
      *count: by what to multiply what all examples add alike, one after another, since
        the product may underflow.
    """
    given = iter(cuts)
    known: dict[int, Any] = {}

    def added(each: Term) -> Any:
        if not isinstance(each, Shared):
            return known[id(each)]
        if each.atom is None:
            return None
        return functools.reduce(operator.mul, count, known[id(each)])

    for each in in_order(term):
        if isinstance(each, Shared):
            found = None if each.atom is None else shared[each.atom]
        elif isinstance(each, Sum):
            parts = [x for x in map(added, each.operands) if x is not None]
            with jax.numpy_dtype_promotion("standard"):
                found = sum(parts[1:], parts[0])
        elif isinstance(each, Made):
            found = _run(each, [known[id(x)] for x in each.operands], added)
        else:
            found = next(given)
        known[id(each)] = found
    return added(term)


def _run(made: Made, values: list[Any], added: Any) -> Array:
    """Evaluate an equation in the type of the sums, which is at least float32."""
    inputs = made.equation.inputs
    among = range(len(inputs))[JOINTLY.get(made.equation.name, slice(0))]
    for i in among:
        values[i] = added(made.operands[i])
    varying = [
        x.dtype
        for x, term in zip(values, made.operands, strict=True)
        if not isinstance(term, Shared)
    ]
    dtype = widest(*varying)
    for i, atom in enumerate(inputs):
        if values[i] is None:
            values[i] = jnp.zeros(atom.aval.shape, atom.aval.dtype)
        if jnp.issubdtype(atom.aval.dtype, jnp.floating):
            values[i] = jnp.asarray(values[i], dtype)

    def once(*values: Array) -> Array:
        return _bound(made, values)

    function = once
    for level in made.levels:
        function = jax.vmap(function, [0 if stacked else None for stacked in level])
    return function(*values)


def _bound(made: Made, values: Sequence[Array]) -> Array:
    equation, dtype = made.equation, values[0].dtype
    if equation.name == "convert_element_type":
        return values[0].astype(widest(dtype, equation.params["new_dtype"]))
    if equation.name == "scatter-add":  # Its parameters name the type.
        names = "indices_are_sorted", "unique_indices", "mode"
        params = {name: equation.params[name] for name in names}
        numbers = equation.params["dimension_numbers"]
        table, indices, rows = values
        return jax.lax.scatter_add(table, indices, rows, numbers, **params)
    changed: dict[str, Any] = {}
    if "preferred_element_type" in equation.params:
        changed["preferred_element_type"] = None
    return equation.run(values, **changed)[made.output]


def constant_of(term: Term) -> bool:
    """Return whether all examples add something alike."""
    if isinstance(term, Shared):
        return term.atom is not None
    for each in in_order(term):
        linear: list[Term] = []
        if isinstance(each, Sum):
            linear = list(each.operands)
        elif isinstance(each, Made):
            among = JOINTLY.get(each.equation.name, slice(0))
            linear = list(each.operands[among])
        if any(isinstance(x, Shared) and x.atom is not None for x in linear):
            return True
    return False
