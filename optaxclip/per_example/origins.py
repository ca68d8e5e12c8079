"""Follow the values of a program, and find the terms of which each is made.

What no rule recognizes is used as JAX computes it; so a missing rule costs time and
memory, but never gives a wrong result.
"""

import math
from collections.abc import Iterable, Sequence

from optaxclip.per_example.calls import Atom, Choice, Equation, Fixed, Loop, Value
from optaxclip.per_example.counters import known_inside, known_of
from optaxclip.per_example.loops import out_of_branches, out_of_loop, rows_of_tables
from optaxclip.per_example.program import Program
from optaxclip.per_example.rules import RULES, is_float, is_linear, is_literal_zero
from optaxclip.per_example.terms import (
    Given,
    Made,
    Shared,
    Sum,
    Term,
    convolves,
    is_zero,
)

SUMS = ("add", "add_any")


class Origins:
    """The terms of the values of a program.

    Attributes:
      program: the program.
      term: the term of each value.
      inside: what a loop stacks step by step: the loop, the value inside, and its term.
      stacked: the terms of values that are made of this, without a look inside.
    """

    def __init__(
        self, program: Program, inputs: Sequence[Term], wanted: Iterable[Atom]
    ):
        self.program = program
        self.term: dict[Atom, Term] = dict(zip(program.inputs, inputs, strict=True))
        self.inside: dict[Atom, tuple[Equation, Atom, Term]] = {}
        self.stacked: dict[Atom, Term] = {}
        self.term |= {value: Shared(value) for value in program.constants}
        self._known = known_of(program)
        for value, number in self._known.items():
            self.term[value] = Shared(Fixed(value.aval, number[0]))
        self._producer: dict[Atom, Equation] = {}
        for equation in program.equations:
            self._producer |= dict.fromkeys(equation.outputs, equation)
        self._varies = self._varying()
        self._linear = {
            id(e): is_linear(e, [a in self._varies for a in e.inputs])
            for e in program.equations
        }
        # The most numbers that computing a value takes, beside what is needed anyway.
        self._peak: dict[Atom, int] = {}
        self._needed = {
            atom
            for e in program.equations
            if not self._linear[id(e)]
            for atom in e.inputs
            if isinstance(atom, Value)
        }
        self._follow(self._on_the_way(wanted))

    def of(self, atom: Atom) -> Term:
        """Return the term of an atom."""
        if isinstance(atom, Fixed):
            return Shared(None if is_literal_zero(atom) else atom)
        return self.term[atom]

    def closed_call(self, atom: Atom) -> str | None:
        """Name the call that an atom comes out of, if its inside is not known."""
        equation = self._producer.get(atom)
        while equation is not None and self._linear[id(equation)]:
            varying = [a for a in equation.inputs if a in self._varies]
            equation = self._producer.get(varying[0]) if varying else None
        return equation.name if equation is not None and equation.closed() else None

    def _varying(self) -> set[Atom]:
        """Find the values that differ between examples."""
        found = {a for a, term in self.term.items() if not isinstance(term, Shared)}
        for equation in self.program.equations:
            if found.intersection(a for a in equation.inputs if isinstance(a, Value)):
                found.update(out for out in equation.outputs if out not in self._known)
        return found

    def _on_the_way(self, wanted: Iterable[Atom]) -> set[Atom]:
        """Find the values whose terms are asked for."""
        found = set(wanted)
        for equation in reversed(self.program.equations):
            follows = self._linear[id(equation)] or equation.call is not None
            follows |= equation.name in RULES
            if follows and not found.isdisjoint(equation.outputs):
                found.update(a for a in equation.inputs if isinstance(a, Value))
        return found

    def _follow(self, asked: set[Atom]) -> None:
        for equation in self.program.equations:
            outputs = equation.outputs
            if self._varies.isdisjoint(outputs):
                terms: list[Term] = [self._of_shared(equation, o) for o in outputs]
            elif asked.isdisjoint(outputs):
                terms = [Given(out) for out in outputs]
            else:
                terms = [
                    self._cheaper(equation, out, term)
                    for out, term in zip(outputs, self._made(equation), strict=True)
                ]
            for out, term in zip(outputs, terms, strict=True):
                self.term.setdefault(out, term)
            if self._linear[id(equation)]:
                self._follow_stacked(equation)

    def _follow_stacked(self, equation: Equation) -> None:
        if self.stacked.keys().isdisjoint(equation.inputs):
            return
        operands = [self.stacked.get(a) or self.of(a) for a in equation.inputs]
        made = zip(equation.outputs, _of_linear(equation, operands), strict=True)
        self.stacked |= {out: term for out, term in made if term is not None}

    def _of_shared(self, equation: Equation, out: Value) -> Shared:
        if equation.name != "broadcast_in_dim":
            return Shared(out)
        atom = equation.inputs[0]
        if is_zero(self.of(atom)):
            return Shared(None)
        dims = equation.params["broadcast_dimensions"]
        return Shared(out, (atom, tuple(map(int, dims))))

    def _made(self, equation: Equation) -> Sequence[Term | None]:
        """Return the terms of which an equation makes its results."""
        unknown = [None] * len(equation.outputs)
        operands = tuple(map(self.of, equation.inputs))
        if self._linear[id(equation)]:
            return _of_linear(equation, operands)
        if isinstance(equation.call, Loop):
            return self._of_loop(equation, equation.call, operands)
        if isinstance(equation.call, Choice):
            return self._of_choice(equation, equation.call, operands)
        rule = RULES.get(equation.name)
        if rule is None or not is_float(equation.outputs[0]):
            return unknown
        return [rule(equation, operands, self._producer)]

    def _cheaper(self, equation: Equation, out: Value, term: Term | None) -> Term:
        """Choose between holding a value and holding what it is made of."""
        whole = math.prod(out.aval.shape)
        below = [
            self._peak.get(atom, 0) for atom in equation.inputs if atom in self._peak
        ]
        if term is not None and convolves(term):
            return term  # Planned with the whole leaf in view.
        late = out not in self._needed
        if late and (self._linear[id(equation)] or term is not None):
            self._peak[out] = max(whole, *below, 0)
        if term is None:
            return Given(out)
        if _carries(term):
            return term if isinstance(term, Sum) else Given(out)
        held = sum(math.prod(atom.aval.shape) for atom in term.held)
        if not late or max(whole, self._peak.get(out, 0)) <= held:
            return Given(out)
        return term

    def _of_loop(
        self, equation: Equation, loop: Loop, operands: tuple[Term, ...]
    ) -> Sequence[Term | None]:
        start = operands[loop.constant : loop.constant + loop.carried]
        varies = [not isinstance(term, Shared) for term in start]
        program = loop.program
        while True:
            inputs = _like(operands, program)
            for i, value in enumerate(loop.carries):
                given = Given(value, carried=True) if varies[i] else Shared(value)
                inputs[loop.constant + i] = given
            inside = Origins(program, inputs, program.outputs)
            ends = [inside.of(a) for a in program.outputs[: loop.carried]]
            more = [
                v or not isinstance(term, Shared)
                for v, term in zip(varies, ends, strict=True)
            ]
            if more == varies:
                break
            varies = more
        terms = [inside.of(atom) for atom in program.outputs]
        each = zip(equation.outputs, program.outputs, terms, strict=True)
        for out, atom, term in list(each)[loop.carried :]:
            self.inside[out] = equation, atom, term
            self.stacked[out] = Given(out)
        known = known_inside(equation, loop, self._known)
        tables = rows_of_tables(equation, loop, terms, start, known)
        for i, (rows, part, table) in tables.items():
            self.inside[rows] = equation, rows.atom, part
            self.stacked[equation.outputs[i]] = table
        return out_of_loop(equation, loop, terms, start, known)

    def _of_choice(
        self, equation: Equation, choice: Choice, operands: tuple[Term, ...]
    ) -> Sequence[Term | None]:
        branches = []
        for program in choice.programs:
            inside = Origins(program, _like(operands[1:], program), program.outputs)
            branches.append([inside.of(atom) for atom in program.outputs])
        return out_of_branches(equation, branches)


def _like(terms: Sequence[Term], program: Program) -> list[Term]:
    """Return the inputs of a program, which are shared where these terms are."""
    return [
        Shared(value) if isinstance(term, Shared) else Given(value)
        for term, value in zip(terms, program.inputs, strict=True)
    ]


def _of_linear(equation: Equation, operands: Sequence[Term]) -> list[Term | None]:
    """Return the terms of the results of a linear step."""
    if equation.name in SUMS:
        return [_total(operands)]
    if any(_carries(term) for term in operands):
        return [None] * len(equation.outputs)
    if all(map(is_zero, operands)):
        return [Shared(None)] * len(equation.outputs)
    return [Made(tuple(operands), equation, i) for i in range(len(equation.outputs))]


def _total(operands: Sequence[Term]) -> Term:
    """Add terms up."""
    flat: list[Term] = []
    for term in operands:
        flat += term.operands if isinstance(term, Sum) else [term]
    flat = [term for term in flat if not is_zero(term)]
    if not flat:
        return Shared(None)
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def _carries(term: Term) -> bool:
    """Return whether a term is a sum with something that a loop carries."""
    parts = term.operands if isinstance(term, Sum) else (term,)
    return any(isinstance(part, Given) and part.carried for part in parts)
