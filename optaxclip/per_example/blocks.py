"""Blocks that a program contains several times, traced once for all of them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import jax

from optaxclip.per_example.calls import Atom, Equation, Inner, Value

Live = list[tuple[Equation, list[Atom]]]
Computed = dict[Any, Any]


# A call of what is traced takes about as long as this many equations.
_FEWEST = 40


@dataclass(frozen=True, eq=False)
class Block:
    """Where a program was written out in place of a call.

    Attributes:
      written: the program; blocks of one program have the same equations.
      places: the place of each equation, by its `id`.
    """

    written: Any
    places: dict[int, int]


def repeated(blocks: Sequence[Block]) -> dict[int, Block]:
    """Return the block of each equation, by its `id`, where calling it is worth it."""
    times = Counter(id(block.written) for block in blocks)
    return {
        equation: block
        for block in blocks
        if times[id(block.written)] > 1 and len(block.places) >= _FEWEST
        for equation in block.places
    }


def evaluate_live(
    live: Live,
    known: Computed,
    block_of: dict[int, Block],
    wanted: Iterable[Atom],
    run: Callable[[Live, Computed], None],
) -> None:
    """Evaluate equations in order; `run` does it for some, and adds what it finds."""
    asked = _asked_of_blocks(live, block_of, wanted)
    traced: dict[Any, Any] = {}
    for block, some in groupby(live, lambda each: block_of.get(id(each[0]))):
        part = list(some)
        inside = any(isinstance(out, Inner) for _, outs in part for out in outs)
        if block is None or inside:
            run(part, known)
            continue
        given, found = _ends(part, asked)
        key = id(block.written), _layout(part, block, given, found)
        if key not in traced:
            traced[key] = jax.jit(_function(part, given, found, run))
        values = traced[key]([known.get(atom) for atom in given])
        known |= zip(found, values, strict=True)


def _function(
    part: Live,
    given: Sequence[Value],
    found: Sequence[Value],
    run: Callable[[Live, Computed], None],
) -> Callable[[list[Any]], list[Any]]:
    def function(values: list[Any]) -> list[Any]:
        known = dict(zip(given, values, strict=True))
        run(part, known)
        return [known[atom] for atom in found]

    return function


def _asked_of_blocks(
    live: Live, block_of: dict[int, Block], wanted: Iterable[Atom]
) -> set[Atom]:
    """Find the values that are read outside of the block that computes them."""
    made: dict[Any, Block | None] = {}
    for equation, _ in live:
        made |= dict.fromkeys(equation.outputs, block_of.get(id(equation)))
    asked = set(wanted)
    for equation, _ in live:
        block = block_of.get(id(equation))
        asked.update(a for a in equation.inputs if made.get(a) is not block)
    return asked


def _ends(part: Live, asked: set[Atom]) -> tuple[list[Value], list[Value]]:
    """Return the values that equations take from elsewhere, and those asked of them."""
    made = [out for equation, _ in part for out in equation.outputs]
    inside = set(made)
    read = (a for equation, _ in part for a in equation.inputs if isinstance(a, Value))
    given = [atom for atom in dict.fromkeys(read) if atom not in inside]
    return given, [out for out in made if out in asked]


def _layout(
    part: Live, block: Block, given: Sequence[Value], found: Sequence[Value]
) -> Any:
    """Describe equations of a block: the same for two that compute the same."""
    number: dict[Any, int] = {atom: i for i, atom in enumerate(given)}
    for equation, _ in part:
        number |= {out: len(number) + i for i, out in enumerate(equation.outputs)}
    reads = tuple(
        (block.places[id(equation)], tuple(number.get(a, -1) for a in equation.inputs))
        for equation, _ in part
    )
    return reads, tuple(number[out] for out in found)
