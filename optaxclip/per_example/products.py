"""Gradients that are two matrices multiplied, measured without multiplying them out.

The gradient of one example is $G = \\sum_t a_t b_t^\\top$, t being its T positions. Its
squared norm is $\\sum_{s, t} (a_s \\cdot a_t) (b_s \\cdot b_t)$, which takes
$T^2 (A + B)$ multiplications for a matrix of A by B, while G itself takes T A B. The
cheaper is taken. So either way what is held is no larger than a and b themselves: G
is multiplied out where $A B \\le T (A + B)$, and else $T^2 < T \\min(A, B)$.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from optaxclip.magnitudes import widen
from optaxclip.per_example.program import Atom
from optaxclip.per_example.terms import Axes, Factor, Product, finish, size
from optaxclip.per_example.ways import (
    Kept,
    PerExample,
    in_units,
    only_good,
    sum_of_squares,
    weigh,
)


def layout(product: Product) -> tuple[tuple[int, ...], ...]:
    """Tell which axes of a product stand in both factors, the first and the second."""
    first, second = ordered(product)
    return tuple(
        tuple(product.axes.index(a) for a in axes)
        for axes in (product.shared, product.own(first), product.own(second))
    )


def ordered(product: Product) -> tuple[Factor, Factor]:
    """Put that factor first whose axes come first in the product."""

    def place(factor: Factor) -> int:
        return min(map(product.axes.index, product.own(factor)), default=-1)

    first, second = sorted((product.left, product.right), key=place)
    return first, second


def matrices(x: Array, factor: Factor, product: Product) -> Array:
    """Arrange a factor as (examples, shared axes, positions, own axes or index)."""
    own = factor.axes[-1:] if factor.rows else product.own(factor)
    blocks = (product.shared, product.summed, own)
    wanted = [axis for block in blocks for axis in block]
    present = [axis for axis in wanted if axis in factor.axes]
    x = jnp.transpose(x, (0, *(1 + factor.axes.index(axis) for axis in present)))
    shape = (len(x), *(a.size if a in present else 1 for a in wanted))
    full = (len(x), *(a.size for a in wanted))
    x = jnp.broadcast_to(x.reshape(shape), full)
    return x.reshape(len(x), *(size(block) for block in blocks))


def counts(products: Sequence[Product]) -> tuple[int, int, int, int]:
    """Count shared entries, all positions, and the entries of each factor alone."""
    model = products[0]
    first, second = ordered(model)
    positions = sum(size(product.summed) for product in products)
    own = size(model.own(first)), size(model.own(second))
    return size(model.shared), positions, *own


def assemble(total: Array, product: Product) -> Array:
    """Bring a sum (shared, first's own, second's own) to the parameter's shape."""
    first, second = ordered(product)
    order: Axes = (*product.shared, *product.own(first), *product.own(second))
    total = total.reshape([axis.size for axis in order])
    total = jnp.transpose(total, [order.index(axis) for axis in product.axes])
    return finish(product.steps, total)


@dataclass(frozen=True)
class _Products:
    """Products of one layout, put one after another along their positions.

    Attributes:
      products: the products.
    """

    products: tuple[Product, ...]

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """See `Way.atoms`."""
        return tuple(f.atom for p in self.products for f in ordered(p))

    def _factors(self, values: Sequence[Array]) -> tuple[Array, Array]:
        found: tuple[list[Array], list[Array]] = ([], [])
        for i, product in enumerate(self.products):
            first, second = ordered(product)
            a = matrices(values[2 * i], first, product)
            b = matrices(values[2 * i + 1], second, product)
            found[0].append(a)
            found[1].append(b if product.scale == 1 else b * product.scale)
        return concatenate(found[0], 2), concatenate(found[1], 2)


class Gram(_Products):
    """Norms from the inner products between positions; nothing is multiplied out."""

    @property
    def cost(self) -> int:
        """See `Way.cost`."""
        shared, positions, a, b = counts(self.products)
        return shared * positions**2 * (a + b)

    @property
    def memory(self) -> int:
        """See `Way.memory`."""
        shared, positions, _, _ = counts(self.products)
        return 2 * shared * positions**2 if positions > 1 else 0

    def hold(self, values: Sequence[Array]) -> Kept:
        """See `Way.hold`."""
        return self._factors(values)

    def rescale(self, kept: Kept) -> tuple[Kept, PerExample]:
        """See `Way.rescale`."""
        (a, unit), (b, other) = map(in_units, kept)
        return (a, b), unit * other

    def squares(self, kept: Kept) -> PerExample:
        """See `Way.squares`; rounding must not make a square negative."""
        a, b = kept
        if a.shape[2] == 1:
            each = [jnp.sum(jnp.square(widen(x)), axis=(2, 3)) for x in kept]
            return jnp.sum(each[0] * each[1], axis=1)
        grams = [gram(x, x) for x in kept]
        return jnp.maximum(jnp.sum(grams[0] * grams[1], axis=(1, 2, 3)), 0)

    def total(self, kept: Kept, weights: PerExample, good: Bool[Array, "n"]) -> Array:
        """See `Way.total`."""
        a, b = kept
        a, b = only_good(a, good), weigh(b, weights, good)
        return assemble(contract("neta,netb->eab", a, b), self.products[0])


class Direct(_Products):
    """Each example's gradient multiplied out, since it is smaller than its factors."""

    @property
    def cost(self) -> int:
        """See `Way.cost`."""
        shared, positions, a, b = counts(self.products)
        return shared * positions * a * b

    @property
    def memory(self) -> int:
        """See `Way.memory`."""
        shared, _, a, b = counts(self.products)
        return shared * a * b

    def hold(self, values: Sequence[Array]) -> Kept:
        """See `Way.hold`."""
        return (contract("neta,netb->neab", *self._factors(values)),)

    def rescale(self, kept: Kept) -> tuple[Kept, PerExample]:
        """See `Way.rescale`."""
        x, unit = in_units(kept[0])
        return (x,), unit

    def squares(self, kept: Kept) -> PerExample:
        """See `Way.squares`."""
        return sum_of_squares(kept[0])

    def total(self, kept: Kept, weights: PerExample, good: Bool[Array, "n"]) -> Array:
        """See `Way.total`."""
        return assemble(
            jnp.sum(weigh(kept[0], weights, good), axis=0), self.products[0]
        )


def contract(subscripts: str, a: Array, b: Array, **options: Any) -> Array:
    """Multiply and add up in at least float32."""
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
        return jnp.einsum(subscripts, a, b, preferred_element_type=dtype, **options)


def gram(a: Array, b: Array) -> Array:
    """Multiply the positions of one array with those of another, in full precision."""
    return contract("...ta,...sa->...ts", a, b, precision=jax.lax.Precision.HIGHEST)


def concatenate(arrays: list[Array], axis: int) -> Array:
    """Put the positions of several products one after another."""
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis)
