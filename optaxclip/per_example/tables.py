"""Tables of which an example reads a few rows, possibly tied to a dense layer.

The gradient of a read is the product of a one-hot matrix and the cotangents of the
rows. The inner product of two one-hot rows says whether they read the same row of the
table, so the table is never stored per example.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from optaxclip.numbers import widen
from optaxclip.per_example.factors import Factor, size
from optaxclip.per_example.kinds import traced_once
from optaxclip.per_example.layouts import (
    inner_products,
    join,
    matrices,
    ordered,
    sizes_of,
)
from optaxclip.per_example.terms import Product
from optaxclip.per_example.ways import ExampleArray, Squares, added


def read_rows(indices: Array, read: Product) -> Int[Array, "examples positions"]:
    """Number the rows that are read; dropped ones get a number past the last row."""
    factor = read.left
    rows = read.own(factor)
    indices = matrices(indices, factor, read)[:, 0]
    indices = _as_int32(indices)[
        ..., np.asarray([factor.rows.index(axis) for axis in rows])
    ]
    sizes = np.asarray([axis.size for axis in rows], indices.dtype)
    strides = np.cumprod([1, *sizes[:0:-1]])[::-1].astype(indices.dtype)
    sizes, strides = (x.reshape(1, 1, -1) for x in (sizes, strides))
    among = jnp.clip(indices, 0, sizes - 1)
    row = jnp.sum(among * strides, axis=-1)
    inside = jnp.all(among == indices, axis=-1) | (not factor.drops)
    return jnp.where(inside, row.astype(jnp.int32), size(rows))


def _as_int32(indices: Array) -> Array:
    """Widen to at least 32 bits, to hold the number of rows."""
    if jnp.iinfo(indices.dtype).bits >= 32:
        return indices
    return indices.astype(jnp.int32)


@dataclass(frozen=True)
class Table:
    """Rows read by an index, and products with the same layout.

    Attributes:
      reads: the reads of rows of the table; the left factors are the indices.
      products: the products with the table, such as those of a tied output layer.
    """

    reads: tuple[Product, ...]
    products: tuple[Product, ...]

    @property
    def _rows(self) -> int:
        return size(self.reads[0].own(self.reads[0].left))

    @property
    def _entries(self) -> int:
        return size(self.reads[0].own(self.reads[0].right))

    def _pair(self, product: Product) -> tuple[Factor, Factor]:
        """Return the factors, the one with the rows of the table first."""
        first, second = ordered(product)
        rows_first = ordered(self.reads[0])[0] is self.reads[0].left
        return (first, second) if rows_first else (second, first)

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The factors whose arrays `squares` takes."""
        pairs = [self._pair(p) for p in (*self.reads, *self.products)]
        return tuple(factor for pair in pairs for factor in pair)

    @property
    def _positions(self) -> tuple[int, int]:
        reads, others = self.reads, self.products
        return sum(size(p.summed) for p in reads), sum(size(p.summed) for p in others)

    @property
    def cost(self) -> int:
        """The number of multiplications for the norm of one example."""
        read, multiplied = self._positions
        if self._sorts:
            return read * self._entries
        both = (read + multiplied) ** 2 * self._entries
        return both + multiplied**2 * self._rows

    @property
    def memory(self) -> int:
        """The numbers stored for one example."""
        read, multiplied = self._positions
        if self._sorts:
            return read * self._entries
        return (read + multiplied) ** 2 + multiplied**2

    @property
    def _sorts(self) -> bool:
        """Whether rows are sorted, which takes no inner products of all reads."""
        return not self.products and self._positions[0] > self._entries

    @property
    def cheap(self) -> bool:
        """Whether multiplying out would cost more, or as many numbers."""
        shared, positions, a, b = sizes_of((*self.reads, *self.products))
        tied = bool(self.products)
        return shared == 1 and (not tied or positions * (a + b) < a * b)

    def _arranged(self, values: Sequence[Array]) -> list[Array]:
        found: list[list[Array]] = [[], [], [], []]
        pairs = zip(values[::2], values[1::2], strict=True)
        for product, (a, b) in zip((*self.reads, *self.products), pairs, strict=True):
            first, second = self._pair(product)
            b = matrices(b, second, product)[:, 0]
            if first.rows:
                row = read_rows(a, product)
                here = (row < self._rows)[..., None]
                found[0].append(row)
                found[1].append(jnp.where(here, b, jnp.zeros_like(b)))
            else:
                found[2].append(matrices(a, first, product)[:, 0])
                found[3].append(b)
        return [join(x, 1) for x in found if x]

    @traced_once
    def squares(self, values: Sequence[Array]) -> Squares:
        """Compute the squared norm of each example."""
        kept = self._arranged(values)
        rows, read = kept[0], widen(kept[1])
        if self._sorts:
            return Squares(jax.vmap(_squares_of_rows)(rows, read))
        same = rows[:, :, None] == rows[:, None, :]
        inner = inner_products(read, read)
        terms = [jnp.where(same, inner, jnp.zeros_like(inner))]
        if len(kept) == 4:
            a, b = kept[2:]
            found = jnp.minimum(rows, self._rows - 1)[:, None, :]
            at_rows = widen(jnp.take_along_axis(a, found, axis=2))
            terms += [
                2 * at_rows * inner_products(b, read),
                inner_products(a, a) * inner_products(b, b),
            ]
        tied = self._rows if self.products else 0
        return added(terms, self._entries + tied)


def _squares_of_rows(rows: Array, read: Array) -> Array:
    """Add up what is read in the same row, and square."""
    order = jnp.argsort(rows)
    ordered_rows = rows[order]
    fresh = jnp.concatenate([jnp.zeros(1, bool), ordered_rows[1:] != ordered_rows[:-1]])
    slots = jnp.zeros_like(rows).at[order].set(jnp.cumsum(fresh, dtype=rows.dtype))
    sums = jnp.zeros_like(read).at[slots].add(read)
    return jnp.sum(jnp.square(sums))


def rows_added(product: Product, indices: Array, read: Array) -> Array:
    """Add the rows of all examples to a table of zeros."""
    rows, entries = product.own(product.left), product.own(product.right)
    where = read_rows(indices, product)
    read = matrices(read, product.right, product)[:, 0].reshape(-1, size(entries))
    table = jnp.zeros((size(rows), size(entries)), read.dtype)
    table = table.at[where.ravel()].add(read, mode="drop")
    order = (*rows, *entries)
    table = table.reshape([axis.size for axis in order])
    return jnp.transpose(table, [order.index(axis) for axis in product.axes])


def inner_of_rows(
    product: Product, indices: Array, read: Array, table: Array
) -> ExampleArray:
    """Multiply a table by what each example adds to one, and sum up."""
    read = read.astype(table.dtype)
    _, rows_of = jax.vjp(functools.partial(rows_added, product, indices), read)
    return jnp.sum(read * rows_of(table)[0], tuple(range(1, read.ndim)))
