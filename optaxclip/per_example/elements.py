"""Steps that multiply every element by a number, of which any many are one such step.

So sixty nonlinear functions of a weight, one after another, are applied to a gradient
by one multiplication, and what it takes is computed once for all examples.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from optaxclip.numbers import widest
from optaxclip.per_example.assembly import cuts_of, put_together, shared_by
from optaxclip.per_example.calls import Equation, Reduced, Value
from optaxclip.per_example.rules import JOINTLY, is_float
from optaxclip.per_example.terms import (
    Given,
    Made,
    Shared,
    Sum,
    Term,
    in_order,
    is_zero,
)

_NAMES = ("mul", "div", "neg", "copy", "convert_element_type", "select_n", "sub")

# Where steps by element and others are mixed in a sum that grows, each of its parts
# goes through most of these steps, and would be multiplied by a number for each.
_MOST_TIMES = 4


def multiplied_once(term: Term) -> Term:
    """Join steps by element that follow each other, unless that is more work."""
    order = in_order(term)
    regions = _Regions(_MOST_TIMES * len(order))
    try:
        for each in order:
            regions.add(each)
        return regions.left(term)
    except _TooManyStepsError:
        return term


class _TooManyStepsError(Exception):
    """Raised where joining steps is more work than what it spares."""


class _Regions:
    """Steps by element, and what comes into each region of them."""

    def __init__(self, most: int):
        self._most = most
        self._bases: dict[int, tuple[Given, ...]] = {}
        self._alone: dict[int, Term] = {}
        self._outside: dict[Given, Term] = {}
        self._left: dict[int, Term] = {}

    def add(self, term: Term) -> None:
        """Take one more term, of which all operands are known."""
        operands = getattr(term, "operands", ())
        if _by_element(term):
            entered = [self._entered(x, _result(term)) for x in operands]
            self._alone[id(term)] = _with(term, [x for x, _ in entered])
            bases = (base for _, each in entered for base in each)
            self._bases[id(term)] = tuple(dict.fromkeys(bases))
        else:
            left = [self.left(x) for x in operands]
            self._left[id(term)] = _with(term, left) if operands else term

    def _entered(self, term: Term, result: Any) -> tuple[Term, tuple[Given, ...]]:
        """Return an operand inside of a region, and what it is made of there."""
        if isinstance(term, Shared):
            return term, ()
        if id(term) not in self._bases:
            base = Given(Value(result))
            self._outside[base] = self._left[id(term)]
            self._alone[id(term)] = base
            self._bases[id(term)] = (base,)
        return self._alone[id(term)], self._bases[id(term)]

    def left(self, term: Term) -> Term:
        """Return a term as it is where a region has ended."""
        if id(term) not in self._left:
            self._left[id(term)] = self._joined(term)
        return self._left[id(term)]

    def _joined(self, term: Term) -> Term:
        alone, bases = self._alone[id(term)], self._bases[id(term)]
        steps = in_order(alone)
        self._most -= len(bases) * len(steps)
        if self._most < 0:
            raise _TooManyStepsError
        if sum(isinstance(x, Made) for x in steps) <= len(bases):
            return _with(term, [self.left(x) for x in getattr(term, "operands", ())])
        parts = [_multiplied(self._outside[b], alone, b) for b in bases]
        return parts[0] if len(parts) == 1 else Sum(tuple(parts))


def _by_element(term: Term) -> bool:
    """Return whether a step multiplies each element, or sums what such steps make."""
    return _result(term) is not None


def _result(term: Term) -> Any:
    """Return the type of what such a step makes, which has the shape that comes in."""
    if isinstance(term, Sum):
        if any(isinstance(x, Shared) for x in term.operands):
            return None
        found = (_result(x) for x in term.operands if isinstance(x, Made))
        return next((x for x in found if x is not None), None)
    if not isinstance(term, Made) or term.levels or term.equation.name not in _NAMES:
        return None
    inputs = zip(term.operands, term.equation.inputs, strict=True)
    shapes = {atom.aval.shape for x, atom in inputs if not isinstance(x, Shared)}
    among = term.operands[JOINTLY.get(term.equation.name, slice(0))]
    adds = any(isinstance(x, Shared) and not is_zero(x) for x in among)
    result = term.equation.outputs[0].aval
    return None if adds or shapes != {result.shape} else result


def _with(term: Term, operands: Sequence[Term]) -> Term:
    if isinstance(term, Made):
        return Made(tuple(operands), term.equation, term.output, term.levels)
    return Sum(tuple(operands)) if isinstance(term, Sum) else term


def _multiplied(term: Term, steps: Term, base: Given) -> Term:
    """Multiply a term by what the steps make of ones in its place."""
    shared = shared_by(steps)
    dtype = widest(*(atom.aval.dtype for atom in shared if is_float(atom)))

    def run(*values: Any) -> Array:
        ones = [
            (jnp.ones if cut is base else jnp.zeros)(base.shape, dtype)
            for cut in cuts_of(steps)
        ]
        known = dict(zip(shared, map(jnp.asarray, values), strict=True))
        return put_together(steps, ones, known, 0.0)

    aval = jax.ShapeDtypeStruct(base.shape, dtype)
    by = Reduced(tuple(shared), run, aval)
    pair, out = (Value(aval), Value(aval)), Value(aval)
    product = Equation("mul", {}, pair, (out,), lambda values: [jnp.multiply(*values)])
    return Made((term, Shared(by)), product)
