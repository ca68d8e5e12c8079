"""Traced functions that can return any of their values, even from inside calls."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal, Var

from optaxclip.jaxprs import TracedProgram, evaluate, opened, program_of


@dataclass(frozen=True, eq=False)
class Inner:
    """A value inside a call, returned by the call in addition to its own results.

    Attributes:
      eqn: the call.
      atom: the value, in the inner program.
      aval: its shape and dtype, seen from outside.
      branch: the branch that contains it; it is zero if another branch is taken.
    """

    eqn: JaxprEqn
    atom: "Atom"
    aval: Any
    branch: int = 0


Atom = Var | Literal | Inner
Live = tuple[JaxprEqn, list[Var | Inner]]


def aval_of(atom: Any) -> Any:
    """Return the shape and dtype of an atom."""
    return atom.aval


class Program:
    """A jaxpr that evaluates only the values that are requested."""

    def __init__(self, traced: TracedProgram):
        self.jaxpr, self.consts = opened(traced)
        self.producer: dict[Any, JaxprEqn] = {}
        for eqn in self.jaxpr.eqns:
            self.producer |= dict.fromkeys(eqn.outvars, eqn)
        self._calls: dict[int, Call | None] = {}

    def call(self, eqn: JaxprEqn) -> "Call | None":
        """Return the call that an equation makes, or None if it is not known."""
        if id(eqn) not in self._calls:
            kind = CALLS.get(eqn.primitive.name)
            try:
                self._calls[id(eqn)] = None if kind is None else kind(eqn)
            except KeyError:  # Another JAX version, with other parameter names.
                self._calls[id(eqn)] = None
        return self._calls[id(eqn)]

    def needs(self, wanted: Iterable[Atom]) -> tuple[list[Live], set[Var]]:
        """Find the equations that must be evaluated, and all variables they read."""
        read: set[Var] = set()
        asked: dict[int, list[Var | Inner]] = {}
        for atom in wanted:
            if isinstance(atom, Inner):
                asked.setdefault(id(atom.eqn), []).append(atom)
            elif isinstance(atom, Var):
                read.add(atom)
        live: list[Live] = []
        for eqn in reversed(self.jaxpr.eqns):
            outs = [out for out in eqn.outvars if out in read]
            outs += asked.get(id(eqn), [])
            if outs or eqn.effects:
                live.append((eqn, outs))
                read.update(v for v in eqn.invars if isinstance(v, Var))
        return live[::-1], read

    def evaluate(self, args: Sequence[Any], wanted: Sequence[Atom]) -> list[Any]:
        """Evaluate the requested atoms."""
        known: dict[Any, Any] = dict(zip(self.jaxpr.invars, args, strict=True))
        known |= zip(self.jaxpr.constvars, self.consts, strict=True)

        def read(atom: Atom) -> Any:
            return atom.val if isinstance(atom, Literal) else known[atom]

        for eqn, outs in self.needs(wanted)[0]:
            values = [read(atom) for atom in eqn.invars]
            call = self.call(eqn)
            inside = any(isinstance(out, Inner) for out in outs)
            if call is not None and (inside or eqn.primitive.name in CUSTOM):
                known |= zip(outs, call.evaluate(values, outs), strict=True)
            else:
                known |= zip(eqn.outvars, evaluate(eqn, values), strict=True)
        return [read(atom) for atom in wanted]


class Inlined:
    """A call that evaluates its program once: jit, a custom rule or a checkpoint."""

    def __init__(self, eqn: JaxprEqn):
        self.eqn = eqn
        self.program = Program(program_of(eqn))

    def outside(self, atom: Atom) -> Atom:
        """Convert an inner atom to one seen from outside."""
        handed = dict(zip(self.program.jaxpr.invars, self.eqn.invars, strict=True))
        if isinstance(atom, Literal):
            return atom
        return handed[atom] if atom in handed else Inner(self.eqn, atom, aval_of(atom))

    def evaluate(self, values: list[Any], wanted: list[Var | Inner]) -> list[Any]:
        """Evaluate results of the call, and inner values."""
        if self.eqn.params.get("prevent_cse", False):
            # As in JAX: recomputation in a checkpoint must not be optimized away.
            values = jax.lax.optimization_barrier(values)
        outs = dict(zip(self.eqn.outvars, self.program.jaxpr.outvars, strict=True))
        return self.program.evaluate(
            values, [w.atom if isinstance(w, Inner) else outs[w] for w in wanted]
        )


class Loop:
    """A scan; inner values are stacked, with a leading axis of steps."""

    def __init__(self, eqn: JaxprEqn):
        self.eqn = eqn
        self.program = Program(eqn.params["jaxpr"])
        self.length: int = eqn.params["length"]
        self.order = {name: eqn.params[name] for name in ("reverse", "unroll")}
        inside = self.program.jaxpr
        # Ranks show what is stacked, without relying on parameter names.
        rank = [aval_of(atom).ndim for atom in (*eqn.invars, *eqn.outvars)]
        inner = [aval_of(atom).ndim for atom in (*inside.invars, *inside.outvars)]
        same = [a == b for a, b in zip(rank, inner, strict=True)]
        self.carried = sum(same[len(eqn.invars) :])
        self.constant = sum(same[: len(eqn.invars)]) - self.carried

    def outside(self, atom: Atom) -> tuple[Atom, bool]:
        """Convert an inner atom to one seen from outside; also return if stacked."""
        if isinstance(atom, Literal):
            return atom, False
        invars = self.program.jaxpr.invars
        position = invars.index(atom) if atom in invars else -1
        if 0 <= position < self.constant:
            return self.eqn.invars[position], False
        if position >= self.constant + self.carried:
            return self.eqn.invars[position], True
        shape = (self.length, *aval_of(atom).shape)
        aval = jax.ShapeDtypeStruct(shape, aval_of(atom).dtype)
        return Inner(self.eqn, atom, aval), True

    def _carries_for(self, wanted: list[Atom], kept: set[int]) -> list[int]:
        """Find the carried values that are needed, without the summed gradients."""
        inside = self.program.jaxpr
        while True:
            asked = [*wanted, *(inside.outvars[i] for i in sorted(kept))]
            read = self.program.needs(asked)[1]
            read |= {atom for atom in asked if isinstance(atom, Var)}
            start = inside.invars[self.constant : self.constant + self.carried]
            more = {i for i, carry in enumerate(start) if carry in read}
            if more <= kept:
                return sorted(kept)
            kept |= more

    def evaluate(self, values: list[Any], wanted: list[Var | Inner]) -> list[Any]:
        """Evaluate results of the scan, and inner values."""
        outvars, inside = self.eqn.outvars, self.program.jaxpr
        first = self.constant + self.carried
        consts, start = values[: self.constant], values[self.constant : first]
        position: dict[Any, int] = {out: i for i, out in enumerate(outvars)}
        carried = {w for w in wanted if position.get(w, first) < self.carried}
        stacked = [w for w in wanted if w not in carried]
        asked = [
            w.atom if isinstance(w, Inner) else inside.outvars[position[w]]
            for w in stacked
        ]
        kept = self._carries_for(asked, {position[w] for w in carried})

        def body(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            known = dict(zip(kept, carry, strict=True))
            full = [known.get(i) for i in range(self.carried)]
            results = [*(inside.outvars[i] for i in kept), *asked]
            outs = self.program.evaluate([*consts, *full, *slices], results)
            return outs[: len(kept)], outs[len(kept) :]

        last, stacks = jax.lax.scan(
            body,
            [start[i] for i in kept],
            values[first:],
            **self.order,
        )
        found: dict[Any, Any] = dict(zip(stacked, stacks, strict=True))
        found |= zip([outvars[i] for i in kept], last, strict=True)
        return [found[w] for w in wanted]


class Choice:
    """A conditional; values inside a branch are zero if another branch is taken."""

    def __init__(self, eqn: JaxprEqn):
        self.eqn = eqn
        self.programs = [Program(branch) for branch in eqn.params["branches"]]

    def outside(self, branch: int, atom: Atom) -> Inner:
        """Convert an atom inside a branch to one seen from outside."""
        return Inner(self.eqn, atom, aval_of(atom), branch)

    def evaluate(self, values: list[Any], wanted: list[Var | Inner]) -> list[Any]:
        """Evaluate results of the conditional, and inner values."""

        def taken(branch: int, program: Program):
            def function(*operands: Any) -> list[Any]:
                outs = dict(zip(self.eqn.outvars, program.jaxpr.outvars, strict=True))
                here = {
                    w: w.atom if isinstance(w, Inner) else outs[w]
                    for w in wanted
                    if not isinstance(w, Inner) or w.branch == branch
                }
                found = program.evaluate(operands, list(here.values()))
                known = dict(zip(here, found, strict=True))
                return [
                    known[w]
                    if w in known
                    else jnp.zeros(aval_of(w).shape, aval_of(w).dtype)
                    for w in wanted
                ]

            return function

        branches = [taken(*each) for each in enumerate(self.programs)]
        return jax.lax.switch(values[0], branches, *values[1:])


Call = Inlined | Loop | Choice

# The trace is already differentiated, so the bodies of custom rules are evaluated.
CUSTOM = ("closed_call", "eval_jaxpr", "custom_jvp_call", "custom_vjp_call")

CALLS: dict[str, type[Inlined] | type[Loop] | type[Choice]] = {
    "jit": Inlined,
    "pjit": Inlined,  # The name before JAX 0.7.2.
    "closed_call": Inlined,
    "eval_jaxpr": Inlined,  # Replaces closed_call in JAX 0.11.1.
    "custom_jvp_call": Inlined,
    "custom_vjp_call": Inlined,
    "checkpoint": Inlined,
    "remat2": Inlined,
    "scan": Loop,
    "cond": Choice,
}
