r"""Gradients that are products of two arrays, measured without multiplying them out.

The gradient of one example is $G = \sum_t a_t b_t^\top$, with T positions t. Its
squared norm is $\sum_{s, t} (a_s \cdot a_t) (b_s \cdot b_t)$, which takes
$T^2 (A + B)$ multiplications for a matrix of A by B, while G itself takes T A B. The
cheaper method is used. Either way, the result is no larger than a and b themselves: G
is multiplied out if $A B \le T (A + B)$, and otherwise $T^2 < T \min(A, B)$.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from optaxclip.numbers import widen
from optaxclip.per_example.layouts import (
    HIGHEST,
    assemble,
    blocks,
    contract,
    join,
    matrices,
    ordered,
    sizes_of,
)
from optaxclip.per_example.program import Atom
from optaxclip.per_example.terms import Product
from optaxclip.per_example.ways import (
    ExampleArray,
    Factors,
    Formed,
    Good,
    Kept,
    Squares,
    added,
    in_units,
    weigh_pair,
)


class Letters(NamedTuple):
    """Names of axes for `jnp.einsum`.

    Attributes:
      first: the axes of the first factor.
      second: the axes of the second factor.
      shared: the axes that both factors and the product have.
      summed: the axes that both factors have and that are summed over.
      result: the axes of the product: shared ones, those only in the first factor,
        those only in the second, each in the order of the product.
    """

    first: str
    second: str
    shared: str
    summed: str
    result: str


@dataclass(frozen=True)
class _Products:
    """Products with the same layout, concatenated along their positions.

    Attributes:
      products: the products.
    """

    products: tuple[Product, ...]

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """See `Way.atoms`."""
        return tuple(f.atom for p in self.products for f in ordered(p))

    @property
    def _in_place(self) -> bool:
        """Whether the factors can be used as they are; rearranging would copy them."""
        product = self.products[0]
        axes = set(product.left.axes) & set(product.right.axes)
        return len(self.products) == 1 and axes >= {*product.shared, *product.summed}

    @property
    def _letters(self) -> Letters:
        """The names of the factors' axes as stored."""
        if not self._in_place:
            return Letters("zta", "ztb", "z", "t", "zab")
        product = self.products[0]
        order = (*product.axes, *product.summed)
        name = {axis: chr(ord("a") + i) for i, axis in enumerate(order)}
        parts = [f.axes for f in ordered(product)]
        parts += [product.shared, product.summed, sum(blocks(product), ())]
        return Letters(*("".join(name[axis] for axis in part) for part in parts))

    def _factors(self, values: Sequence[Array]) -> tuple[Array, Array]:
        found: tuple[list[Array], list[Array]] = ([], [])
        pairs = zip(values[::2], values[1::2], strict=True)
        for product, (a, b) in zip(self.products, pairs, strict=True):
            if not self._in_place:
                first, second = ordered(product)
                a, b = matrices(a, first, product), matrices(b, second, product)
            found[0].append(a)
            found[1].append(b if product.scale == 1 else b * product.scale)
        return join(found[0], 2), join(found[1], 2)

    def _assemble(self, total: Array) -> Array:
        return assemble(total, self.products[0])


class Gram(_Products):
    """Norms from inner products between positions, without multiplying out."""

    @property
    def cost(self) -> int:
        """See `Way.cost`."""
        shared, positions, a, b = sizes_of(self.products)
        return shared * positions**2 * (a + b)

    @property
    def memory(self) -> int:
        """See `Way.memory`."""
        shared, positions, _, _ = sizes_of(self.products)
        return 2 * shared * positions**2 if positions > 1 else 0

    def hold(self, values: Sequence[Array]) -> Kept:
        """See `Way.hold`."""
        return self._factors(values)

    def rescale(self, kept: Kept) -> tuple[Kept, ExampleArray]:
        """See `Way.rescale`."""
        (a, unit), (b, other) = map(in_units, kept)
        return (a, b), unit * other

    def squares(self, kept: Kept) -> Squares:
        """See `Way.squares`."""
        letters = self._letters
        grams = [
            self._gram(x, axes, letters)
            for x, axes in zip(kept, (letters.first, letters.second), strict=True)
        ]
        terms = grams[0] * grams[1]
        _, positions, first, second = sizes_of(self.products)
        if positions == 1:
            return Squares(jnp.sum(terms.reshape(len(terms), -1), axis=1))
        return added([terms], first + second)

    def _gram(self, x: Array, axes: str, letters: Letters) -> Array:
        """Compute inner products of all positions, separately per shared entry."""
        if sizes_of(self.products)[1] == 1:
            own = [1 + i for i, a in enumerate(axes) if a not in letters.shared]
            squares = jnp.sum(jnp.square(widen(x)), axis=own)
            order = [
                1 + [a for a in axes if a in letters.shared].index(a)
                for a in letters.shared
            ]
            return jnp.transpose(squares, (0, *order))
        other = "".join(a.upper() if a in letters.summed else a for a in axes)
        out = letters.shared + letters.summed + letters.summed.upper()
        return contract(f"N{axes},N{other}->N{out}", x, x, precision=HIGHEST)

    def total(self, kept: Kept, weights: Factors, good: Good) -> Array:
        """See `Way.total`."""
        a, b = weigh_pair(kept[0], kept[1], weights, good)
        letters = self._letters
        return self._assemble(
            contract(f"N{letters.first},N{letters.second}->{letters.result}", a, b)
        )


class Direct(_Products, Formed):
    """The gradient of each example multiplied out, if smaller than its factors."""

    @property
    def cost(self) -> int:
        """See `Way.cost`."""
        shared, positions, a, b = sizes_of(self.products)
        return shared * positions * a * b

    @property
    def memory(self) -> int:
        """See `Way.memory`."""
        shared, _, a, b = sizes_of(self.products)
        return shared * a * b

    def hold(self, values: Sequence[Array]) -> Kept:
        """See `Way.hold`."""
        letters = self._letters
        subscripts = f"N{letters.first},N{letters.second}->N{letters.result}"
        return (contract(subscripts, *self._factors(values)),)
