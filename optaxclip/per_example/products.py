r"""Products that are measured without multiplying them out.

The gradient of one example is $G = \sum_t a_t b_t^\top$, with T positions t. Its
squared norm is $\sum_{s, t} (a_s \cdot a_t) (b_s \cdot b_t)$, which takes
$T^2 (A + B)$ multiplications for a matrix of A by B, while G itself takes T A B. The
former is used where it is cheaper, which is where $T < \min(A, B)$: so the inner
products are no more numbers than a and b.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from optaxclip.numbers import widen
from optaxclip.per_example.factors import Factor
from optaxclip.per_example.kinds import traced_once
from optaxclip.per_example.layouts import (
    HIGHEST,
    contract,
    join,
    letters_of,
    matrices,
    ordered,
    sizes_of,
)
from optaxclip.per_example.terms import Product
from optaxclip.per_example.ways import Squares, added


@dataclass(frozen=True)
class Gram:
    """The norm of a sum of products with the same layout, from inner products.

    Attributes:
      products: the products, which are joined along their positions.
    """

    products: tuple[Product, ...]

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The factors whose arrays `squares` takes."""
        return tuple(f for p in self.products for f in ordered(p))

    @property
    def positions(self) -> int:
        """The number of products that are added up."""
        return sizes_of(self.products)[1]

    @property
    def cost(self) -> int:
        """The number of multiplications for the norm of one example."""
        shared, positions, a, b = sizes_of(self.products)
        return shared * positions**2 * (a + b)

    @property
    def memory(self) -> int:
        """The numbers stored for one example."""
        shared, positions, _, _ = sizes_of(self.products)
        return 2 * shared * positions**2 if positions > 1 else 0

    @property
    def cheap(self) -> bool:
        """Whether multiplying out would cost more."""
        _, positions, a, b = sizes_of(self.products)
        return positions == 1 or positions * (a + b) < a * b

    @property
    def _in_place(self) -> bool:
        """Whether the factors can be used as they are; rearranging would copy them."""
        product = self.products[0]
        axes = set(product.left.axes) & set(product.right.axes)
        return len(self.products) == 1 and axes >= {*product.shared, *product.summed}

    @property
    def _letters(self) -> list[str]:
        """Name the axes of both factors as stored, the shared and the summed ones."""
        if not self._in_place:
            return ["zta", "ztb", "z", "t"]
        product = self.products[0]
        own = [factor.axes for factor in ordered(product)]
        return letters_of(*own, product.shared, product.summed)

    def _joined(self, values: Sequence[Array]) -> tuple[Array, Array]:
        found: tuple[list[Array], list[Array]] = ([], [])
        pairs = zip(values[::2], values[1::2], strict=True)
        for product, (a, b) in zip(self.products, pairs, strict=True):
            if not self._in_place:
                first, second = ordered(product)
                a, b = matrices(a, first, product), matrices(b, second, product)
            found[0].append(a)
            found[1].append(b)
        return join(found[0], 2), join(found[1], 2)

    @traced_once
    def squares(self, values: Sequence[Array]) -> Squares:
        """Compute the squared norm of each example."""
        *own, shared, summed = self._letters
        pairs = zip(self._joined(values), own, strict=True)
        a, b = (self._gram(x, axes, shared, summed) for x, axes in pairs)
        _, positions, first, second = sizes_of(self.products)
        if positions == 1:
            return Squares(jnp.sum(a * b, tuple(range(1, a.ndim))))
        return added([a * b], first + second)

    def _gram(self, x: Array, axes: str, shared: str, summed: str) -> Array:
        """Compute inner products of all positions, separately per shared entry."""
        if self.positions == 1:
            own = [1 + i for i, a in enumerate(axes) if a not in shared]
            squares = jnp.sum(jnp.square(widen(x)), axis=own)
            left = [a for a in axes if a in shared]
            return jnp.transpose(squares, (0, *(1 + left.index(a) for a in shared)))
        other = "".join(a.upper() if a in summed else a for a in axes)
        out = shared + summed + summed.upper()
        return contract(f"N{axes},N{other}->N{out}", x, x, precision=HIGHEST)
