"""Arrange the factors of a product as matrices, and contract them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from optaxclip.numbers import widest
from optaxclip.per_example.factors import Axes, Axis, Factor, size
from optaxclip.per_example.terms import Product

HIGHEST = jax.lax.Precision.HIGHEST


def ordered(product: Product) -> tuple[Factor, Factor]:
    """Return the factors in the order of their axes in the product."""

    def place(factor: Factor) -> int:
        return min(map(product.axes.index, product.own(factor)), default=-1)

    first, second = sorted((product.left, product.right), key=place)
    return first, second


def blocks(product: Product) -> tuple[Axes, Axes, Axes]:
    """Return the axes in both factors, only in the first, and only in the second."""
    first, second = ordered(product)
    return product.shared, product.own(first), product.own(second)


def layout(product: Product) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Return positions and sizes of `blocks`; products with equal layouts can join."""
    return tuple(
        tuple((product.axes.index(axis), axis.size) for axis in block)
        for block in blocks(product)
    )


def sizes_of(products: Sequence[Product]) -> tuple[int, int, int, int]:
    """Count shared entries, all positions, and the entries of each factor alone."""
    shared, first, second = map(size, blocks(products[0]))
    return shared, sum(size(p.summed) for p in products), first, second


def matrices(x: Array, factor: Factor, product: Product) -> Array:
    """Arrange a factor as (examples, shared axes, positions, own axes or index)."""
    own = factor.axes[-1:] if factor.rows else product.own(factor)
    parts = (product.shared, product.summed, own)
    wanted = [axis for part in parts for axis in part]
    present = [axis for axis in wanted if axis in factor.axes]
    x = jnp.transpose(x, (0, *(1 + factor.axes.index(axis) for axis in present)))
    shape = (len(x), *(a.size if a in present else 1 for a in wanted))
    x = jnp.broadcast_to(x.reshape(shape), (len(x), *(a.size for a in wanted)))
    return x.reshape(len(x), *map(size, parts))


def join(arrays: list[Array], axis: int) -> Array:
    """Concatenate the positions of several products."""
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis)


def contract(subscripts: str, *arrays: Array, **options: Any) -> Array:
    """Contract in at least float32."""
    dtype = widest(*(x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact)))
    with jax.numpy_dtype_promotion("standard"):
        return jnp.einsum(subscripts, *arrays, preferred_element_type=dtype, **options)


def inner_products(a: Array, b: Array) -> Array:
    """Return all inner products between positions of two arrays, in full precision."""
    return contract("...ta,...sa->...ts", a, b, precision=HIGHEST)


def letters_of(*parts: Axes) -> list[str]:
    """Name axes by letters, as `jnp.einsum` does."""
    names: dict[Axis, str] = {}
    for axis in (axis for part in parts for axis in part):
        names.setdefault(axis, chr(ord("a") + len(names)))
    return ["".join(names[axis] for axis in part) for part in parts]
