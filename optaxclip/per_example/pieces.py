"""Products whose squared norms add up to that of a gradient.

The norm of a sum is that of products with the same place, joined along their positions,
and products whose places do not overlap add nothing to each other.
"""

from collections.abc import Sequence
from typing import Any

from optaxclip.per_example.places import Piece, UnknownStepError, everywhere
from optaxclip.per_example.steps import PARTS, STACKED, STEPS
from optaxclip.per_example.terms import (
    Made,
    Product,
    Shared,
    Sum,
    Term,
    in_order,
    is_zero,
)

# A sum of what was used before doubles the pieces: twelve steps of w = w + 0.1 * (-w)
# made 4096 of one product, which took 20 times as long to trace as the plain gradient.
_MOST_OF_ONE = 16


def pieces_of(term: Term) -> list[list[Piece]] | None:
    """Split a term into groups of pieces with the same place.

    What all examples add alike is left out.

    Returns:
      The groups; None if they are not known, or too many for the products there are.
    """
    known: dict[int, list[Piece]] = {}
    products = 0
    try:
        for each in in_order(term):
            below = [known[id(x)] for x in getattr(each, "operands", ())]
            known[id(each)] = _pieces(each, below)
            products += not below
            if len(known[id(each)]) > _MOST_OF_ONE * products:
                return None
    except UnknownStepError:
        return None
    return list(_grouped(known[id(term)]).values())


def _grouped(pieces: Sequence[Piece]) -> dict[Any, list[Piece]]:
    groups: dict[Any, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.key, []).append(piece)
    return groups


def _pieces(term: Term, below: Sequence[list[Piece]]) -> list[Piece]:
    if isinstance(term, Shared):
        return []
    if isinstance(term, Sum):
        return _together([piece for pieces in below for piece in pieces])
    if isinstance(term, Made):
        return _changed(term, below)
    place = everywhere(term.shape)
    return [Piece(term, term.shape, place, isinstance(term, Product))]


def _changed(made: Made, below: Sequence[list[Piece]]) -> list[Piece]:
    name, stacked = made.equation.name, len(made.levels)
    if name in PARTS and not stacked:
        return [PARTS[name](made, i, p) for i, each in enumerate(below) for p in each]
    coefficients = [
        x for x in made.operands if isinstance(x, Shared) and not is_zero(x)
    ]
    if name not in STEPS or (stacked and (coefficients or name not in STACKED)):
        raise UnknownStepError
    return [STEPS[name](made, stacked, p) for each in below for p in each]


def _together(pieces: list[Piece]) -> list[Piece]:
    """Check that pieces either have the same place, or do not overlap."""
    groups = list(_grouped(pieces).values())
    firsts = [group[0] for group in groups]
    for i, first in enumerate(firsts):
        if len(groups[i]) > 1 and not isinstance(first.cut, Product):
            raise UnknownStepError
        if not all(first.apart(other) for other in firsts[:i]):
            raise UnknownStepError
    return pieces
