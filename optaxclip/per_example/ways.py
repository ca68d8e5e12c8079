"""The ways in which a leaf's gradients are measured, scaled and summed."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from optaxclip.mesh import vary, varying_axes
from optaxclip.numbers import modulus, multiply, widen
from optaxclip.per_example.calls import Atom
from optaxclip.per_example.layouts import HIGHEST, contract

Kept = tuple[Array, ...]
ExampleArray = Float[Array, "examples"]
Factors = tuple[ExampleArray, ExampleArray]  # Their product may underflow.
Good = Bool[Array, "examples"]
InUnits = tuple[ExampleArray, ExampleArray]  # Squares, and the units of their roots.


class Squares(NamedTuple):
    """Squared norms.

    Attributes:
      total: the squared norm of each example's gradient.
      error: a bound on its rounding error, if its terms can cancel.
    """

    total: ExampleArray
    error: ExampleArray | None = None


def precision_of(dtype: np.dtype) -> float:
    """Return the largest relative error of a square that is not measured again.

    In float32, norms are accurate to 1e-5, or as accurate as the gradient that is
    multiplied out.
    """
    return 168 * float(jnp.finfo(dtype).eps)


@runtime_checkable
class Way(Protocol):
    """A method for one leaf's gradients; arrays have a leading axis of examples."""

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """The values of the traced gradient that are held for each example."""
        ...

    @property
    def shared(self) -> tuple[Atom, ...]:
        """The values that all examples share."""
        ...

    @property
    def cost(self) -> int:
        """The number of multiplications for the norm of one example."""
        ...

    @property
    def memory(self) -> int:
        """The numbers stored for one example, in addition to the traced values."""
        ...

    def knowing(self, values: Mapping[Atom, Array]) -> "Way":
        """Return the same way, with the shared values."""
        ...

    def hold(self, values: Sequence[Array]) -> Kept:
        """Arrange the traced values for the two methods below."""
        ...

    def squares(self, kept: Kept) -> Squares:
        """Compute the squared norm of each example's gradient."""
        ...

    def squares_in_units(self, kept: Kept) -> InUnits | None:
        """Compute them so that no square over- or underflows, if that is cheap."""
        ...

    def total(self, kept: Kept, weights: Factors, good: Good) -> Array:
        """Sum the gradients of good examples, multiplied by their weights."""
        ...


def spread_over_examples(per_example: Array, x: Array) -> Array:
    """Reshape one number per example to broadcast to an array."""
    return per_example.reshape(per_example.shape + (1,) * (x.ndim - 1))


def weigh(x: Array, weights: Sequence[ExampleArray], good: Good) -> Array:
    """Multiply each example; bad ones become 0 by `where`, since NaN * 0 is NaN."""
    product = widen(x)
    for weight in weights:
        factor = spread_over_examples(weight, x).astype(jnp.finfo(product.dtype).dtype)
        product = multiply(product, factor)
    return jnp.where(spread_over_examples(good, x), product, jnp.zeros_like(product))


def in_units(x: Array) -> tuple[Array, ExampleArray]:
    """Divide each example by a power of two, so that its maximum is between 1 and 4."""
    wide = widen(x)
    largest = jnp.max(modulus(wide).reshape(len(x), -1), axis=1, initial=0.0)
    usual = (largest > 0) & (largest < jnp.inf)
    _, exponent = jnp.frexp(jnp.where(usual, largest, 1))
    # The unit and its reciprocal must be normal; subnormals may be flushed to 0.
    finfo = jnp.finfo(largest.dtype)
    exponent = jnp.clip(exponent - 1, int(finfo.minexp), int(finfo.maxexp) - 2)
    unit = jnp.ldexp(jnp.ones_like(largest), exponent)
    return multiply(wide, 1 / spread_over_examples(unit, wide)), unit


def sum_of_squares(x: Array) -> ExampleArray:
    """Sum the squares of each example, in at least float32."""
    return jnp.sum(jnp.square(modulus(widen(x))).reshape(len(x), -1), axis=1)


def added(terms: Sequence[Array], summands: int) -> Squares:
    """Sum the terms of squared norms, and bound the rounding error.

    A term is the product of two inner products, which together have `summands` terms.
    In whatever order n numbers are added, rounding changes their sum by less than
    sqrt(n) u times the sum of their moduli, where u is half of eps: that is four
    standard deviations in the worst case, when all have the same sign and are added one
    by one (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis,
    2019). The strict bound is n u, which would trust no inner product of 335 or more
    numbers.
    """
    total = functools.reduce(jnp.add, map(_summed, terms))
    gross = functools.reduce(jnp.add, [_summed(jnp.abs(x)) for x in terms])
    # XLA sums a large array in small windows, which is no worse than axis by axis.
    roundings = summands + sum(sum(x.shape[1:]) for x in terms)
    unit = float(jnp.finfo(total.dtype).eps) / 2
    return Squares(total, gross * (unit * roundings**0.5))


def _summed(x: Array) -> ExampleArray:
    return jnp.sum(x, tuple(range(1, x.ndim)))


def multiplied_out(way: Way, held: Kept) -> Array:
    """Return the gradient of a single example, held without an axis of examples."""
    one = jnp.ones((1,), jnp.float32)
    alone = tuple(x[None] for x in held)
    return way.total(alone, (one, one), jnp.ones((1,), bool))


def squares_one_by_one(way: Way, kept: Kept) -> ExampleArray:
    """Square the gradients themselves; only one at a time is in memory."""

    def of_one(held: Kept) -> Array:
        return sum_of_squares(multiplied_out(way, held)[None])[0]

    return jax.lax.map(of_one, kept)


def squared_in_units(x: Array) -> InUnits:
    """Sum the squares of each example, in units so that none over- or underflows."""
    scaled, unit = in_units(x)
    square = sum_of_squares(scaled)
    return square, unit.astype(square.dtype)


def measured_again(
    way: Way, kept: Kept, asked: Bool[Array, "examples"], dtype: np.dtype
) -> InUnits:
    """Square again, at least those examples that are asked for.

    Where terms can cancel each other, that takes the gradients themselves.
    """
    found = way.squares_in_units(kept)
    if found is not None:
        return found

    def of_one(one: tuple[Kept, Array]) -> tuple[Array, Array]:
        held, asked = one

        def precisely(held: Kept) -> tuple[Array, Array]:
            square, unit = squared_in_units(multiplied_out(way, held)[None])
            return square[0].astype(dtype), unit[0].astype(dtype)

        none = vary(jnp.zeros((), dtype), varying_axes(asked))
        return jax.lax.cond(asked, precisely, lambda _: (none, none), held)

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(of_one, (kept, asked))


def weighted_sum(x: Array, weights: Factors, good: Good) -> Array:
    """Sum an array over good examples.

    The gradient of a bias is the cotangent that the matrix of the same layer keeps,
    scaled by the same second factor; XLA computes this once for both.
    """
    x = weigh(x, weights[1:], good)
    first = jnp.where(good, weights[0], jnp.ones_like(weights[0]))
    return contract("n,n...->...", first, x, precision=HIGHEST)
