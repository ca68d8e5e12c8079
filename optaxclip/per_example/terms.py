"""What the gradient of one example is made of, before it is multiplied out.

Its axes are objects: one that stands in both factors and not in the result is summed
over. All the positions of a sequence, an image or a loop are such axes.
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
    """An axis of a gradient or of what it is made of.

    Attributes:
      size: its length.
    """

    size: int


Axes = tuple[Axis, ...]


def size(axes: Axes) -> int:
    """Count the numbers that axes span."""
    return math.prod(axis.size for axis in axes)


@dataclass(frozen=True)
class Step:
    """A change of a gradient's shape, type or sign that keeps its norm.

    Attributes:
      primitive: what changes it.
      params: the primitive's parameters.
      stacked: over how many axes in front it is repeated.
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
    """Bring a gradient, as it was multiplied out, to its parameter's shape."""
    for step in steps:
        gradient = step(gradient)
    return gradient


@dataclass(frozen=True)
class Factor:
    """One of two arrays that are multiplied.

    Attributes:
      atom: the array.
      axes: the array's axes.
      rows: where the array holds indices, the axes of the result that they index;
        it stands for a one at each index and zeros elsewhere.
      drops: whether indices beyond those axes are left out, not clamped.
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
        """Name the factor outside a scan, where it may be stacked along an axis."""
        atom, is_stacked = outside(self.atom)
        front = (axis,) if is_stacked else ()
        return replace(self, atom=atom, axes=front + self.axes)


@dataclass(frozen=True)
class Product:
    """A gradient that is two arrays multiplied, summed over the axes they share.

    Attributes:
      left: the one array.
      right: the other.
      axes: the axes of the product, in order.
      scale: a number with which it is multiplied.
      steps: what is then done to it.
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
        """The axes of the product that stand in both arrays."""
        spans = set(self.left.spans) & set(self.right.spans)
        return tuple(axis for axis in self.axes if axis in spans)

    def own(self, factor: Factor) -> Axes:
        """The axes of the product that stand in one array alone."""
        shared = self.shared
        return tuple(a for a in self.axes if a in factor.spans and a not in shared)


@dataclass(frozen=True)
class Convolution:
    """The gradient of a convolution's kernel, itself a convolution.

    Attributes:
      image: what was convolved.
      cotangent: the cotangent of the result.
      shapes: the shapes of these two and of the gradient.
      params: how the gradient is convolved from them.
      steps: what is then done to it.
    """

    image: Atom
    cotangent: Atom
    shapes: tuple[tuple[int, ...], ...]
    params: dict[str, Any]
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Passed:
    """What a call was handed comes out as a gradient.

    Attributes:
      atom: what it was handed, seen from inside.
    """

    atom: Atom


@dataclass(frozen=True)
class Opaque:
    """A gradient that has to be taken as it is.

    Attributes:
      reason: why.
    """

    reason: str


Term = Product | Convolution | Passed | Opaque
