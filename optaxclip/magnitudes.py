"""What a norm is told, and what it answers: pools of numbers, and magnitudes.

A magnitude is held as ``value * unit``, the unit being a power of two, so that it is
right where its own square, or even the magnitude, is beyond what a float holds.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Inexact, PyTree, Real

Leaf = Inexact[Array, "..."]
Number = Real[Array, "..."]
PerGroup = PyTree[Number]


class Magnitude(NamedTuple):
    """How big each group is, ``value * unit``, even where no float holds it.

    Attributes:
      value: a number for each group.
      unit: a power of two for each group.
    """

    value: PerGroup
    unit: PerGroup

    @property
    def plain(self) -> PerGroup:
        """One number for each group; infinite where the product overflows."""
        return jax.tree.map(jnp.multiply, self.value, self.unit)


@runtime_checkable
class Pool(Protocol):
    """Numbers in groups, as a scope arranges them."""

    @property
    def dtype(self) -> DTypeLike:
        """The type in which the groups are measured: float32 or wider."""
        ...

    @property
    def single(self) -> bool:
        """Whether there is but one group, so that zeros are no usual magnitude."""
        ...

    @property
    def complex(self) -> bool:
        """Whether any number is complex, with a modulus beyond what its parts are."""
        ...

    def sizes(self) -> PerGroup:
        """Tell how many numbers each group holds."""
        ...

    def full(self, value: float) -> PerGroup:
        """Give each group the same number."""
        ...

    def sum(self, term: Callable[..., Number], *of_group: PerGroup) -> PerGroup:
        """Add ``term(leaf, *of_group)`` over each group."""
        ...

    def max(self, term: Callable[..., Number], *of_group: PerGroup) -> PerGroup:
        """Find the largest ``term(leaf, *of_group)`` of each group."""
        ...


@runtime_checkable
class Norm(Protocol):
    """What a norm has to answer."""

    def measure(self, pool: Pool) -> Magnitude:
        """Measure every group of the pool."""
        ...

    def value(self, pool: Pool, unit: PerGroup) -> PerGroup:
        """Measure in a known unit, with a derivative that is finite at zero too."""
        ...


def widen(leaf: Leaf, dtype: DTypeLike = jnp.float32) -> Leaf:
    """Cast to at least float32 and at least `dtype`; complex stays complex."""
    return leaf.astype(widest(leaf.dtype, dtype))


def widest(*dtypes: DTypeLike) -> np.dtype:
    """Find the type of at least float32 that holds the numbers of all of these."""
    # JAX promotes no floats of 8 bits and fewer; float32 holds them all.
    wide = [dtype for dtype in dtypes if jnp.finfo(dtype).bits >= 16]
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, wide, jnp.dtype(jnp.float32))


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
