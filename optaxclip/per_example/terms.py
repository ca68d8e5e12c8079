"""One example's gradient before it is put together: a graph of linear steps.

Its leaves are what is held for each example: values of the traced gradient, and the two
factors of products. The steps above them have no values of a single example but these,
so that they can be applied to a sum over examples just as well.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optaxclip.per_example.calls import Atom, Equation, Value


@dataclass(frozen=True, eq=False)
class Axis:
    """An axis of a gradient or of its factors.

    Attributes:
      size: its length.
    """

    size: int


Axes = tuple[Axis, ...]
Held = frozenset[Atom]


def size(axes: Axes) -> int:
    """Return the product of the sizes of axes."""
    return math.prod(axis.size for axis in axes)


@dataclass(frozen=True)
class Given:
    """A value as the traced gradient computes it.

    Attributes:
      atom: the value.
      carried: whether it is what a loop carries.
    """

    atom: Atom
    carried: bool = False

    @property
    def factors(self) -> "tuple[Factor, ...]":
        """The value itself."""
        return (Factor(self.atom, ()),)

    @property
    def held(self) -> Held:
        """The values that are held for each example."""
        return frozenset() if self.carried else frozenset((self.atom,))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value."""
        return self.atom.aval.shape


@dataclass(frozen=True, eq=False)
class Shared:
    """A value that is the same for all examples.

    Attributes:
      atom: the value; None for zeros.
      repeated: the value that is repeated to make it, and the axes that this has.
    """

    atom: Atom | None
    repeated: tuple[Atom, tuple[int, ...]] | None = None
    held: Held = frozenset()


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


@dataclass(frozen=True)
class Product:
    """The product of two arrays, summed over shared axes.

    Attributes:
      left: one array.
      right: the other array.
      axes: the axes of the product, in order.
      precision: the precision for which the loss asks.
    """

    left: Factor
    right: Factor
    axes: Axes
    precision: Any = None

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The arrays that are multiplied."""
        return self.left, self.right

    @property
    def held(self) -> Held:
        """The values that are held for each example."""
        return frozenset((self.left.atom, self.right.atom))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the product."""
        return tuple(axis.size for axis in self.axes)

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
      options: the parameters of the convolution that computes the gradient.
    """

    image: Atom
    cotangent: Atom
    shapes: tuple[tuple[int, ...], ...]
    options: tuple[tuple[str, Any], ...] = field(repr=False)

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The arrays that are convolved."""
        return Factor(self.image, ()), Factor(self.cotangent, ())

    @property
    def params(self) -> dict[str, Any]:
        """The parameters by their names."""
        return dict(self.options)

    @property
    def held(self) -> Held:
        """The values that are held for each example."""
        return frozenset((self.image, self.cotangent))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the gradient."""
        return self.shapes[2]


@dataclass(frozen=True, eq=False)
class _Composed:
    operands: tuple["Term", ...]
    held: Held = field(init=False)
    convolves: bool = field(init=False)

    def __post_init__(self):
        together = frozenset().union(*(term.held for term in self.operands))
        object.__setattr__(self, "held", together)
        object.__setattr__(self, "convolves", any(map(convolves, self.operands)))


@dataclass(frozen=True, eq=False)
class Made(_Composed):
    """A result of an equation that is linear in those operands that are not shared.

    Attributes:
      operands: its operands.
      equation: the equation.
      output: which of its results this is.
      levels: for each loop around it, from the innermost, which operands are stacked;
        the equation is mapped over these.
    """

    equation: Equation
    output: int = 0
    levels: tuple[tuple[bool, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Sum(_Composed):
    """A sum of terms, its operands."""


Cut = Given | Product | Convolution
Term = Given | Shared | Product | Convolution | Made | Sum


def is_zero(term: Term) -> bool:
    """Return whether a term is known to be zero."""
    return isinstance(term, Shared) and term.atom is None


def convolves(term: Term) -> bool:
    """Return whether a term is made of the gradient of a kernel."""
    return isinstance(term, Convolution) or getattr(term, "convolves", False)


def in_order(term: Term) -> list[Term]:
    """List a term and all below it, each after its operands."""
    found: dict[int, Term] = {}
    ahead: list[tuple[Term, Iterator[Term]]] = [(term, _operands(term))]
    begun = {id(term)}
    while ahead:
        last, rest = ahead[-1]
        below = next(rest, None)
        if below is None:
            found[id(last)] = last
            ahead.pop()
        elif id(below) not in begun:
            begun.add(id(below))
            ahead.append((below, _operands(below)))
    return list(found.values())


def _operands(term: Term) -> Iterator[Term]:
    return iter(getattr(term, "operands", ()))


_NONE = Value(None)


@functools.cache
def _numbered(number: int, size: int) -> Axis:
    return Axis(size)


def bare(cuts: Sequence[Cut]) -> tuple[Any, ...]:
    """Return cuts without their arrays, equal wherever the same is to be computed."""
    known: dict[Axis, Axis] = {}

    def named(axes: Axes) -> Axes:
        return tuple(known.setdefault(a, _numbered(len(known), a.size)) for a in axes)

    def of_factor(factor: Factor) -> Factor:
        return Factor(_NONE, named(factor.axes), named(factor.rows), factor.drops)

    def of_cut(cut: Cut) -> Cut:
        if isinstance(cut, Given):
            return Given(_NONE)
        if isinstance(cut, Convolution):
            return replace(cut, image=_NONE, cotangent=_NONE)
        factors = of_factor(cut.left), of_factor(cut.right)
        return Product(*factors, named(cut.axes), cut.precision)

    return tuple(map(of_cut, cuts))
