"""Dtypes and scalar arithmetic; everything is measured in at least float32."""

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
    """Return the dtype, at least float32, to which all of these promote."""
    # JAX does not promote floats of 8 bits or fewer; float32 holds them all.
    wide = [dtype for dtype in dtypes if jnp.finfo(dtype).bits >= 16]
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, wide, jnp.dtype(jnp.float32))


def as_dtype(leaf: Leaf, dtype: DTypeLike) -> Leaf:
    """Cast to a dtype; complex numbers stay complex in a real one of any width."""
    if jnp.iscomplexobj(leaf) and not jnp.issubdtype(dtype, jnp.complexfloating):
        return leaf.astype(jnp.promote_types(widest(dtype), jnp.complex64))
    return leaf.astype(dtype)


def measuring_dtype(leaves: Iterable[Any]) -> np.dtype:
    """Return the widest real dtype of the leaves, at least float32."""
    return widest(*(jnp.finfo(dtype).dtype for dtype in {x.dtype for x in leaves}))


def as_number(limit: ArrayLike) -> Number:
    """Convert any number to an array of at least float32."""
    # The host's integers may be too large for JAX's.
    if isinstance(limit, int | np.integer):
        limit = float(limit)
    elif isinstance(limit, np.ndarray) and limit.dtype.kind in "iu":
        limit = limit.astype(np.float64)
    number = jnp.asarray(limit)
    if not jnp.issubdtype(number.dtype, jnp.inexact):
        number = number.astype(jnp.float32)
    return widen(number)


def modulus(x: Leaf) -> Number:
    """Return the absolute value, which is real for complex numbers too."""
    return jnp.abs(x)


def multiply(leaf: Leaf, factor: Number) -> Leaf:
    """Multiply a leaf by a real number."""
    if jnp.iscomplexobj(leaf):
        # A complex product would turn inf * (1 + 0j) into NaN.
        return jax.lax.complex(leaf.real * factor, leaf.imag * factor)
    return leaf * factor


def capped(value: Number, scale: Number) -> Number:
    """Divide, capping a finite value that overflows at the largest float.

    A value that is not finite stays as it is.
    """
    plain = value / scale
    largest = jnp.finfo(plain.dtype).max
    return jnp.where(value < jnp.inf, jnp.minimum(plain, largest), plain)


def computed_once(number: Number) -> Number:
    """Keep XLA from recomputing a group's number in the kernel of every leaf.

    Compiling a thousand copies of it would be most of the cost of clipping. XLA
    duplicates cheap arithmetic, but not a remainder; and the remainder of a finite
    number divided by infinity is that number, exactly. Infinity becomes the largest
    float.
    """
    finite = jnp.minimum(number, jnp.finfo(number.dtype).max)
    return jax.lax.rem(finite, jnp.full_like(finite, jnp.inf))
