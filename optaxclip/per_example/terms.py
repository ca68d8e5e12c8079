"""One example's gradient before it is put together: a graph of linear steps.

Its leaves are what is held for each example: values of the traced gradient, and the two
factors of products. The steps above them have no values of a single example but these,
so that they can be applied to a sum over examples just as well.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from optaxclip.per_example.calls import Atom, Equation
from optaxclip.per_example.factors import Axes, Factor

Held = frozenset[Atom]


class _Multiplied(ABC):
    @property
    @abstractmethod
    def factors(self) -> tuple[Factor, ...]:
        """The arrays of which it is made."""

    @property
    def held(self) -> Held:
        """The values that are held for each example."""
        return frozenset(factor.atom for factor in self.factors)


@dataclass(frozen=True)
class Given(_Multiplied):
    """A value as the traced gradient computes it.

    Attributes:
      atom: the value.
      carried: whether it is what a loop carries.
    """

    atom: Atom
    carried: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The value itself."""
        return () if self.carried else (Factor(self.atom, ()),)

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
class Product(_Multiplied):
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
class Convolution(_Multiplied):
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
