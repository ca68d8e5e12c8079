"""Arithmetic on what is held for each example: squares, weights and sums."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from optaxclip.numbers import modulus, multiply, widen
from optaxclip.per_example.layouts import HIGHEST, contract

Kept = tuple[Array, ...]
ExampleArray = Float[Array, "examples"]
Factors = tuple[ExampleArray, ExampleArray]  # Their product may underflow.
Good = Bool[Array, "examples"]


class Squares(NamedTuple):
    """Squared norms.

    Attributes:
      total: the squared norm of each example's gradient.
      error: a bound on its rounding error, if its terms can cancel.
      zero: whether the gradient is known to be zero.
    """

    total: ExampleArray
    error: ExampleArray | None = None
    zero: Good | None = None


def no_squares(like: Array) -> Squares:
    """Return the squares of a leaf that no gradient reaches."""
    return Squares(jnp.zeros_like(like, jnp.float32), zero=jnp.ones_like(like, bool))


def precision_of(dtype: np.dtype) -> float:
    """Return the largest relative error of a square that is not measured again.

    In float32, norms are accurate to 1e-5, or as accurate as the gradient that is
    multiplied out.
    """
    return 168 * float(jnp.finfo(dtype).eps)


def is_narrow(dtype: Any) -> bool:
    """Return whether numbers of a type have less than float32's bits."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


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


def power_of_two(largest: Array) -> Array:
    """Return the power of two by which to divide so that the largest is from 1 to 4."""
    usual = (largest > 0) & (largest < jnp.inf)
    _, exponent = jnp.frexp(jnp.where(usual, largest, 1))
    # The unit and its reciprocal must be normal; subnormals may be flushed to 0.
    finfo = jnp.finfo(largest.dtype)
    exponent = jnp.clip(exponent - 1, int(finfo.minexp), int(finfo.maxexp) - 2)
    return jnp.ldexp(jnp.ones_like(largest), exponent)


@jax.jit
def sum_of_squares(x: Array) -> ExampleArray:
    """Sum the squares of each example, in at least float32."""
    return _summed(jnp.square(modulus(widen(x))))


@jax.jit
def vanishes(x: Array) -> Good:
    """Return which examples are all zeros."""
    return ~jnp.any(x != 0, tuple(range(1, x.ndim)))


def squared(x: Array) -> Squares:
    """Square gradients that are formed."""
    return Squares(sum_of_squares(x), zero=vanishes(x))


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


@jax.jit
def weighted_sum(x: Array, weights: Factors, good: Good) -> Array:
    """Sum an array over good examples.

    The gradient of a bias is the cotangent that the matrix of the same layer keeps,
    scaled by the same second factor; XLA computes this once for both.
    """
    x = weigh(x, weights[1:], good)
    first = jnp.where(good, weights[0], jnp.ones_like(weights[0]))
    return contract("n,n...->...", first, x, precision=HIGHEST)
