"""Trace a gradient back to the products of which it is a sum.

Anything that no rule recognizes is opaque, and the gradient is used as JAX computes it;
so a missing rule costs time and memory, but never gives a wrong result.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from jax.extend.core import JaxprEqn, Literal

from optaxclip.jaxprs import is_call
from optaxclip.per_example.program import Atom, Choice, Inlined, Loop, Program
from optaxclip.per_example.rules import RULES, is_float, is_zero
from optaxclip.per_example.terms import Axis, Convolution, Opaque, Passed, Product, Term

SUMS = ("add_any", "add")


def origins(program: Program, atom: Atom) -> list[Term]:
    """Find the terms that add up to a gradient."""
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
        return [] if is_zero(atom) else [Opaque("it is a constant")]
    if eqn is None:
        known = atom in program.jaxpr.invars
        return [Passed(atom) if known else Opaque("it is a constant")]
    call = program.call(eqn)
    position = next(i for i, out in enumerate(eqn.outvars) if out is atom)
    if isinstance(call, Inlined):
        return _through_call(program, call, position)
    if isinstance(call, Loop):
        return _through_loop(program, call, position)
    if isinstance(call, Choice):
        return _through_choice(call, position)
    rule = RULES.get(eqn.primitive.name)
    if rule is None and is_call(eqn):
        name = eqn.primitive.name
        return [Opaque(f"it comes out of the call {name}, whose inside is not known")]
    if rule is None or not is_float(eqn.outvars[0]):
        return [Opaque(f"it is made by {eqn.primitive.name}, which has no rule")]
    return rule(eqn, partial(origins, program))


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
    """Find the terms of a gradient that a loop sums, or stacks step by step."""
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
