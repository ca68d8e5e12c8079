"""Traced functions that can return any of their values, even from inside calls.

Calls that evaluate their program once are written out, so that a program is one list of
equations; loops and conditionals hold programs of their own.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal

from optaxclip.jaxprs import (
    TracedProgram,
    evaluate,
    holds_program,
    is_call,
    named,
    opened,
    program_of,
)
from optaxclip.per_example.blocks import Block, Live, evaluate_live, repeated
from optaxclip.per_example.calls import (
    EFFECTS,
    Atom,
    Choice,
    Equation,
    Fixed,
    Inner,
    Loop,
    Reduced,
    Value,
)
from optaxclip.per_example.ways import is_narrow

REMATERIALIZING = ("checkpoint", "remat2", "RematTraced")  # the last with jax_remat3
WRITTEN_OUT = (
    "jit",
    "pjit",  # The name before JAX 0.7.2.
    "closed_call",
    "eval_jaxpr",  # Replaces closed_call in JAX 0.11.1.
    *REMATERIALIZING,
)


class Program:
    """A jaxpr that evaluates only the values that are requested.

    Attributes:
      inputs: its arguments.
      constants: the values that it holds.
      equations: how the others are computed, in order.
      outputs: its results.
      rematerializes: whether a part of it computes again what it does not store.
      narrow: whether it computes anything in less than float32.
    """

    def __init__(self, traced: TracedProgram):
        jaxpr, _ = opened(traced)
        self.inputs = [Value(v.aval) for v in jaxpr.invars]
        self.constants: dict[Value, Any] = {}
        self.equations: list[Equation] = []
        self.rematerializes = False
        self._blocks: list[Block] = []
        self.outputs = self._write_out(traced, self.inputs)
        made = (out for equation in self.equations for out in equation.outputs)
        dtypes = {atom.aval.dtype for atom in (*made, *self.outputs)}
        self.narrow = any(map(is_narrow, dtypes))
        for equation in self.equations:
            if equation.call is not None:
                self.narrow |= any(inner.narrow for inner in equation.call.programs)

    def _write_out(
        self, traced: TracedProgram, inputs: Sequence[Value | Fixed]
    ) -> list[Value | Fixed]:
        """Append the equations of a program, and return its results."""
        jaxpr, consts = opened(traced)
        known: dict[Any, Value | Fixed] = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, constant in zip(jaxpr.constvars, consts, strict=True):
            value = known[variable] = Value(variable.aval)
            self.constants[value] = constant

        def read(atom: Any) -> Value | Fixed:
            if isinstance(atom, Literal):
                return Fixed(atom.aval, atom.val)
            return known[atom]

        for eqn in jaxpr.eqns:
            given = tuple(map(read, eqn.invars))
            name, params = named(eqn)
            if name in WRITTEN_OUT and holds_program(eqn):
                self.rematerializes |= name in REMATERIALIZING
                if params.get("prevent_cse", False):
                    given = self._kept_apart(given)
                first = len(self.equations)
                outputs = self._write_out(program_of(eqn), given)
                # Numbers that are written in the program may differ between blocks.
                blocks = name in REMATERIALIZING
                if blocks and all(isinstance(atom, Value) for atom in given):
                    places = {id(e): i for i, e in enumerate(self.equations[first:])}
                    self._blocks.append(Block(program_of(eqn), places))
            else:
                outputs = [Value(v.aval) for v in eqn.outvars]
                equation = _equation(eqn, given, tuple(outputs))
                if isinstance(equation.call, Loop):
                    self.rematerializes |= equation.call.program.rematerializes
                self.equations.append(equation)
            known |= zip(eqn.outvars, outputs, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _kept_apart(
        self, given: tuple[Value | Fixed, ...]
    ) -> tuple[Value | Fixed, ...]:
        """As in JAX: recomputation in a checkpoint must not be optimized away.

        But an integer is left as it is: little is computed from it alone, and where it
        comes from tells of which step in a loop a kernel is.
        """
        apart = tuple(atom for atom in given if not _is_one_integer(atom))
        outputs = tuple(Value(atom.aval) for atom in apart)
        name, run = "optimization_barrier", jax.lax.optimization_barrier
        self.equations.append(Equation(name, {}, apart, outputs, run))
        known: dict[Any, Value] = dict(zip(apart, outputs, strict=True))
        return tuple(known.get(atom, atom) for atom in given)

    def needs(self, wanted: Iterable[Atom]) -> tuple[Live, set[Value]]:
        """Find the equations that must be evaluated, and all values they read."""
        wanted = list(wanted)
        read: set[Value] = set()
        asked: dict[int, list[Atom]] = {}
        ahead = wanted.copy()
        while ahead:
            atom = ahead.pop()
            if isinstance(atom, Inner):
                asked.setdefault(id(atom.equation), []).append(atom)
            elif isinstance(atom, Value):
                read.add(atom)
            elif isinstance(atom, Reduced):
                ahead += atom.atoms
        live: Live = []
        for equation in reversed(self.equations):
            outs: list[Atom] = [out for out in equation.outputs if out in read]
            outs += asked.get(id(equation), [])
            outs += [EFFECTS] if equation.effects and EFFECTS in wanted else []
            if outs:
                live.append((equation, outs))
                inputs = equation.inputs
                if isinstance(equation.call, Loop):
                    inputs = equation.call.inputs_for(equation, outs)
                read.update(v for v in inputs if isinstance(v, Value))
        return live[::-1], read

    def evaluate(self, args: Sequence[Any], wanted: Sequence[Atom]) -> list[Any]:
        """Evaluate the requested atoms; arguments that they do not need may be None."""
        known: dict[Any, Any] = dict(zip(self.inputs, args, strict=True))
        known |= self.constants

        live, _ = self.needs(wanted)
        values = [x for each in wanted for x in getattr(each, "atoms", (each,))]
        evaluate_live(live, known, repeated(self._blocks), values, _run)
        return [_read(atom, known) for atom in wanted]


def _is_one_integer(atom: Value | Fixed) -> bool:
    return not atom.aval.shape and jnp.issubdtype(atom.aval.dtype, jnp.integer)


def _read(atom: Atom, known: dict[Any, Any]) -> Any:
    if isinstance(atom, Reduced):
        return atom.run(*(_read(each, known) for each in atom.atoms))
    return atom.val if isinstance(atom, Fixed) else known[atom]


def _run(live: Live, known: dict[Any, Any]) -> None:
    """Evaluate equations in order; calls, only as far as needed."""
    for equation, outs in live:
        values = [
            known.get(atom) if isinstance(atom, Value) else _read(atom, known)
            for atom in equation.inputs
        ]
        has = {*equation.outputs, *([EFFECTS] if equation.effects else [])}
        # What is unknown is read by nothing that is asked of a call.
        whole = has == set(outs) and all(value is not None for value in values)
        if equation.call is None or whole:
            known |= zip(equation.outputs, equation.run(values), strict=True)
        else:
            found = equation.call.evaluate(equation, values, outs)
            known |= zip(outs, found, strict=True)


def _equation(
    eqn: JaxprEqn, inputs: tuple[Value | Fixed, ...], outputs: tuple[Value, ...]
) -> Equation:
    def run(values: Sequence[Any], **changed: Any) -> Sequence[Any]:
        return evaluate(eqn, values, **changed)

    name, call, effects = eqn.primitive.name, _call(eqn), bool(eqn.effects)

    def closed() -> bool:
        return call is None and is_call(eqn)

    return Equation(name, eqn.params, inputs, outputs, run, call, effects, closed)


def _call(eqn: JaxprEqn) -> Loop | Choice | None:
    """Return the call that an equation makes, or None if it is not known."""
    try:
        if eqn.primitive.name == "scan":
            return Loop(eqn, Program(eqn.params["jaxpr"]))
        if eqn.primitive.name == "cond":
            return Choice([Program(branch) for branch in eqn.params["branches"]])
    except KeyError:  # Another JAX version, with other parameter names.
        return None
    return None
