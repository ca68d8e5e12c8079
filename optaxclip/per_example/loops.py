"""Terms of values inside a loop or a branch, seen from outside."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax

from optaxclip.per_example.calls import Atom, Equation, Fixed, Inner, Loop
from optaxclip.per_example.counters import Known
from optaxclip.per_example.factors import Axis
from optaxclip.per_example.terms import (
    Convolution,
    Given,
    Made,
    Product,
    Shared,
    Sum,
    Term,
    in_order,
    is_zero,
)
from optaxclip.per_example.written import part_written, writes, written

Seen = tuple[Term, bool]  # A term, and whether it is stacked.
Stacked = tuple[Atom, bool]


def out_of_loop(
    equation: Equation,
    loop: Loop,
    terms: Sequence[Term],
    start: Sequence[Term],
    known: Known,
) -> list[Term | None]:
    """Convert the terms of a scan's results, given those of what it starts with."""
    axis, outside = Axis(loop.length), _outside(equation, loop, known)
    found: list[Term | None] = []
    for i, term in enumerate(terms):
        if i >= loop.carried:
            seen = _seen(term, axis, outside, stack=True)
            found.append(seen[0] if seen is not None and seen[1] else None)
        else:
            found.append(_summed(term, loop.carries[i], start[i], axis, outside))
    return found


def rows_of_tables(
    equation: Equation,
    loop: Loop,
    terms: Sequence[Term],
    start: Sequence[Term],
    known: Known,
) -> dict[int, tuple[Inner, Term, Made]]:
    """Find the results that are tables, of which each step writes a part.

    Returns:
      For the index of a result: its parts as a loop would stack them, the term of a
      part inside of the loop, and how the table is made of the parts.
    """
    outside, found = _outside(equation, loop, known), {}
    for i, carry in enumerate(loop.carries):
        added = _grown(terms[i], carry) or ()
        if len(added) != 1 or not writes(added[0]) or not is_zero(start[i]):
            continue
        part, term = part_written(added[0])
        shape = (loop.length, *part.aval.shape)
        rows = Inner(equation, part, jax.ShapeDtypeStruct(shape, part.aval.dtype))
        table = written(added[0], Given(rows), loop.length, outside)
        if table is not None:
            found[i] = rows, term, table
    return found


def _outside(equation: Equation, loop: Loop, known: Known) -> Callable[[Atom], Stacked]:
    def outside(atom: Atom) -> Stacked:
        if atom not in known:
            return loop.outside(equation, atom)
        value, stacked = known[atom], len(known[atom]) != 1
        value = value if stacked else value[0]
        return Fixed(jax.ShapeDtypeStruct(value.shape, value.dtype), value), stacked

    return outside


def _grown(term: Term, carry: Atom) -> list[Term] | None:
    """Return what a step adds to a sum that the loop carries."""
    parts: list[Term] = list(term.operands) if isinstance(term, Sum) else [term]
    mine = [p for p in parts if isinstance(p, Given) and p.carried and p.atom is carry]
    if len(mine) != 1:
        return None
    parts.remove(mine[0])
    return parts


def _summed(
    term: Term, carry: Atom, start: Term, axis: Axis, outside: Callable
) -> Term | None:
    """Convert a sum that grows from step to step."""
    parts = _grown(term, carry)
    if parts is None:
        return None
    found: list[Term] = [start]
    for part in parts:
        seen = _seen(part, axis, outside, stack=False)
        if seen is None or isinstance(part, Shared):
            return None
        found.append(seen[0])
    found = [term for term in found if not is_zero(term)]
    return Sum(tuple(found)) if len(found) > 1 else found[0]


def _seen(term: Term, axis: Axis | None, outside: Callable, stack: bool) -> Seen | None:
    """Convert a term, with an axis of steps, if any, in front or summed over them."""
    known: dict[int, Seen | None] = {}
    for each in in_order(term):
        below = [known[id(x)] for x in getattr(each, "operands", ())]
        seen = [x for x in below if x is not None]
        if len(seen) == len(below):
            known[id(each)] = _one_seen(each, seen, axis, outside, stack)
        elif axis is not None and not stack and writes(each):
            known[id(each)] = _written(each, axis, outside)
        else:
            known[id(each)] = None
    return known[id(term)]


def _written(made: Made, axis: Axis, outside: Callable) -> Seen | None:
    """Convert what each step writes at another place, of which the sum is a table."""
    _, part = part_written(made)
    seen = _seen(part, axis, outside, stack=True)
    if seen is None or not seen[1]:
        return None
    table = written(made, seen[0], axis.size, outside)
    return None if table is None else (table, False)


def _one_seen(
    term: Term, below: list[Seen], axis: Axis | None, outside: Callable, stack: bool
) -> Seen | None:
    if isinstance(term, Shared):
        if term.atom is None:
            return term, False
        atom, stacked = outside(term.atom)
        return (Shared(atom), stacked) if stack or not stacked else None
    if isinstance(term, Given):
        atom, stacked = outside(term.atom)
        return (Given(atom), stacked) if stack and not term.carried else None
    if isinstance(term, Product):
        left = term.left.stacked(axis, outside)
        right = term.right.stacked(axis, outside)
        seen = replace(term, left=left, right=right)
        if axis is None:
            return seen, False
        if axis not in left.axes and axis not in right.axes:
            return None  # A loop finds the same at every step.
        return (replace(seen, axes=(axis, *term.axes)) if stack else seen), stack
    if isinstance(term, Convolution):
        if axis is not None:
            return None
        image, cotangent = outside(term.image)[0], outside(term.cotangent)[0]
        return replace(term, image=image, cotangent=cotangent), False
    if isinstance(term, Made | Sum):
        operands = tuple(operand for operand, _ in below)
        stacked = tuple(stacked for _, stacked in below)
        if not stack or not any(stacked):
            return _with_operands(term, operands, None), False
        if isinstance(term, Sum):
            return (Sum(operands), True) if all(stacked) else None
        return _with_operands(term, operands, stacked), True
    return None


def _with_operands(
    term: Made | Sum, operands: tuple[Term, ...], level: tuple[bool, ...] | None
) -> Term:
    if isinstance(term, Sum):
        return Sum(operands)
    levels = term.levels if level is None else (*term.levels, level)
    return Made(operands, term.equation, term.output, levels)


def out_of_branches(
    equation: Equation, branches: Sequence[Sequence[Term]]
) -> list[Term | None]:
    """Convert the terms of a conditional's results; all are zero but one branch's."""
    found: list[Term | None] = []
    for terms in zip(*branches, strict=True):
        parts = [_in_branch(equation, *each) for each in enumerate(terms)]
        if any(part is None for part in parts):
            found.append(None)
            continue
        kept = tuple(part for part in parts if part is not None and not is_zero(part))
        found.append(Sum(kept) if kept else Shared(None))
    return found


def _in_branch(equation: Equation, branch: int, term: Term) -> Term | None:
    def outside(atom: Atom) -> tuple[Atom, bool]:
        if isinstance(atom, Fixed):
            return atom, False
        return Inner(equation, atom, atom.aval, branch), False

    shared = [x.atom for x in in_order(term) if isinstance(x, Shared)]
    if not all(isinstance(atom, Fixed | None) for atom in shared):
        return None  # It would have to be zero where its branch is not taken.
    seen = _seen(term, None, outside, stack=True)
    return None if seen is None else seen[0]
