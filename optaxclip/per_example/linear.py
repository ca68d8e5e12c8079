"""Gradients that are linear in what is held for each example.

The sum over examples goes through the same steps as the gradient of one. The norm comes
from pieces that are measured without multiplying them out, or from one example's
gradient after another.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array

from optaxclip.per_example.assembly import (
    Values,
    constant_of,
    cuts_of,
    put_together,
    shared_by,
)
from optaxclip.per_example.calls import Atom
from optaxclip.per_example.convolutions import KernelDirect, KernelGram
from optaxclip.per_example.layouts import contract, letters_of
from optaxclip.per_example.products import Gram
from optaxclip.per_example.tables import Table, rows_added
from optaxclip.per_example.terms import (
    Convolution,
    Cut,
    Factor,
    Given,
    Product,
    Term,
    size,
)
from optaxclip.per_example.ways import (
    ExampleArray,
    Factors,
    Good,
    InUnits,
    Kept,
    Squares,
    in_units,
    squares_one_by_one,
    sum_of_squares,
    weigh,
    weighted_sum,
)

Part = Gram | Table | KernelGram | Given


def factors_of(part: Cut | Part) -> tuple[Factor, ...]:
    """List the arrays that are multiplied."""
    if isinstance(part, Product):
        return part.left, part.right
    if isinstance(part, Given):
        return (Factor(part.atom, ()),)
    if isinstance(part, Convolution | KernelGram):
        term = part.term if isinstance(part, KernelGram) else part
        return Factor(term.image, ()), Factor(term.cotangent, ())
    return part.factors


@dataclass(frozen=True)
class Linear:
    """A gradient put together from held values.

    Attributes:
      term: how it is put together.
      norms: the pieces of which the norm is made; None if each example's gradient is
        squared, one at a time.
      values: the values that all examples share.
    """

    term: Term
    norms: tuple[Part, ...] | None
    values: Values = field(default_factory=dict, repr=False, compare=False)

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """See `Way.atoms`."""
        atoms = (f.atom for cut in cuts_of(self.term) for f in factors_of(cut))
        return tuple(dict.fromkeys(atoms))

    @property
    def shared(self) -> tuple[Atom, ...]:
        """See `Way.shared`."""
        parts = (*cuts_of(self.term), *(self.norms or ()))
        factors = (factor for part in parts for factor in factors_of(part))
        changes = (change for factor in factors for change in factor.changes)
        inside = (atom for change in changes for atom in change.shared)
        return tuple(dict.fromkeys((*shared_by(self.term), *inside)))

    @property
    def cost(self) -> int:
        """See `Way.cost`."""
        if self.norms is None:
            return sum(map(_cost_of_forming, cuts_of(self.term)))
        measured = (n for n in self.norms if not isinstance(n, Given))
        return sum(norm.cost for norm in measured)

    @property
    def memory(self) -> int:
        """See `Way.memory`."""
        measured = (n for n in self.norms or () if not isinstance(n, Given))
        return sum(norm.memory for norm in measured)

    def knowing(self, values: Values) -> "Linear":
        """See `Way.knowing`."""
        return replace(self, values=values)

    def hold(self, values: Sequence[Array]) -> Kept:
        """See `Way.hold`."""
        return tuple(values)

    def _arrays(self, kept: Kept, part: Cut | Part) -> list[Array]:
        """Return the changed factors of a part."""
        held = dict(zip(self.atoms, kept, strict=True))
        return [self._changed(held[f.atom], f) for f in factors_of(part)]

    def _changed(self, x: Array, factor: Factor) -> Array:
        if not factor.rows and not jnp.issubdtype(x.dtype, jnp.inexact):
            x = x.astype(jnp.float32)
        for change in factor.changes:
            shared = [self.values[atom] for atom in change.shared]
            x = jax.vmap(change.run, (0, *(None for _ in shared)))(x, *shared)
        return x

    def squares(self, kept: Kept) -> Squares:
        """See `Way.squares`."""
        if self.norms is None:
            return Squares(squares_one_by_one(self, kept))
        found = [self._squares(kept, norm) for norm in self.norms]
        if constant_of(self.term):
            found.append(self._with_constant(kept, found))
        total = functools.reduce(jnp.add, (s.total for s in found))
        errors = [s.error for s in found if s.error is not None]
        return Squares(total, functools.reduce(jnp.add, errors) if errors else None)

    def _squares(self, kept: Kept, norm: Part) -> Squares:
        arrays = self._arrays(kept, norm)
        if isinstance(norm, Given):
            return Squares(sum_of_squares(arrays[0]))
        return norm.squares(arrays)

    def squares_in_units(self, kept: Kept) -> InUnits | None:
        """See `Way.squares_in_units`."""
        if self.norms is None or constant_of(self.term):
            return None
        if not all(isinstance(n, Given) or n.positions == 1 for n in self.norms):
            return None  # Terms may cancel each other.
        found = [self._in_units(kept, norm) for norm in self.norms]
        # The unit of what is zero is of no account.
        found = [(square, jnp.where(square == 0, 0, unit)) for square, unit in found]
        common = functools.reduce(jnp.maximum, (unit for _, unit in found))
        common = jnp.where(common == 0, 1, common)
        squares = (square * jnp.square(unit / common) for square, unit in found)
        return functools.reduce(jnp.add, squares), common

    def _in_units(self, kept: Kept, norm: Part) -> InUnits:
        """Square a piece, whose factors are divided by units first."""
        arrays = self._arrays(kept, norm)
        pairs = [
            (x, None) if factor.rows else in_units(x)
            for x, factor in zip(arrays, factors_of(norm), strict=True)
        ]
        units = [unit for _, unit in pairs if unit is not None]
        scaled = [x for x, _ in pairs]
        if isinstance(norm, Given):
            return sum_of_squares(scaled[0]), units[0]
        return norm.squares(scaled).total, functools.reduce(jnp.multiply, units)

    def _with_constant(self, kept: Kept, found: list[Squares]) -> Squares:
        """Square what all examples add alike, and multiply it by the rest.

        For S that all add and cuts x of which the rest is L(x), that is twice the inner
        product of x and the transpose of L, of S.
        """
        cuts = cuts_of(self.term)
        zeros = [jnp.zeros(shape_of(cut), jnp.float32) for cut in cuts]
        alone = put_together(self.term, zeros, self.values, 1.0)
        _, back = jax.vjp(
            lambda *sums: put_together(self.term, sums, self.values, 0.0), *zeros
        )
        square = jnp.sum(jnp.square(alone))
        total = square
        for cut, x in zip(cuts, back(alone), strict=True):
            total = total + 2 * _inner(cut, self._arrays(kept, cut), x)
        gross = sum(jnp.sqrt(s.total) for s in found) + jnp.sqrt(square)
        unit = float(jnp.finfo(total.dtype).eps) / 2
        return Squares(total, jnp.square(gross) * (unit * alone.size**0.5))

    def total(self, kept: Kept, weights: Factors, good: Good) -> Array:
        """See `Way.total`."""
        sums = [
            _sum_of(cut, self._arrays(kept, cut), weights, good)
            for cut in cuts_of(self.term)
        ]
        count = jnp.sum(jnp.where(good, weights[0] * weights[1], 0))
        return put_together(self.term, sums, self.values, count)


def shape_of(cut: Cut) -> tuple[int, ...]:
    """Return the shape of a cut."""
    if isinstance(cut, Product):
        return tuple(axis.size for axis in cut.axes)
    return cut.shapes[2] if isinstance(cut, Convolution) else cut.atom.aval.shape


def _cost_of_forming(cut: Cut) -> int:
    if isinstance(cut, Product):
        return size(cut.summed) * size(cut.axes)
    return KernelDirect(cut).cost if isinstance(cut, Convolution) else 0


def _sum_of(cut: Cut, arrays: list[Array], weights: Factors, good: Good) -> Array:
    """Sum a cut over good examples."""
    if isinstance(cut, Given):
        return weighted_sum(arrays[0], weights, good)
    if isinstance(cut, Product) and cut.left.rows:
        return rows_added(cut, arrays[0], weigh(arrays[1], weights, good))
    a, b = weigh(arrays[0], weights[:1], good), weigh(arrays[1], weights[1:], good)
    if isinstance(cut, Convolution):
        return KernelGram(cut).added(a, b)
    first, second, out = letters_of(cut.left.axes, cut.right.axes, cut.axes)
    subscripts = f"N{first},N{second}->{out}"
    return contract(subscripts, a, b, precision=cut.precision)


def _inner(cut: Cut, arrays: list[Array], x: Array) -> ExampleArray:
    """Multiply each example's cut by an array like it, and sum up."""
    if isinstance(cut, Given):
        return contract("n...,...->n", arrays[0], x)
    assert isinstance(cut, Product)
    first, second, own = letters_of(cut.left.axes, cut.right.axes, cut.axes)
    return contract(f"N{first},N{second},{own}->N", *arrays, x)
