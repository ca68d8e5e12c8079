"""Parts of a gradient, and steps that only move them to other places.

Such a step leaves the norm of each part as it is, and so that of parts whose places do
not overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from optaxclip.per_example.factors import Axis
from optaxclip.per_example.layouts import layout
from optaxclip.per_example.terms import Convolution, Given, Made, Product

Place = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Piece:
    """A part of a term.

    Attributes:
      cut: a product, or a value as it is.
      shape: the shape of the array in which it lies.
      place: where it lies there; None if that is not known.
      free: whether the axes of the product are those of the array.
      path: the steps since they are no longer.
    """

    cut: Product | Given | Convolution
    shape: tuple[int, ...]
    place: Place | None
    free: bool
    path: tuple[Any, ...] = ()

    @property
    def key(self) -> Any:
        """What is equal for products that can be joined."""
        if not isinstance(self.cut, Product):
            return id(self.cut), self.place
        return self.place, self.path, self.free, layout(self.cut)

    def apart(self, other: "Piece") -> bool:
        """Return whether the two do not overlap."""
        if self.place is None or other.place is None:
            return False
        pairs = zip(self.place, other.place, strict=True)
        return any(a[1] <= b[0] or b[1] <= a[0] for a, b in pairs)

    def moved(self, step: Any, shape: Sequence[int], place: Place | None) -> "Piece":
        """Put it into another array; a step tells how."""
        path = (*self.path, step)
        return replace(self, shape=tuple(shape), place=place, free=False, path=path)

    @property
    def product(self) -> Product:
        """The product, whose axes must be those of the array."""
        if not self.free or not isinstance(self.cut, Product):
            raise UnknownStepError
        return self.cut

    def changed(self, product: Product) -> "Piece":
        """Replace the product by one of the whole array."""
        if self.place != everywhere(self.shape):
            raise UnknownStepError
        return Piece(product, product.shape, everywhere(product.shape), True)


class UnknownStepError(Exception):
    """Raised for steps that cannot be applied to the factors of a product."""


def everywhere(shape: Sequence[int]) -> Place:
    """Return the place that is all of an array."""
    return tuple((0, n) for n in shape)


def transposed(made: Made, stacked: int, piece: Piece) -> Piece:
    """Reorder the axes."""
    order = made.equation.params["permutation"]
    order = (*range(stacked), *(d + stacked for d in order))
    shape = [piece.shape[d] for d in order]
    place = piece.place and tuple(piece.place[d] for d in order)
    if not piece.free or not isinstance(piece.cut, Product):
        return piece.moved(("transpose", order), shape, place)
    product = replace(piece.cut, axes=tuple(piece.cut.axes[d] for d in order))
    return Piece(product, tuple(shape), place, True)


def reshaped(made: Made, stacked: int, piece: Piece) -> Piece:
    """Change the shape, if the numbers remain as many and in order."""
    params, inside = made.equation.params, made.equation.inputs[0].aval
    outside = made.equation.outputs[0].aval
    dims = params.get("broadcast_dimensions", ())
    if inside.size != outside.size or list(dims) != sorted(dims):
        raise UnknownStepError
    shape = (*piece.shape[:stacked], *outside.shape)
    if tuple(shape) == piece.shape:
        return piece
    kept = [d for d, n in enumerate(piece.shape) if n != 1]
    if [piece.shape[d] for d in kept] != [n for n in shape if n != 1]:
        place = everywhere(shape) if piece.place == everywhere(piece.shape) else None
        return piece.moved(("reshape", shape), shape, place)
    # Only axes of one entry come or go.
    old = iter(kept)
    come_from = [next(old) if n != 1 else None for n in shape]
    place = piece.place and tuple(
        (0, 1) if d is None else piece.place[d] for d in come_from
    )
    if piece.free and isinstance(piece.cut, Product):
        axes = tuple(Axis(1) if d is None else piece.cut.axes[d] for d in come_from)
        return Piece(replace(piece.cut, axes=axes), shape, place, True)
    return piece.moved(("reshape", shape), shape, place)


def turned(made: Made, stacked: int, piece: Piece) -> Piece:
    """Reverse axes."""
    place = piece.place if piece.place == everywhere(piece.shape) else None
    return piece.moved(("rev", made.equation.params["dimensions"]), piece.shape, place)


def padded(made: Made, stacked: int, piece: Piece) -> Piece:
    """Surround a part by zeros."""
    config = made.equation.params["padding_config"]
    if any(low < 0 or high < 0 or between for low, high, between in config):
        raise UnknownStepError
    place = piece.place and tuple(
        (low + start, low + stop)
        for (low, _, _), (start, stop) in zip(config, piece.place, strict=True)
    )
    shape = made.equation.outputs[0].aval.shape
    return piece.moved(("pad", str(config)), shape, place)


def part_of(made: Made, index: int, piece: Piece) -> Piece:
    """Put a part beside the other operands of a concatenation or a stack."""
    equation = made.equation
    shape = equation.outputs[0].aval.shape
    place = list(piece.place) if piece.place is not None else None
    if equation.name == "stack":
        dim, offset = equation.params["axis"], index
        if place is not None:
            place.insert(dim, (index, index + 1))
    else:
        dim = equation.params["dimension"]
        offset = sum(atom.aval.shape[dim] for atom in equation.inputs[:index])
        if place is not None:
            start, stop = place[dim]
            place[dim] = start + offset, stop + offset
    step = (equation.name, dim, offset, shape)
    return piece.moved(step, shape, None if place is None else tuple(place))
