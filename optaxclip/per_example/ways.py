"""The ways in which a leaf's gradients are measured, weighed and added up."""

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
Factors = tuple[
    ExampleArray, ExampleArray
]  # their product may be too small for a float
Good = Bool[Array, "examples"]


class Squares(NamedTuple):
    """Squared norms.

    Attributes:
      total: the squared norm of each example's gradient.
      error: how far rounding may have moved it, if its terms can cancel each other.
    """

    total: ExampleArray
    error: ExampleArray | None = None


# A square with a larger relative error is measured again, so that norms are right to
# 1e-5, or as right as the gradient that is multiplied out then.
PRECISION = 2e-5


@runtime_checkable
class Way(Protocol):
    """One way. All arrays have the examples in front."""

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """The values of the traced gradient that are needed."""
        ...

    @property
    def cost(self) -> int:
        """How many multiplications the norm of one example takes."""
        ...

    @property
    def memory(self) -> int:
        """How many numbers are held for one example, beside the traced values."""
        ...

    def hold(self, values: Sequence[Array]) -> Kept:
        """Arrange what was traced, for the three questions below."""
        ...

    def rescale(self, kept: Kept) -> tuple[Kept, ExampleArray]:
        """Measure in units in which no square overflows or vanishes."""
        ...

    def squares(self, kept: Kept) -> Squares:
        """Measure the squared norm of each example's gradient."""
        ...

    def total(self, kept: Kept, weights: Factors, good: Good) -> Array:
        """Add up the gradients of good examples, multiplied by their weights."""
        ...


def spread_over_examples(per_example: Array, x: Array) -> Array:
    """Shape a number for each example so that it meets an array of them."""
    return per_example.reshape(per_example.shape + (1,) * (x.ndim - 1))


def weigh(x: Array, weights: Sequence[ExampleArray], good: Good) -> Array:
    """Multiply each example; what is broken is zero, which NaN * 0 would not be."""
    product = widen(x)
    for weight in weights:
        factor = spread_over_examples(weight, x).astype(jnp.finfo(product.dtype).dtype)
        product = multiply(product, factor)
    return jnp.where(spread_over_examples(good, x), product, jnp.zeros_like(product))


def weigh_pair(a: Array, b: Array, weights: Factors, good: Good) -> tuple[Array, Array]:
    """Multiply two arrays, whose product is wanted, by a weight each."""
    return weigh(a, weights[:1], good), weigh(b, weights[1:], good)


def in_units(x: Array) -> tuple[Array, ExampleArray]:
    """Divide each example by a power of two, so that its largest number is 1 to 4."""
    wide = widen(x)
    largest = jnp.max(modulus(wide).reshape(len(x), -1), axis=1, initial=0.0)
    usual = (largest > 0) & (largest < jnp.inf)
    _, exponent = jnp.frexp(jnp.where(usual, largest, 1))
    # A unit and what it is divided by must both be normal: others may be flushed to 0.
    finfo = jnp.finfo(largest.dtype)
    exponent = jnp.clip(exponent - 1, int(finfo.minexp), int(finfo.maxexp) - 2)
    unit = jnp.ldexp(jnp.ones_like(largest), exponent)
    return multiply(wide, 1 / spread_over_examples(unit, wide)), unit


def sum_of_squares(x: Array) -> ExampleArray:
    """Square and add up each example, in at least float32."""
    return jnp.sum(jnp.square(modulus(widen(x))).reshape(len(x), -1), axis=1)


def added(terms: Sequence[Array], summands: int) -> Squares:
    """Add up terms of squared norms, and bound the error that rounding leaves.

    A term is the product of two inner products, which have so many summands together.
    In whatever order n numbers are added, rounding moves their sum by less than
    sqrt(n) u times the sum of their moduli, u being half of eps: that is four standard
    deviations where all have one sign and are added one by one, which is the worst case
    (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019).
    The bound without exceptions is n u, which would trust no inner product of 335
    numbers or more.
    """
    total = functools.reduce(jnp.add, map(_summed, terms))
    gross = functools.reduce(jnp.add, [_summed(jnp.abs(x)) for x in terms])
    # XLA adds a large array up in small windows: no worse than axis by axis.
    roundings = summands + sum(sum(x.shape[1:]) for x in terms)
    unit = float(jnp.finfo(total.dtype).eps) / 2
    return Squares(total, gross * (unit * roundings**0.5))


def _summed(x: Array) -> ExampleArray:
    return jnp.sum(x, tuple(range(1, x.ndim)))


def in_precise_units(way: "Way", kept: Kept) -> tuple[ExampleArray, ExampleArray]:
    """Measure squared norms and their units, whatever the numbers are.

    Where terms of a square cancel each other, the gradients themselves are squared,
    one after another, so that no more than one is held.
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
    """What is done where each example's gradient is formed, and held by itself."""

    def rescale(self, kept: Kept) -> tuple[Kept, ExampleArray]:
        """See `Way.rescale`."""
        x, unit = in_units(kept[0])
        return (x,), unit

    def squares(self, kept: Kept) -> Squares:
        """See `Way.squares`."""
        return Squares(sum_of_squares(kept[0]))

    def total(self, kept: Kept, weights: Factors, good: Good) -> Array:
        """See `Way.total`.

        A bias holds the cotangents that the matrix beside it holds, and weighs them
        by the second factor as that does; XLA does it once for both.
        """
        x = weigh(kept[0], weights[1:], good)
        first = jnp.where(good, weights[0], jnp.ones_like(weights[0]))
        return self._assemble(contract("n,n...->...", first, x, precision=HIGHEST))

    def _assemble(self, total: Array) -> Array:
        return total


@dataclass(frozen=True)
class FullGradient(Formed):
    """Each example's gradient as it is: small, or of a kind that has no rule.

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
