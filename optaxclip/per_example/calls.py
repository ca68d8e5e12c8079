"""Equations of a program, and the calls that can return values from inside."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn


@dataclass(frozen=True, eq=False)
class Value:
    """A value of a program.

    Attributes:
      aval: its shape and dtype.
    """

    aval: Any


@dataclass(frozen=True, eq=False)
class Fixed:
    """A number that is written in a program.

    Attributes:
      aval: its shape and dtype.
      val: the number.
    """

    aval: Any
    val: Any


@dataclass(frozen=True, eq=False)
class Inner:
    """A value inside a call, returned by the call in addition to its own results.

    Attributes:
      equation: the call.
      atom: the value, in the inner program.
      aval: its shape and dtype, seen from outside.
      branch: the branch that contains it; it is zero if another branch is taken.
    """

    equation: "Equation"
    atom: "Atom"
    aval: Any
    branch: int = 0


@dataclass(frozen=True, eq=False)
class Reduced:
    """What is computed from values as soon as they are known, instead of holding them.

    Attributes:
      atoms: the values.
      run: takes the values.
      aval: the shape and dtype of what it returns.
      along: arrays of which every step of a loop takes a part, after the values.
    """

    atoms: "tuple[Atom, ...]"
    run: Callable[..., Any] = field(repr=False)
    aval: Any = None
    along: tuple[Any, ...] = field(default=(), repr=False)

    def at_step(self, parts: Sequence[Any]) -> "Reduced":
        """Return what is computed at a step, given its parts of the arrays."""

        def run(*values: Any) -> Any:
            return self.run(*values, *parts)

        return Reduced(self.atoms, run)


Atom = Value | Fixed | Inner | Reduced

# Asked for like a value, it lets prints and other effects happen; it is None.
EFFECTS = Fixed(None, None)


@dataclass(frozen=True, eq=False)
class Equation:
    """How some values of a program are computed.

    Attributes:
      name: the name of the primitive.
      params: its parameters.
      inputs: its operands.
      outputs: its results.
      run: evaluates it, without values from inside; parameters may be changed.
      call: the call that it makes, if values inside it can be returned.
      effects: whether it does something beside computing its results.
      closed: returns whether it is a call whose inside is not known.
    """

    name: str
    params: dict[str, Any] = field(repr=False)
    inputs: tuple[Value | Fixed, ...]
    outputs: tuple[Value, ...]
    run: Callable[..., Sequence[Any]] = field(repr=False)
    call: "Loop | Choice | None" = None
    effects: bool = False
    closed: Callable[[], bool] = lambda: False


class Loop:
    """A scan; inner values are stacked, with a leading axis of steps."""

    def __init__(self, eqn: JaxprEqn, program: Any):
        self.program = program
        self.programs = [program]
        self.length: int = eqn.params["length"]
        self.order = {name: eqn.params[name] for name in ("reverse", "unroll")}
        # Ranks show what is stacked, without relying on parameter names.
        avals: list[Any] = [atom.aval for atom in (*eqn.invars, *eqn.outvars)]
        rank = [len(aval.shape) for aval in avals]
        inside = (*self.program.inputs, *self.program.outputs)
        same = [a == len(b.aval.shape) for a, b in zip(rank, inside, strict=True)]
        self.carried = sum(same[len(eqn.invars) :])
        self.constant = sum(same[: len(eqn.invars)]) - self.carried

    @property
    def carries(self) -> list[Value]:
        """The inner values that are carried from step to step."""
        return self.program.inputs[self.constant : self.constant + self.carried]

    def outside(self, equation: Equation, atom: Atom) -> tuple[Atom, bool]:
        """Convert an inner atom to one seen from outside; also return if stacked."""
        if isinstance(atom, Fixed):
            return atom, False
        inputs: list[Any] = self.program.inputs
        position = inputs.index(atom) if atom in inputs else -1
        if 0 <= position < self.constant:
            return equation.inputs[position], False
        if position >= self.constant + self.carried:
            return equation.inputs[position], True
        shape = (self.length, *atom.aval.shape)
        aval = jax.ShapeDtypeStruct(shape, atom.aval.dtype)
        return Inner(equation, atom, aval), True

    def _carries_for(self, wanted: list[Atom], kept: set[int]) -> list[int]:
        """Find the carried values that are needed, without the summed gradients."""
        while True:
            asked = [*wanted, *(self.program.outputs[i] for i in sorted(kept))]
            read = self.program.needs(asked)[1]
            more = {i for i, carry in enumerate(self.carries) if carry in read}
            if more <= kept:
                return sorted(kept)
            kept |= more

    def _asked(
        self, equation: Equation, wanted: list[Atom]
    ) -> tuple[dict[Atom, Atom], list[int]]:
        """Find what every step is asked for, and which carried values are needed."""
        position: dict[Any, int] = {out: i for i, out in enumerate(equation.outputs)}
        last = {i for w in wanted if (i := position.get(w, -1)) in range(self.carried)}
        ends = {equation.outputs[i] for i in last}
        inside = _inside(equation, self.program)
        stacked = {w: inside(w) for w in wanted if w not in ends}
        return stacked, self._carries_for([*stacked.values()], last)

    def inputs_for(self, equation: Equation, wanted: list[Atom]) -> list[Atom]:
        """Find the inputs that are needed for what is asked of the scan."""
        stacked, kept = self._asked(equation, wanted)
        carried = [self.program.outputs[i] for i in kept]
        read = self.program.needs([*stacked.values(), *carried])[1]
        read.update(self.carries[i] for i in kept)
        pairs = zip(equation.inputs, self.program.inputs, strict=True)
        return [atom for atom, value in pairs if value in read]

    def evaluate(
        self, equation: Equation, values: list[Any], wanted: list[Atom]
    ) -> list[Any]:
        """Evaluate results of the scan, inner values, and effects."""
        results = self.program.outputs
        first = self.constant + self.carried
        consts, start = values[: self.constant], values[self.constant : first]
        stacked, kept = self._asked(equation, wanted)
        asked = [*stacked.values()]
        along = [a.along if isinstance(a, Reduced) else () for a in asked]

        def body(carry: list[Any], given: Any) -> tuple[list[Any], list[Any]]:
            slices, parts = given
            known = dict(zip(kept, carry, strict=True))
            full = [known.get(i) for i in range(self.carried)]
            here = [
                a.at_step(part) if isinstance(a, Reduced) else a
                for a, part in zip(asked, parts, strict=True)
            ]
            wanted = [*(results[i] for i in kept), *here]
            outs = self.program.evaluate([*consts, *full, *slices], wanted)
            return outs[: len(kept)], outs[len(kept) :]

        begun = [start[i] for i in kept]
        last, stacks = jax.lax.scan(
            body, begun, (values[first:], along), self.length, **self.order
        )
        found: dict[Any, Any] = dict(zip(stacked, stacks, strict=True))
        found |= zip([equation.outputs[i] for i in kept], last, strict=True)
        return [found[w] for w in wanted]


class Choice:
    """A conditional; values inside a branch are zero if another branch is taken."""

    def __init__(self, programs: list[Any]):
        self.programs = programs

    def evaluate(
        self, equation: Equation, values: list[Any], wanted: list[Atom]
    ) -> list[Any]:
        """Evaluate results of the conditional, inner values, and effects."""

        def taken(branch: int, program: Any):
            inside = _inside(equation, program)

            def asked(w: Atom) -> Atom | None:
                elsewhere = isinstance(w, Inner) and w.branch != branch
                return None if elsewhere else inside(w)

            def function(*operands: Any) -> list[Any]:
                here = [asked(w) for w in wanted]
                known = [atom for atom in here if atom is not None]
                found = iter(program.evaluate(operands, known))
                return [
                    jnp.zeros(w.aval.shape, w.aval.dtype) if a is None else next(found)
                    for w, a in zip(wanted, here, strict=True)
                ]

            return function

        branches = [taken(*each) for each in enumerate(self.programs)]
        return jax.lax.switch(values[0], branches, *values[1:])


def _inside(equation: Equation, program: Any) -> Callable[[Atom], Atom]:
    """Return how what is asked of a call is called in the program inside."""
    own: dict[Any, Atom] = dict(zip(equation.outputs, program.outputs, strict=True))
    return lambda w: w.atom if isinstance(w, Inner) else own.get(w, w)
