"""One rule per primitive: its output as a sum of products."""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal
from jax.lax import GatherScatterMode

from optaxclip.per_example.program import Atom, aval_of
from optaxclip.per_example.terms import (
    Axis,
    Convolution,
    Factor,
    Opaque,
    Product,
    Step,
    Term,
)

Walk = Callable[[Atom], list[Term]]
Rule = Callable[[JaxprEqn, Walk], list[Term]]


def is_float(atom: Atom) -> bool:
    """Return whether an atom holds real floating-point numbers."""
    return jnp.issubdtype(aval_of(atom).dtype, jnp.floating)


def is_zero(atom: Atom) -> bool:
    """Return whether an atom is known to be zero."""
    return isinstance(atom, Literal) and bool(np.all(np.asarray(atom.val) == 0))


def _dot_general(eqn: JaxprEqn, walk: Walk) -> list[Term]:
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left = [Axis(n) for n in aval_of(eqn.invars[0]).shape]
    right = [Axis(n) for n in aval_of(eqn.invars[1]).shape]
    for mine, yours in zip(
        (*left_sum, *left_batch), (*right_sum, *right_batch), strict=True
    ):
        right[yours] = left[mine]
    axes = [left[d] for d in left_batch]
    axes += [a for d, a in enumerate(left) if d not in (*left_sum, *left_batch)]
    axes += [a for d, a in enumerate(right) if d not in (*right_sum, *right_batch)]
    return [
        Product(
            Factor(eqn.invars[0], tuple(left)),
            Factor(eqn.invars[1], tuple(right)),
            tuple(axes),
        )
    ]


def _scatter_add(eqn: JaxprEqn, walk: Walk) -> list[Term]:
    """Adding rows to a table is a product: one-hot indices times the rows."""
    table, indices, rows = (aval_of(atom) for atom in eqn.invars)
    numbers = eqn.params["dimension_numbers"]
    into = numbers.scatter_dims_to_operand_dims
    window = [d for d in range(table.ndim) if d not in numbers.inserted_window_dims]
    whole = all(
        rows.shape[d] == table.shape[o]
        for d, o in zip(numbers.update_window_dims, window, strict=False)
    )
    if (
        numbers.operand_batching_dims
        or set(into) != set(numbers.inserted_window_dims)
        or not whole
    ):
        return [Opaque("only whole rows of a table have a rule")]
    axes = [Axis(n) for n in table.shape]
    times = iter(Axis(n) for n in indices.shape[:-1])
    found = iter(window)
    among = [
        axes[next(found)] if d in numbers.update_window_dims else next(times)
        for d in range(rows.ndim)
    ]
    where = [a for d, a in enumerate(among) if d not in numbers.update_window_dims]
    index = Factor(
        eqn.invars[1],
        (*where, Axis(len(into))),
        rows=tuple(axes[d] for d in into),
        drops=eqn.params["mode"] != GatherScatterMode.CLIP,
    )
    product = Product(index, Factor(eqn.invars[2], tuple(among)), tuple(axes))
    return [*walk(eqn.invars[0]), product]


def _convolution(eqn: JaxprEqn, walk: Walk) -> list[Term]:
    if eqn.params["feature_group_count"] != 1:
        return [Opaque("a convolution of grouped batches has no rule")]
    shapes = tuple(aval_of(atom).shape for atom in (*eqn.invars, *eqn.outvars))
    return [Convolution(eqn.invars[0], eqn.invars[1], shapes, eqn.params)]


def _each(
    terms: list[Term], change: Callable[[Product], Term], step: Step | None
) -> list[Term]:
    """Change the terms of another gradient: products by `change`, or else by a step."""
    found: list[Term] = []
    for term in terms:
        if isinstance(term, Product) and not term.steps:
            found.append(change(term))
        elif isinstance(term, Product | Convolution) and step is not None:
            found.append(replace(term, steps=(*term.steps, step)))
        elif isinstance(term, Opaque):
            found.append(term)
        else:
            found.append(Opaque("its products cannot be told apart"))
    return found


def _step(eqn: JaxprEqn, walk: Walk) -> list[Term]:
    """Operations that keep the norm are applied once, to the sum over all examples."""
    (inside,), (outside,) = eqn.invars[:1], eqn.outvars
    if aval_of(inside).size != aval_of(outside).size:
        return _zeros(eqn, walk)
    if not is_float(inside):
        return [Opaque("it is not made of floating-point numbers")]
    step = Step(eqn.primitive, eqn.params)
    return _each(walk(inside), lambda p: replace(p, steps=(step,)), step)


def _zeros(eqn: JaxprEqn, walk: Walk) -> list[Term]:
    made_of = [is_zero(atom) for atom in eqn.invars]
    return (
        []
        if all(made_of)
        else [Opaque(f"it is made by {eqn.primitive.name}, which has no rule")]
    )


def _transpose(eqn: JaxprEqn, walk: Walk) -> list[Term]:
    order = eqn.params["permutation"]
    return _each(
        walk(eqn.invars[0]),
        lambda p: replace(p, axes=tuple(p.axes[d] for d in order)),
        Step(eqn.primitive, eqn.params),
    )


def _reduce_sum(eqn: JaxprEqn, walk: Walk) -> list[Term]:
    """Summing a product over an axis makes it another summed axis of its factors."""
    gone = eqn.params["axes"]
    found = _each(
        walk(eqn.invars[0]),
        lambda p: replace(
            p, axes=tuple(a for d, a in enumerate(p.axes) if d not in gone)
        ),
        None,
    )
    if all(isinstance(term, Opaque) for term in found):
        return [Opaque("it is a sum over positions, as of a bias or a scale")]
    return found


def _scaled(eqn: JaxprEqn, walk: Walk) -> list[Term]:
    first, second = eqn.invars
    number, atom = (first, second) if isinstance(first, Literal) else (second, first)
    if not isinstance(number, Literal) or np.ndim(number.val) != 0:
        return [Opaque(f"it is made by {eqn.primitive.name}")]
    factor = float(number.val)
    if eqn.primitive.name == "div":
        if number is first or factor == 0:
            return [Opaque("it is made by div")]
        factor = 1 / factor
    return _each(walk(atom), lambda p: replace(p, scale=p.scale * factor), None)


RULES: dict[str, Rule] = {
    "dot_general": _dot_general,
    "scatter-add": _scatter_add,
    "conv_general_dilated": _convolution,
    "transpose": _transpose,
    "reduce_sum": _reduce_sum,
    "mul": _scaled,
    "div": _scaled,
    "reshape": _step,
    "squeeze": _step,
    "expand_dims": _step,
    "broadcast_in_dim": _step,
    "convert_element_type": _step,
    "copy": _step,
    "neg": _step,
}
