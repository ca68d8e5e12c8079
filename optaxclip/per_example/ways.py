"""The ways in which a leaf's gradients are measured, scaled and summed."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from optaxclip.numbers import modulus, multiply, widen
from optaxclip.per_example.layouts import HIGHEST, contract
from optaxclip.per_example.program import Atom, aval_of

Kept = tuple[Array, ...]
ExampleArray = Float[Array, "examples"]
Factors = tuple[ExampleArray, ExampleArray]  # Their product may underflow.
Good = Bool[Array, "examples"]


class Squares(NamedTuple):
    """Squared norms.

    Attributes:
      total: the squared norm of each example's gradient.
      error: a bound on its rounding error, if its terms can cancel.
    """

    total: ExampleArray
    error: ExampleArray | None = None


# A square with a larger relative error is measured again, so that norms are accurate to
# 1e-5, or as accurate as the gradient that is then multiplied out.
PRECISION = 2e-5


@runtime_checkable
class Way(Protocol):
    """A method for one leaf's gradients; arrays have a leading axis of examples."""

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """The values of the traced gradient that are needed."""
        ...

    @property
    def cost(self) -> int:
        """The number of multiplications for the norm of one example."""
        ...

    @property
    def memory(self) -> int:
        """The numbers stored for one example, in addition to the traced values."""
        ...

    def hold(self, values: Sequence[Array]) -> Kept:
        """Arrange the traced values for the three methods below."""
        ...

    def rescale(self, kept: Kept) -> tuple[Kept, ExampleArray]:
        """Divide by units, also returned, so that no square over- or underflows."""
        ...

    def squares(self, kept: Kept) -> Squares:
        """Compute the squared norm of each example's gradient."""
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


def weigh_pair(a: Array, b: Array, weights: Factors, good: Good) -> tuple[Array, Array]:
    """Multiply the two factors of a product by one weight each."""
    return weigh(a, weights[:1], good), weigh(b, weights[1:], good)


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


def in_precise_units(way: "Way", kept: Kept) -> tuple[ExampleArray, ExampleArray]:
    """Compute squared norms and their units accurately for any numbers.

    Where the terms of a square cancel, the gradients themselves are squared, one
    example at a time, so that only one is in memory.
    """
    rescaled, unit = way.rescale(kept)
    total, error = way.squares(rescaled)
    if error is None:
        return total, unit
    cancelled = error > PRECISION * total

    def of_one(one: tuple[Kept, Array, Array]) -> Array:
        held, total, cancelled = one
        weight = jnp.ones((1,), total.dtype)

        def multiplied_out(held: Kept) -> Array:
            alone, _ = way.rescale(tuple(x[None] for x in held))
            gradient = way.total(alone, (weight, weight), jnp.ones((1,), bool))
            return sum_of_squares(gradient[None])[0].astype(total.dtype)

        return jax.lax.cond(cancelled, multiplied_out, lambda _: total, held)

    def again(kept: Kept) -> ExampleArray:
        with jax.default_matmul_precision("highest"):
            return jax.lax.map(of_one, (kept, total, cancelled))

    return jax.lax.cond(jnp.any(cancelled), again, lambda _: total, kept), unit


class Formed:
    """Base class of ways that form the gradient of each example."""

    def rescale(self, kept: Kept) -> tuple[Kept, ExampleArray]:
        """See `Way.rescale`."""
        x, unit = in_units(kept[0])
        return (x,), unit

    def squares(self, kept: Kept) -> Squares:
        """See `Way.squares`."""
        return Squares(sum_of_squares(kept[0]))

    def total(self, kept: Kept, weights: Factors, good: Good) -> Array:
        """See `Way.total`.

        The gradient of a bias is the cotangent that the matrix of the same layer keeps,
        scaled by the same second factor; XLA computes this once for both.
        """
        x = weigh(kept[0], weights[1:], good)
        first = jnp.where(good, weights[0], jnp.ones_like(weights[0]))
        return self._assemble(contract("n,n...->...", first, x, precision=HIGHEST))

    def _assemble(self, total: Array) -> Array:
        return total


@dataclass(frozen=True)
class FullGradient(Formed):
    """The gradient of each example as JAX computes it: small, or without a rule.

    Attributes:
      gradient: the leaf's gradient.
    """

    gradient: Atom

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """See `Way.atoms`."""
        return (self.gradient,)

    @property
    def cost(self) -> int:
        """See `Way.cost`."""
        return aval_of(self.gradient).size

    @property
    def memory(self) -> int:
        """See `Way.memory`."""
        return aval_of(self.gradient).size

    def hold(self, values: Sequence[Array]) -> Kept:
        """See `Way.hold`."""
        return (values[0],)
