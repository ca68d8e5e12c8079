"""Tables of which an example reads a few rows, possibly tied to a dense layer.

The gradient of a read is the product of a one-hot matrix and the cotangents of the
rows. The inner product of two one-hot rows says whether they read the same row of the
table, so the table is never stored per example.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from optaxclip.numbers import widen
from optaxclip.per_example.layouts import (
    assemble,
    contract,
    inner_products,
    join,
    matrices,
    ordered,
)
from optaxclip.per_example.program import Atom
from optaxclip.per_example.terms import Factor, Product, size
from optaxclip.per_example.ways import (
    ExampleArray,
    Factors,
    Good,
    Kept,
    Squares,
    added,
    in_units,
    weigh,
    weigh_pair,
)


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
    def atoms(self) -> tuple[Atom, ...]:
        """See `Way.atoms`."""
        pairs = [self._pair(p) for p in (*self.reads, *self.products)]
        return tuple(factor.atom for pair in pairs for factor in pair)

    @property
    def _positions(self) -> tuple[int, int]:
        reads, others = self.reads, self.products
        return sum(size(p.summed) for p in reads), sum(size(p.summed) for p in others)

    @property
    def cost(self) -> int:
        """See `Way.cost`."""
        read, multiplied = self._positions
        both = (read + multiplied) ** 2 * self._entries
        return both + multiplied**2 * self._rows

    @property
    def memory(self) -> int:
        """See `Way.memory`."""
        read, multiplied = self._positions
        return (read + multiplied) ** 2 + multiplied**2

    def hold(self, values: Sequence[Array]) -> Kept:
        """See `Way.hold`."""
        found: list[list[Array]] = [[], [], [], []]
        pairs = zip(values[::2], values[1::2], strict=True)
        for product, (a, b) in zip((*self.reads, *self.products), pairs, strict=True):
            first, second = self._pair(product)
            b = matrices(b, second, product)[:, 0]
            b = b if product.scale == 1 else b * product.scale
            if first.rows:
                row = read_rows(a, product)
                here = (row < self._rows)[..., None]
                found[0].append(row)
                found[1].append(jnp.where(here, b, jnp.zeros_like(b)))
            else:
                found[2].append(matrices(a, first, product)[:, 0])
                found[3].append(b)
        return tuple(join(x, 1) for x in found if x)

    def rescale(self, kept: Kept) -> tuple[Kept, ExampleArray]:
        """See `Way.rescale`."""
        rows, read = kept[0], kept[1]
        read, unit = in_units(read)
        if len(kept) == 2:
            return (rows, read), unit
        (a, of_a), (b, of_b) = map(in_units, kept[2:])
        common = jnp.maximum(unit, of_a * of_b)
        read = read * (unit / common)[:, None, None]
        return (rows, read, a, b * (of_a * of_b / common)[:, None, None]), common

    def squares(self, kept: Kept) -> Squares:
        """See `Way.squares`."""
        rows, read = kept[0], kept[1]
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

    def total(self, kept: Kept, weights: Factors, good: Good) -> Array:
        """See `Way.total`."""
        rows, read = kept[0], widen(weigh(kept[1], weights, good))
        if len(kept) == 4:
            a, b = weigh_pair(kept[2], kept[3], weights, good)
            table = contract("nta,ntb->ab", a, b)
        else:
            table = jnp.zeros((self._rows, self._entries), read.dtype)
        added = read.reshape(-1, self._entries)
        table = table.at[rows.ravel()].add(added, mode="drop")
        model = self.reads[0]
        in_order = ordered(model)[0] is model.left
        return assemble(table if in_order else table.T, model)
