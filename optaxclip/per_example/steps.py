"""Steps from products to a gradient, applied to the factors of the products.

What a step does along an axis is done to the factor that has it, and numbers are
multiplied and added in at least float32.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from optaxclip.numbers import widen
from optaxclip.per_example.calls import Atom
from optaxclip.per_example.factors import Axes, Axis, Change, Factor
from optaxclip.per_example.layouts import HIGHEST
from optaxclip.per_example.places import (
    Piece,
    UnknownStepError,
    padded,
    part_of,
    reshaped,
    transposed,
    turned,
)
from optaxclip.per_example.terms import Made, Product, Shared, Term
from optaxclip.per_example.written import NAME, in_places


def _both(product: Product, change: Callable[[Factor], Factor]) -> Product:
    left, right = change(product.left), change(product.right)
    return replace(product, left=left, right=right)


def _with_change(factor: Factor, axes: Axes, run: Any, *shared: Atom) -> Factor:
    """Change a factor of numbers, not of indices."""
    if factor.rows:
        raise UnknownStepError
    changes = (*factor.changes, Change(run, shared))
    return replace(factor, axes=axes, changes=changes)


def _kept(made: Made, stacked: int, piece: Piece) -> Piece:
    """The type or the sign changes."""
    return piece


def _negated(made: Made, stacked: int, piece: Piece) -> Piece:
    if not isinstance(piece.cut, Product):
        return piece.moved("neg", piece.shape, piece.place)

    def of_factor(factor: Factor) -> Factor:
        mine = factor is numbers
        return _with_change(factor, factor.axes, jnp.negative) if mine else factor

    numbers = piece.cut.right if piece.cut.left.rows else piece.cut.left
    return replace(piece, cut=_both(piece.cut, of_factor))


def _sliced(piece: Piece, dim: int, start: int, stop: int, stride: int) -> Piece:
    """Take a part along an axis, of every factor that has it."""
    axis, new = piece.product.axes[dim], Axis(len(range(start, stop, stride)))

    def of_factor(factor: Factor) -> Factor:
        if axis not in factor.spans:
            return factor
        at = 1 + factor.axes.index(axis) if axis in factor.axes else -1
        axes = tuple(new if a is axis else a for a in factor.axes)

        def run(x: Array) -> Array:
            return jax.lax.slice_in_dim(x, start, stop, stride, axis=at)

        return _with_change(factor, axes, run)

    product = _both(piece.product, of_factor)
    axes = tuple(new if a is axis else a for a in product.axes)
    return piece.changed(replace(product, axes=axes))


def _slice(made: Made, stacked: int, piece: Piece) -> Piece:
    params = made.equation.params
    strides = params["strides"] or (1,) * len(piece.shape)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    for dim, (start, stop, stride) in enumerate(bounds):
        if (start, stop, stride) != (0, piece.shape[dim], 1):
            piece = _sliced(piece, dim, start, stop, stride)
    return piece


def _split(made: Made, stacked: int, piece: Piece) -> Piece:
    sizes = made.equation.params["sizes"]
    start = sum(sizes[: made.output])
    axis = made.equation.params["axis"]
    return _sliced(piece, axis, start, start + sizes[made.output], 1)


def _unstack(made: Made, stacked: int, piece: Piece) -> Piece:
    dim = made.equation.params["axis"]
    piece = _sliced(piece, dim, made.output, made.output + 1, 1)
    product = piece.product
    return piece.changed(
        replace(product, axes=product.axes[:dim] + product.axes[dim + 1 :])
    )


def _reduce_sum(made: Made, stacked: int, piece: Piece) -> Piece:
    gone = [piece.product.axes[d] for d in made.equation.params["axes"]]
    spans = [set(f.spans) for f in (piece.product.left, piece.product.right)]
    alone = [a for a in gone if not (a in spans[0] and a in spans[1])]

    def of_factor(factor: Factor) -> Factor:
        at = [d for d, a in enumerate(factor.axes, 1) if a in alone]
        if not at and not set(alone) & set(factor.rows):
            return factor
        axes = tuple(a for a in factor.axes if a not in alone)
        return _with_change(factor, axes, lambda x: jnp.sum(widen(x), at))

    product = _both(piece.product, of_factor)
    axes = tuple(a for a in product.axes if a not in gone)
    return piece.changed(replace(product, axes=axes))


def _scaled(made: Made, stacked: int, piece: Piece) -> Piece:
    """Multiplied by a number, or by numbers along one axis."""
    (which,) = (i for i, x in enumerate(made.operands) if isinstance(x, Shared))
    atom, dims = _repeated(made.operands[which])
    if atom.aval.ndim != len(dims) or len(dims) > 1:
        raise UnknownStepError
    if not isinstance(piece.cut, Product):
        raise UnknownStepError
    divided = made.equation.name == "div"
    factor = piece.cut.right if piece.cut.left.rows else piece.cut.left
    at = None
    if dims:
        axis = piece.product.axes[dims[0]]
        own = [f for f in (piece.product.left, piece.product.right) if axis in f.axes]
        if not own or atom.aval.shape != (axis.size,):
            raise UnknownStepError
        factor, at = own[0], 1 + own[0].axes.index(axis)

    def run(x: Array, by: Array) -> Array:
        shape = [1] * x.ndim
        if at is not None:
            shape[at] = -1
        x = widen(x)
        by = jnp.asarray(by, x.dtype).reshape(shape)
        return x / by if divided else x * by

    def of_factor(each: Factor) -> Factor:
        return _with_change(each, each.axes, run, atom) if each is factor else each

    return replace(piece, cut=_both(piece.cut, of_factor))


def _repeated(term: Term) -> tuple[Atom, tuple[int, ...]]:
    """Return a shared value, and the axes of the result along which it differs."""
    if not isinstance(term, Shared) or term.atom is None:
        raise UnknownStepError
    return term.repeated or (term.atom, tuple(range(term.atom.aval.ndim)))


def _contracted(made: Made, stacked: int, piece: Piece) -> Piece:
    """Multiplied by a matrix that all examples share, which changes one factor."""
    contracted, (batch, _) = made.equation.params["dimension_numbers"]
    which = int(isinstance(made.operands[0], Shared))
    mine, yours = contracted[which], contracted[1 - which]
    matrix, product = made.operands[1 - which], piece.product
    if batch or not isinstance(matrix, Shared) or matrix.atom is None:
        raise UnknownStepError
    gone = [product.axes[d] for d in mine]
    atom, factors = matrix.atom, (product.left, product.right)
    owners = [f for f in factors if set(gone) & set(f.spans)]
    if len(owners) != 1 or not set(gone) <= set(owners[0].axes):
        raise UnknownStepError
    shape = atom.aval.shape
    new = tuple(Axis(n) for d, n in enumerate(shape) if d not in yours)

    def of_factor(factor: Factor) -> Factor:
        if factor is not owners[0]:
            return factor
        at = [1 + factor.axes.index(a) for a in gone]
        axes = tuple(a for a in factor.axes if a not in gone) + new

        def run(x: Array, by: Array) -> Array:
            with jax.numpy_dtype_promotion("standard"):
                return jnp.tensordot(widen(x), by, (at, yours), precision=HIGHEST)

        return _with_change(factor, axes, run, atom)

    kept = tuple(a for a in product.axes if a not in gone)
    axes = new + kept if which else kept + new
    return piece.changed(replace(_both(product, of_factor), axes=axes))


# Steps that are known, also where they are mapped over the steps of a loop.
STACKED = ("transpose", "reshape", "squeeze", "expand_dims", "broadcast_in_dim")
STACKED = (*STACKED, "convert_element_type", "copy", "neg")
STEPS: dict[str, Callable[[Made, int, Piece], Piece]] = {
    "convert_element_type": _kept,
    "copy": _kept,
    "neg": _negated,
    "transpose": transposed,
    "reshape": reshaped,
    "squeeze": reshaped,
    "expand_dims": reshaped,
    "broadcast_in_dim": reshaped,
    "rev": turned,
    "pad": padded,
    "slice": _slice,
    "split": _split,
    "unstack": _unstack,
    "reduce_sum": _reduce_sum,
    "mul": _scaled,
    "div": _scaled,
    "dot_general": _contracted,
    NAME: in_places,
}
# Steps that put several arrays together.
PARTS = {"concatenate": part_of, "stack": part_of}
