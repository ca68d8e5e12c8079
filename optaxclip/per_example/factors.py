"""Arrays that are multiplied, and their axes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from optaxclip.per_example.calls import Atom


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
class Change:
    """A linear change of the array of each example, with values that all share.

    Attributes:
      run: takes the arrays, with the examples in front, and these values.
      shared: the values.
    """

    run: Callable[..., Any]
    shared: tuple[Atom, ...] = ()


@dataclass(frozen=True)
class Factor:
    """One of two arrays that are multiplied.

    Attributes:
      atom: the array.
      axes: the array's axes, after the changes.
      rows: if the array holds indices, the axes of the result that they index; it then
        stands for their one-hot encoding.
      drops: whether out-of-range indices are dropped, not clamped.
      changes: what is done to the array before it is multiplied.
    """

    atom: Atom
    axes: Axes
    rows: Axes = ()
    drops: bool = False
    changes: tuple[Change, ...] = ()

    @property
    def spans(self) -> Axes:
        """The axes that a product with this factor has."""
        return self.rows + (self.axes[:-1] if self.rows else self.axes)

    def stacked(self, axis: Axis | None, outside: Callable[[Atom], tuple[Atom, bool]]):
        """Convert to a factor seen from outside a call, maybe stacked along an axis."""
        atom, is_stacked = outside(self.atom)
        front = (axis,) if axis is not None and is_stacked else ()
        return replace(self, atom=atom, axes=front + self.axes)
