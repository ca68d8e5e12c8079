"""Gradients that are linear in what is held for each example.

The sum over examples goes through the same steps as the gradient of one. The norm comes
from pieces that are measured without multiplying them out, or from one example's
gradient after another.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array

from optaxclip.mesh import vary, varying_axes
from optaxclip.per_example.assembly import (
    Values,
    constant_of,
    cuts_of,
    dtype_of,
    put_together,
    shared_by,
)
from optaxclip.per_example.calls import Atom
from optaxclip.per_example.convolutions import KernelDirect, KernelGram
from optaxclip.per_example.factors import Factor, size
from optaxclip.per_example.kinds import bare
from optaxclip.per_example.layouts import HIGHEST, contract, letters_of
from optaxclip.per_example.products import Gram
from optaxclip.per_example.tables import Table, inner_of_rows, rows_added
from optaxclip.per_example.terms import Convolution, Cut, Given, Product, Term
from optaxclip.per_example.ways import (
    ExampleArray,
    Factors,
    Good,
    Kept,
    Squares,
    power_of_two,
    sum_of_squares,
    vanishes,
    weigh,
    weighted_sum,
)

Part = Gram | Table | KernelGram | Given


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

    @functools.cached_property
    def cuts(self) -> list[Cut]:
        """The products and values of which the gradient is made."""
        return cuts_of(self.term)

    @functools.cached_property
    def atoms(self) -> tuple[Atom, ...]:
        """The values of the traced gradient that are held for each example."""
        atoms = (f.atom for cut in self.cuts for f in cut.factors)
        return tuple(dict.fromkeys(atoms))

    @property
    def shared(self) -> tuple[Atom, ...]:
        """The values that all examples share."""
        parts = (*self.cuts, *(self.norms or ()))
        factors = (factor for part in parts for factor in part.factors)
        changes = (change for factor in factors for change in factor.changes)
        inside = (atom for change in changes for atom in change.shared)
        return tuple(dict.fromkeys((*shared_by(self.term), *inside)))

    @property
    def cost(self) -> int:
        """The number of multiplications for the norm of one example."""
        if self.norms is None:
            return sum(map(_cost_of_forming, self.cuts))
        return sum(
            math.prod(n.shape) if isinstance(n, Given) else n.cost for n in self.norms
        )

    @property
    def memory(self) -> int:
        """The numbers stored for one example, in addition to the traced values."""
        return sum(
            math.prod(n.shape) if isinstance(n, Given) else n.memory
            for n in self.norms or ()
        )

    def knowing(self, values: Values) -> "Linear":
        """Return the same, with the shared values."""
        return replace(self, values=values)

    def hold(self, values: Sequence[Array]) -> Kept:
        """Arrange the traced values for the two methods below."""
        return tuple(values)

    def _arrays(self, kept: Kept, part: Cut | Part) -> list[Array]:
        """Return the changed factors of a part."""
        held = dict(zip(self.atoms, kept, strict=True))
        return [self._changed(held[f.atom], f) for f in part.factors]

    def _changed(self, x: Array, factor: Factor) -> Array:
        if not factor.rows and not jnp.issubdtype(x.dtype, jnp.inexact):
            x = x.astype(jnp.float32)
        for change in factor.changes:
            shared = [self.values[atom] for atom in change.shared]
            x = change.run(x, *shared)
        return x

    def squares(self, kept: Kept) -> Squares:
        """Compute the squared norm of each example's gradient."""
        if self.norms is None:
            return Squares(self._one_by_one(kept), zero=self._zero(kept))
        found = [self._squares(kept, norm) for norm in self.norms]
        if constant_of(self.term):
            found.append(self._with_constant(kept, found))
        total = functools.reduce(jnp.add, (s.total for s in found))
        errors = [s.error for s in found if s.error is not None]
        error = functools.reduce(jnp.add, errors) if errors else None
        return Squares(total, error, self._zero(kept))

    def _squares(self, kept: Kept, norm: Part) -> Squares:
        arrays = self._arrays(kept, norm)
        if isinstance(norm, Given):
            return Squares(sum_of_squares(arrays[0]))
        return norm.squares(arrays)

    def _one_by_one(self, kept: Kept) -> ExampleArray:
        """Square the gradients themselves; only one at a time is in memory."""
        one = jnp.ones((1,), jnp.float32)

        def of_one(held: Kept) -> Array:
            alone = tuple(x[None] for x in held)
            gradient = self.total(alone, (one, one), jnp.ones((1,), bool))
            return sum_of_squares(gradient[None])[0]

        return jax.lax.map(of_one, kept)

    def _zero(self, kept: Kept) -> Good | None:
        """Return whose gradient is zero, since all cotangents are."""
        if constant_of(self.term):
            return None
        held = dict(zip(self.atoms, kept, strict=True))
        each = (vanishes(held[_cotangent(cut)]) for cut in self.cuts)
        return functools.reduce(jnp.logical_and, each)

    def constant(self) -> tuple[Array, Sequence[Array]]:
        """Return what all examples add alike, and the transpose of the rest, of it."""
        # What does not vary over a mesh would be transposed to a sum over it.
        over = frozenset().union(*map(varying_axes, self.values.values()))
        zeros = [vary(jnp.zeros(c.shape, dtype_of(c)), over) for c in self.cuts]
        alone = put_together(self.term, zeros, self.values, 1.0)
        _, back = jax.vjp(
            lambda *sums: put_together(self.term, sums, self.values, 0.0), *zeros
        )
        return alone, back(alone)

    def _with_constant(self, kept: Kept, found: list[Squares]) -> Squares:
        """Square what all examples add alike, and multiply it by the rest.

        For S that all add and cuts x of which the rest is L(x), that is twice the inner
        product of x and the transpose of L, of S.
        """
        alone, back = self.constant()
        square = jnp.sum(jnp.square(alone))
        total = square
        for cut, x in zip(self.cuts, back, strict=True):
            total = total + 2 * _inner(bare(cut), self._arrays(kept, cut), x)
        gross = sum(jnp.sqrt(s.total) for s in found) + jnp.sqrt(square)
        # Numbers are added axis by axis.
        rounding = float(jnp.finfo(total.dtype).eps) / 2 * sum(alone.shape) ** 0.5
        return Squares(total, jnp.square(gross) * rounding)

    def total(self, kept: Kept, weights: Factors, good: Good) -> Array:
        """Sum the gradients of good examples, multiplied by their weights."""
        sums = [
            _sum_of(bare(cut), self._arrays(kept, cut), weights, good)
            for cut in self.cuts
        ]
        return self.put_together(sums, weights, good)

    def put_together(
        self, sums: Sequence[Array], weights: Factors, good: Good
    ) -> Array:
        """Return the sum of gradients, given the weighted sums of the cuts."""
        if not constant_of(self.term):
            return put_together(self.term, sums, self.values, 0.0)
        unit = power_of_two(jnp.max(jnp.where(good, weights[0], 0), initial=0.0))
        count = jnp.sum(jnp.where(good, weights[0] / unit * weights[1], 0))
        return put_together(self.term, sums, self.values, count, unit)


def _cotangent(cut: Cut) -> Atom:
    """Return what the backward pass multiplies; JAX puts it first in a product."""
    if isinstance(cut, Convolution):
        return cut.cotangent
    if isinstance(cut, Given):
        return cut.atom
    return cut.right.atom if cut.left.rows else cut.left.atom


def _cost_of_forming(cut: Cut) -> int:
    if isinstance(cut, Product):
        return size(cut.summed) * size(cut.axes)
    return KernelDirect(cut).cost if isinstance(cut, Convolution) else 0


@functools.partial(jax.jit, static_argnums=0)
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


@functools.partial(jax.jit, static_argnums=0)
def _inner(cut: Cut, arrays: list[Array], x: Array) -> ExampleArray:
    """Multiply each example's cut by an array like it, and sum up."""
    if isinstance(cut, Given):
        return jnp.sum(arrays[0] * x[None], tuple(range(1, x.ndim + 1)))
    assert isinstance(cut, Product)
    if cut.left.rows:
        return inner_of_rows(cut, arrays[0], arrays[1], x)
    first, second, own = letters_of(cut.left.axes, cut.right.axes, cut.axes)
    # Multiplied and added in one go, which a contraction would copy for.
    both = "".join(axis for axis in second if axis in first + own)
    moved = contract(f"N{first},{own}->N{both}", arrays[0], x, precision=HIGHEST)
    other = contract(f"N{second}->N{both}", arrays[1])
    return jnp.sum(moved * other, tuple(range(1, moved.ndim)))
