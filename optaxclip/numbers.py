"""Types of numbers: at least float32 where they are measured, real or complex."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Inexact, Real

Leaf = Inexact[Array, "..."]
Number = Real[Array, "..."]


def widen(leaf: Leaf, dtype: DTypeLike = jnp.float32) -> Leaf:
    """Cast to at least float32 and at least `dtype`; complex stays complex."""
    return leaf.astype(widest(leaf.dtype, dtype))


@functools.cache
def widest(*dtypes: DTypeLike) -> np.dtype:
    """Find the type of at least float32 that holds the numbers of all of these."""
    # JAX promotes no floats of 8 bits and fewer; float32 holds them all.
    wide = [dtype for dtype in dtypes if jnp.finfo(dtype).bits >= 16]
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, wide, jnp.dtype(jnp.float32))


def measuring_dtype(leaves: Iterable[Any]) -> np.dtype:
    """Find the widest real type of some leaves, at least float32."""
    return widest(*(jnp.finfo(dtype).dtype for dtype in {x.dtype for x in leaves}))


def as_number(limit: ArrayLike) -> Number:
    """Take a number of any kind as an array of at least float32."""
    # An int may be too large for any type of integers that JAX has.
    number = jnp.asarray(float(limit) if isinstance(limit, int) else limit)
    if not jnp.issubdtype(number.dtype, jnp.inexact):
        number = number.astype(jnp.float32)
    return widen(number)


def modulus(x: Leaf) -> Number:
    """Give the absolute value, which is real for complex numbers too."""
    return jnp.abs(x)


def multiply(leaf: Leaf, factor: Number) -> Leaf:
    """Multiply by a real number."""
    if jnp.iscomplexobj(leaf):
        # A complex product would turn inf * (1 + 0j) to NaN.
        return jax.lax.complex(leaf.real * factor, leaf.imag * factor)
    return leaf * factor


def capped(value: Number, scale: Number) -> Number:
    """Divide, and give the largest number there is where a finite result is beyond.

    What is not finite by itself stays so.
    """
    plain = value / scale
    largest = jnp.finfo(plain.dtype).max
    return jnp.where(value < jnp.inf, jnp.minimum(plain, largest), plain)


def computed_once(number: Number) -> Number:
    """Keep XLA from computing a group's number again in the kernel of every leaf.

    Compiling a thousand copies of it is most of what clipping would cost there. XLA
    copies cheap arithmetic, but no remainder; and dividing by infinity leaves every
    finite number as its remainder, exactly. Infinity itself becomes the largest one.
    """
    finite = jnp.minimum(number, jnp.finfo(number.dtype).max)
    return jax.lax.rem(finite, jnp.full_like(finite, jnp.inf))
