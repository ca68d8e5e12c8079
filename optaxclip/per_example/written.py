"""What the steps of a loop write into a table, each at a place that is known.

So kernels get their gradients that a loop reads by its counter. It is one more step,
from what the loop stacks to the table.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from optaxclip.per_example.calls import Atom, Equation, Fixed, Value
from optaxclip.per_example.factors import Axis, Change, Factor
from optaxclip.per_example.places import Piece, UnknownStepError
from optaxclip.per_example.terms import Made, Shared, Term, is_zero

NAME = "written by steps"
_SLICE, _INDEX = "dynamic_update_slice", "scatter-add"

OutsideOfLoop = Callable[[Atom], tuple[Atom, bool]]


def writes(term: Term) -> TypeGuard[Made]:
    """Return whether a term is made by writing into zeros."""
    if not isinstance(term, Made) or term.equation.name not in (_SLICE, _INDEX):
        return False
    return not term.levels and is_zero(term.operands[0])


def part_written(made: Made) -> tuple[Atom, Term]:
    """Return what is written, and its term."""
    index = 1 if made.equation.name == _SLICE else 2
    return made.equation.inputs[index], made.operands[index]


def written(
    made: Made, parts: Term, length: int, outside: OutsideOfLoop
) -> Term | None:
    """Return the table after all steps of a loop; None if it is not known where.

    Args:
      made: what one step writes.
      parts: what the steps write, stacked.
      length: the number of steps.
      outside: returns what is known of a value inside of the loop.
    """
    equation, table = made.equation, made.equation.outputs[0].aval
    by_slice = equation.name == _SLICE
    operands = made.operands[2:] if by_slice else made.operands[1:2]
    indices = [_known(x, length, outside) for x in operands]
    if not length or any(x is None for x in indices):
        return None
    found = (_by_slice if by_slice else _by_index)(equation, indices)
    if found is None:
        return None
    starts, window = found

    def run(values: Sequence[Array]) -> list[Array]:
        parts = values[0].reshape(length, *window)
        everything = tuple(range(len(window)))
        numbers = jax.lax.ScatterDimensionNumbers(
            tuple(d + 1 for d in everything), (), everything
        )
        zeros, at = jnp.zeros(table.shape, parts.dtype), jnp.asarray(starts, jnp.int32)
        return [jax.lax.scatter_add(zeros, at, parts, numbers)]

    row = equation.inputs[1 if by_slice else 2].aval
    stacked = jax.ShapeDtypeStruct((length, *row.shape), row.dtype)
    params = {"starts": starts, "window": window}
    ends = (Value(stacked),), (Value(table),)
    return Made((parts,), Equation(NAME, params, *ends, run))


def _known(term: Term, length: int, outside: OutsideOfLoop) -> np.ndarray | None:
    """Return an index at every step."""
    if is_zero(term):
        return np.zeros(length, np.int64)
    if not isinstance(term, Shared) or term.atom is None:
        return None
    atom, stacked = outside(term.atom)
    if not isinstance(atom, Fixed):
        return None
    value = np.asarray(atom.val, np.int64)
    return value if stacked else np.broadcast_to(value, (length, *value.shape))


Places = tuple[np.ndarray, tuple[int, ...]]  # Where parts start, and how long they are.


def _by_slice(equation: Equation, indices: Sequence[Any]) -> Places:
    table, row = (atom.aval.shape for atom in equation.inputs[:2])
    most = np.subtract(table, row)
    return np.clip(np.stack(indices, axis=1), 0, most), tuple(row)


def _by_index(equation: Equation, indices: Sequence[Any]) -> Places | None:
    """Return the same for one index within bounds; all indices might add."""
    table, _, row = (atom.aval.shape for atom in equation.inputs)
    numbers = equation.params["dimension_numbers"]
    (index,) = indices
    into = list(numbers.scatter_dims_to_operand_dims)
    if index[0].size != len(into) or numbers.operand_batching_dims:
        return None
    sizes = iter([row[d] for d in numbers.update_window_dims])
    gone = numbers.inserted_window_dims
    window = tuple(1 if d in gone else next(sizes) for d in range(len(table)))
    starts = np.zeros((len(index), len(table)), np.int64)
    starts[:, into] = index.reshape(len(index), -1)
    inside = (starts >= 0) & (starts <= np.subtract(table, window))
    return (starts, window) if inside.all() else None


def in_places(made: Made, stacked: int, piece: Piece) -> Piece:
    """Add up what steps write at the same place, and put it there."""
    starts, window = (made.equation.params[name] for name in ("starts", "window"))
    places, which = np.unique(starts, axis=0, return_inverse=True)
    first, last = places.min(axis=0), places.max(axis=0) + window
    if np.any((places - first) % window):
        raise UnknownStepError  # They might overlap.
    if len(places) < len(starts):
        piece = _added_up(piece, which.ravel(), len(places))
    elif (places != starts).any():
        places = starts
    shape = made.equation.outputs[0].aval.shape
    place = tuple(zip(first.tolist(), last.tolist(), strict=True))
    return piece.moved((NAME, places.tobytes()), shape, place)


def _added_up(piece: Piece, which: np.ndarray, number: int) -> Piece:
    """Let the steps that write at a place be positions of one product.

    Where steps are fewer than elsewhere, zeros take their place.
    """
    most, steps = int(np.bincount(which).max()), len(which)
    if number * most > 2 * steps:
        raise UnknownStepError
    table = np.full((number, most), steps)
    for place in range(number):
        here = np.flatnonzero(which == place)
        table[place, : len(here)] = here
    product = piece.product
    old, new = product.axes[0], (Axis(number), Axis(most))

    def of_factor(factor: Factor) -> Factor:
        if old in factor.rows:
            raise UnknownStepError
        if old not in factor.axes:
            return factor
        at = factor.axes.index(old)

        def run(x: Array) -> Array:
            found = jnp.take(x, table.ravel(), axis=1 + at, mode="fill", fill_value=0)
            return found.reshape(*x.shape[: 1 + at], *table.shape, *x.shape[2 + at :])

        axes = (*factor.axes[:at], *new, *factor.axes[at + 1 :])
        return replace(factor, axes=axes, changes=(*factor.changes, Change(run)))

    left, right = of_factor(product.left), of_factor(product.right)
    axes = (new[0], *product.axes[1:])
    return piece.changed(replace(product, left=left, right=right, axes=axes))
