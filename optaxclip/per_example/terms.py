"""The terms of one example's gradient, before they are multiplied out.

Axes are objects: an axis of both factors that is not in the result is summed over. The
positions of a sequence, an image or a loop are such axes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax.extend.core import Primitive
from jaxtyping import Array

from optaxclip.per_example.program import Atom


@dataclass(frozen=True, eq=False)
class Axis:
    """An axis of a gradient or of its factors.

    Attributes:
      size: its length.
    """

    size: int


Axes = tuple[Axis, ...]


def size(axes: Axes) -> int:
    """Return the product of the sizes of axes."""
    return math.prod(axis.size for axis in axes)


@dataclass(frozen=True)
class Step:
    """A change of a gradient's shape, type or sign that keeps its norm.

    Attributes:
      primitive: the primitive that changes it.
      params: the primitive's parameters.
      stacked: the number of leading axes over which it is mapped.
    """

    primitive: Primitive
    params: dict[str, Any] = field(hash=False)
    stacked: int = 0

    def __call__(self, gradient: Array) -> Array:
        """Apply the step to a gradient."""

        def once(x: Array) -> Array:
            return self.primitive.bind(x, **self.params)

        change: Callable[[Array], Array] = once
        for _ in range(self.stacked):
            change = jax.vmap(change)
        return change(gradient)


def finish(steps: tuple[Step, ...], gradient: Array) -> Array:
    """Apply the steps that bring a gradient to its parameter's shape."""
    for step in steps:
        gradient = step(gradient)
    return gradient


@dataclass(frozen=True)
class Factor:
    """One of two arrays that are multiplied.

    Attributes:
      atom: the array.
      axes: the array's axes.
      rows: if the array holds indices, the axes of the result that they index; it then
        stands for their one-hot encoding.
      drops: whether out-of-range indices are dropped, not clamped.
    """

    atom: Atom
    axes: Axes
    rows: Axes = ()
    drops: bool = False

    @property
    def spans(self) -> Axes:
        """The axes that a product with this factor has."""
        return self.rows + (self.axes[:-1] if self.rows else self.axes)

    def stacked(self, axis: Axis, outside: Callable[[Atom], tuple[Atom, bool]]):
        """Convert to a factor seen from outside a scan, maybe stacked along an axis."""
        atom, is_stacked = outside(self.atom)
        front = (axis,) if is_stacked else ()
        return replace(self, atom=atom, axes=front + self.axes)


@dataclass(frozen=True)
class Product:
    """A gradient that is the product of two arrays, summed over shared axes.

    Attributes:
      left: one array.
      right: the other array.
      axes: the axes of the product, in order.
      scale: a constant factor.
      steps: the steps applied to the product.
    """

    left: Factor
    right: Factor
    axes: Axes
    scale: float = 1.0
    steps: tuple[Step, ...] = ()

    @property
    def summed(self) -> Axes:
        """The axes that are summed over."""
        both = dict.fromkeys(self.left.spans + self.right.spans)
        return tuple(axis for axis in both if axis not in self.axes)

    @property
    def shared(self) -> Axes:
        """The axes of the product that both arrays have."""
        spans = set(self.left.spans) & set(self.right.spans)
        return tuple(axis for axis in self.axes if axis in spans)

    def own(self, factor: Factor) -> Axes:
        """The axes of the product that only one array has."""
        shared = self.shared
        return tuple(a for a in self.axes if a in factor.spans and a not in shared)


@dataclass(frozen=True)
class Convolution:
    """The gradient of a convolution's kernel, itself a convolution.

    Attributes:
      image: the input of the forward convolution.
      cotangent: the cotangent of its result.
      shapes: the shapes of these two and of the gradient.
      params: the parameters of the convolution that computes the gradient.
      steps: the steps applied to the gradient.
    """

    image: Atom
    cotangent: Atom
    shapes: tuple[tuple[int, ...], ...]
    params: dict[str, Any]
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Passed:
    """A gradient that is an input of the call, unchanged.

    Attributes:
      atom: the input, seen from inside.
    """

    atom: Atom


@dataclass(frozen=True)
class Opaque:
    """A gradient that is not known to be a sum of products.

    Attributes:
      reason: why not.
    """

    reason: str


Term = Product | Convolution | Passed | Opaque
