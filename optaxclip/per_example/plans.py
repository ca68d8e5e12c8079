"""Choose how each leaf's gradients are clipped."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optaxclip.per_example.assembly import constant_of, cuts_of
from optaxclip.per_example.calls import Atom, Equation
from optaxclip.per_example.convolutions import KernelDirect, KernelGram
from optaxclip.per_example.elements import multiplied_once
from optaxclip.per_example.formed import Formed
from optaxclip.per_example.layouts import sizes_of
from optaxclip.per_example.linear import Linear, Part
from optaxclip.per_example.pieces import pieces_of
from optaxclip.per_example.places import Piece
from optaxclip.per_example.products import Gram
from optaxclip.per_example.stepwise import Step, Stepwise
from optaxclip.per_example.tables import Table
from optaxclip.per_example.terms import (
    Convolution,
    Given,
    Product,
    Shared,
    Term,
    convolves,
    is_zero,
)

NO_PRODUCT = "it is no product"


@dataclass(frozen=True)
class Plan:
    """How one leaf's gradients are clipped.

    Attributes:
      way: the method; None if no gradient reaches the leaf.
      name: its name.
      reason: why it was chosen.
      steps: how it is clipped where it arises, if loops stack it step by step.
    """

    way: Linear | None
    name: str
    reason: str
    steps: Stepwise | None = None


def plan_leaf(term: Term, gradient: Atom, reason: str = NO_PRODUCT) -> Plan:
    """Choose the way of a leaf, given its gradient and of what this is made.

    The reason is told where the gradient is formed whole.
    """
    if is_zero(term) or not gradient.aval.size:
        return Plan(None, "none", "no gradient reaches it")
    given = Given(gradient)
    whole = Plan(Linear(given, (given,)), "example by example", reason)
    if isinstance(term, Shared):
        return Plan(Linear(term, ()), "shared", "it is the same for all examples")
    if isinstance(term, Given):
        return whole
    groups = pieces_of(term)
    if convolves(term):
        return _of_kernel(term, groups) or whole
    norms = None if groups is None else _norms(groups)
    if norms is None:
        reason = "its products are not measured apart"
        return Plan(Linear(multiplied_once(term), None), "one by one", reason)
    reads = any(isinstance(norm, Table) for norm in norms)
    return Plan(
        Linear(term, norms), "rows" if reads else "inner products", _told(norms)
    )


def plan_steps(
    term: Term | None, inside: Mapping[Atom, tuple[Equation, Atom, Term]]
) -> Stepwise | None:
    """Choose the ways of what loops stack, if the norm is that of all of it.

    Args:
      term: how the gradient is made of this; None if it is not.
      inside: the loop, the value inside and its term, of all that loops stack.
    """
    if term is None:
        return None
    cuts = cuts_of(term)
    measured = [piece.cut for group in pieces_of(term) or () for piece in group]
    found = [inside.get(cut.atom) if isinstance(cut, Given) else None for cut in cuts]
    if Counter(measured) != Counter(cuts):
        return None
    steps: list[Step] = []
    for each in found:
        way = None if each is None else plan_leaf(each[2], each[1]).way
        if each is None or way is None or not way.atoms:
            return None
        if constant_of(term) and convolves(way.term):
            given = Given(each[1])  # No rule multiplies kernels by what is added.
            way = Linear(given, (given,))
        steps.append(Step(each[0], way))
    return Stepwise(Linear(term, ()), tuple(steps))


def _of_kernel(term: Term, groups: Sequence[Sequence[Piece]] | None) -> Plan | None:
    """Plan a single use of a kernel."""
    if groups is None or len(groups) > 1 or constant_of(term):
        return None
    cut = groups[0][0].cut
    if len(groups[0]) > 1 or not isinstance(cut, Convolution):
        return None
    gram, direct = KernelGram(cut), KernelDirect(cut)
    on = positions_told(gram.positions)
    shape = f"a kernel of {direct.memory} numbers on {on}"
    if gram.cost < direct.cost:
        return Plan(Linear(term, (gram,)), "inner products", shape)
    return Plan(Formed(term, None), "example by example", shape)


def _norms(groups: Sequence[Sequence[Piece]]) -> tuple[Part, ...] | None:
    """Choose how each group of pieces is measured; None if one has to be formed."""
    found: list[Part] = []
    for group in groups:
        cuts = [piece.cut for piece in group]
        if isinstance(cuts[0], Given):
            found.append(cuts[0])
            continue
        products = [cut for cut in cuts if isinstance(cut, Product)]
        reads = tuple(p for p in products if p.left.rows)
        others = tuple(p for p in products if not p.left.rows)
        norm = Table(reads, others) if reads else Gram(others)
        if not norm.cheap:
            return None
        found.append(norm)
    return tuple(found)


def _told(norms: Sequence[Part]) -> str:
    """Describe the first of the norms."""
    parts = f"{len(norms)} parts, the first " if len(norms) > 1 else ""
    first = norms[0] if norms else None
    if not isinstance(first, Gram | Table):
        return f"{parts}a value as it is"
    products = (
        first.products if isinstance(first, Gram) else (*first.reads, *first.products)
    )
    _, positions, a, b = sizes_of(products)
    uses = f"{len(products)} uses, " if len(products) > 1 else ""
    return f"{parts}{uses}{a} by {b} on {positions_told(positions)}"


def positions_told(positions: int) -> str:
    """Count positions in words."""
    return f"{positions} position" + "s" * (positions != 1)
