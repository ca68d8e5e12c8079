"""Where does a gradient come from? Walked back to the products it is a sum of.

Whatever a rule below does not recognize is opaque, and the gradient taken as JAX
computes it; so a missing rule costs time and memory, and is never wrong.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal
from jax.lax import GatherScatterMode

from optaxclip.per_example.program import Atom, Choice, Inlined, Loop, Program
from optaxclip.per_example.terms import (
    Axis,
    Convolution,
    Factor,
    Opaque,
    Passed,
    Product,
    Step,
    Term,
)

Rule = Callable[[Program, JaxprEqn], list[Term]]


def origins(program: Program, atom: Atom) -> list[Term]:
    """Find the terms whose sum a gradient is."""
    found: list[Term] = []
    ahead = [atom]
    while ahead:
        atom = ahead.pop()
        eqn = None if isinstance(atom, Literal) else program.producer.get(atom)
        if eqn is not None and eqn.primitive.name in SUMS:
            ahead += reversed(eqn.invars)
        else:
            found += _origins_of_summand(program, atom, eqn)
    return found


def _origins_of_summand(
    program: Program, atom: Atom, eqn: JaxprEqn | None
) -> list[Term]:
    if isinstance(atom, Literal):
        return [] if _is_zero(atom) else [Opaque("it is a constant")]
    if eqn is None:
        known = atom in program.jaxpr.invars
        return [Passed(atom) if known else Opaque("it is a constant")]
    call = program.call(eqn)
    if isinstance(call, Inlined):
        return _through_call(program, call, eqn.outvars.index(atom))
    if isinstance(call, Loop):
        return _through_loop(program, call, eqn.outvars.index(atom))
    if isinstance(call, Choice):
        return _through_choice(call, eqn.outvars.index(atom))
    rule = RULES.get(eqn.primitive.name)
    if rule is None or not is_float(eqn.outvars[0]):
        return [Opaque(f"it is made by {eqn.primitive.name}, which has no rule")]
    return rule(program, eqn)


def is_float(atom: Atom) -> bool:
    """Tell whether an atom holds real floating-point numbers."""
    return jnp.issubdtype(atom.aval.dtype, jnp.floating)


def _is_zero(atom: Atom) -> bool:
    return isinstance(atom, Literal) and bool(np.all(np.asarray(atom.val) == 0))


def _dot_general(program: Program, eqn: JaxprEqn) -> list[Term]:
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left = [Axis(n) for n in eqn.invars[0].aval.shape]
    right = [Axis(n) for n in eqn.invars[1].aval.shape]
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


def _scatter_add(program: Program, eqn: JaxprEqn) -> list[Term]:
    """Rows added to a table: a one at each index, times the row."""
    table, indices, rows = (atom.aval for atom in eqn.invars)
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
        drops=eqn.params["mode"] == GatherScatterMode.FILL_OR_DROP,
    )
    product = Product(index, Factor(eqn.invars[2], tuple(among)), tuple(axes))
    return [*origins(program, eqn.invars[0]), product]


def _convolution(program: Program, eqn: JaxprEqn) -> list[Term]:
    if eqn.params["feature_group_count"] != 1:
        return [Opaque("a convolution of grouped batches has no rule")]
    shapes = tuple(atom.aval.shape for atom in (*eqn.invars, *eqn.outvars))
    return [Convolution(eqn.invars[0], eqn.invars[1], shapes, eqn.params)]


def _each(
    program: Program, atom: Atom, change: Callable[[Product], Term], step: Step | None
) -> list[Term]:
    """Change the terms of another gradient, products at best in their axes."""
    found: list[Term] = []
    for term in origins(program, atom):
        if isinstance(term, Product) and not term.steps:
            found.append(change(term))
        elif isinstance(term, Product | Convolution) and step is not None:
            found.append(replace(term, steps=(*term.steps, step)))
        elif isinstance(term, Opaque):
            found.append(term)
        else:
            found.append(Opaque("its products cannot be told apart"))
    return found


def _step(program: Program, eqn: JaxprEqn) -> list[Term]:
    """What keeps the norm is done once, to the sum over all examples."""
    (inside,), (outside,) = eqn.invars[:1], eqn.outvars
    if inside.aval.size != outside.aval.size:
        return _zeros(program, eqn)
    if not is_float(inside):
        return [Opaque("it is not made of floating-point numbers")]
    step = Step(eqn.primitive, eqn.params)
    return _each(program, inside, lambda p: replace(p, steps=(step,)), step)


def _zeros(program: Program, eqn: JaxprEqn) -> list[Term]:
    made_of = [_is_zero(atom) for atom in eqn.invars]
    return (
        []
        if all(made_of)
        else [Opaque(f"it is made by {eqn.primitive.name}, which has no rule")]
    )


def _transpose(program: Program, eqn: JaxprEqn) -> list[Term]:
    order = eqn.params["permutation"]
    return _each(
        program,
        eqn.invars[0],
        lambda p: replace(p, axes=tuple(p.axes[d] for d in order)),
        Step(eqn.primitive, eqn.params),
    )


def _reduce_sum(program: Program, eqn: JaxprEqn) -> list[Term]:
    """An axis of a product that is summed over is one more that its factors share."""
    gone = eqn.params["axes"]
    found = _each(
        program,
        eqn.invars[0],
        lambda p: replace(
            p, axes=tuple(a for d, a in enumerate(p.axes) if d not in gone)
        ),
        None,
    )
    if all(isinstance(term, Opaque) for term in found):
        return [Opaque("it is a sum over positions, as of a bias or a scale")]
    return found


def _scaled(program: Program, eqn: JaxprEqn) -> list[Term]:
    first, second = eqn.invars
    number, atom = (first, second) if isinstance(first, Literal) else (second, first)
    if not isinstance(number, Literal) or np.ndim(number.val) != 0:
        return [Opaque(f"it is made by {eqn.primitive.name}")]
    factor = float(number.val)
    if eqn.primitive.name == "div":
        if number is first:
            return [Opaque("it is made by div")]
        factor = 1 / factor
    return _each(program, atom, lambda p: replace(p, scale=p.scale * factor), None)


SUMS = ("add_any", "add")

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


def _through_call(program: Program, call: Inlined, position: int) -> list[Term]:
    found: list[Term] = []
    for term in origins(call.program, call.program.jaxpr.outvars[position]):
        if isinstance(term, Passed):
            found += origins(program, call.outside(term.atom))
        else:
            found.append(_renamed(term, call.outside))
    return found


def _renamed(term: Term, outside: Callable[[Atom], Atom]) -> Term:
    if isinstance(term, Product):
        left = replace(term.left, atom=outside(term.left.atom))
        right = replace(term.right, atom=outside(term.right.atom))
        return replace(term, left=left, right=right)
    if isinstance(term, Convolution):
        return replace(
            term, image=outside(term.image), cotangent=outside(term.cotangent)
        )
    return term


def _through_choice(call: Choice, position: int) -> list[Term]:
    found: list[Term] = []
    for branch, program in enumerate(call.programs):
        for term in origins(program, program.jaxpr.outvars[position]):
            if isinstance(term, Passed):
                return [Opaque("a branch passes it on")]
            found.append(_renamed(term, partial(call.outside, branch)))
    return found


def _through_loop(program: Program, call: Loop, position: int) -> list[Term]:
    """A gradient summed up by a loop, or stacked by it: a slice for each step."""
    inside = call.program.jaxpr
    axis = Axis(call.length)
    summed = position < call.carried
    terms = origins(call.program, inside.outvars[position])
    found: list[Term] = []
    if summed:
        index = call.constant + position
        carry = inside.invars[index]
        start = [t for t in terms if isinstance(t, Passed) and t.atom is carry]
        if len(start) != 1:
            return [Opaque("a loop changes it from step to step")]
        terms = [t for t in terms if t is not start[0]]
        found += origins(program, call.eqn.invars[index])
    for term in terms:
        if not isinstance(term, Product):
            reason = term.reason if isinstance(term, Opaque) else "it is in a loop"
            return [Opaque(reason)]
        left = term.left.stacked(axis, call.outside)
        right = term.right.stacked(axis, call.outside)
        if axis not in left.axes and axis not in right.axes:
            return [Opaque("a loop finds the same at every step")]
        term = replace(term, left=left, right=right)
        if not summed:
            steps = tuple(replace(s, stacked=s.stacked + 1) for s in term.steps)
            term = replace(term, axes=(axis, *term.axes), steps=steps)
        found.append(term)
    return found
