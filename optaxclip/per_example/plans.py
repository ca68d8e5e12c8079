"""Choose how each leaf's gradients are clipped."""

import math
from dataclasses import dataclass, replace

from optaxclip.per_example.convolutions import KernelDirect, KernelGram
from optaxclip.per_example.layouts import layout, sizes_of
from optaxclip.per_example.origins import origins
from optaxclip.per_example.products import Direct, Gram
from optaxclip.per_example.program import Atom, Program, aval_of
from optaxclip.per_example.rules import is_float
from optaxclip.per_example.tables import Table
from optaxclip.per_example.terms import (
    Convolution,
    Opaque,
    Passed,
    Product,
)
from optaxclip.per_example.ways import FullGradient, Way


@dataclass(frozen=True)
class Plan:
    """How one leaf's gradients are clipped.

    Attributes:
      way: the method; None if no gradient reaches the leaf.
      name: its name.
      reason: why it was chosen.
    """

    way: Way | None
    name: str
    reason: str


def plan_leaf(program: Program, gradient: Atom) -> Plan:
    """Choose the way of a leaf, given the atom of its gradient."""
    terms = origins(program, gradient)
    whole = FullGradient(gradient)
    if not terms or not aval_of(gradient).size:
        return Plan(None, "none", "no gradient reaches it")
    if not is_float(gradient):
        return Plan(whole, "example by example", "it holds complex numbers")
    for term in terms:
        if isinstance(term, Opaque):
            return Plan(whole, "example by example", term.reason)
        if isinstance(term, Passed):
            return Plan(whole, "example by example", "it is an input of the loss")
    convolutions = [t for t in terms if isinstance(t, Convolution)]
    if len(terms) == len(convolutions) == 1:
        return _of_kernel(convolutions[0])
    if convolutions:
        reason = "a convolution's kernel is used more than once"
        return Plan(whole, "example by example", reason)
    return _of_products(whole, [t for t in terms if isinstance(t, Product)])


def _of_kernel(term: Convolution) -> Plan:
    gram, direct = KernelGram(term), KernelDirect(term)
    shape = f"a kernel of {direct.memory} numbers on {_told(math.prod(gram.positions))}"
    if gram.cost < direct.cost:
        return Plan(gram, "inner products", shape)
    return Plan(direct, "example by example", shape)


def _of_products(whole: FullGradient, products: list[Product]) -> Plan:
    reads = tuple(_index_first(p) for p in products if p.left.rows or p.right.rows)
    others = tuple(p for p in products if not (p.left.rows or p.right.rows))
    model = products[0]
    if any(layout(p) != layout(model) or p.steps != model.steps for p in products):
        reason = "its uses have different layouts"
        return Plan(whole, "example by example", reason)
    shared, positions, a, b = sizes_of(products)
    uses = f"{len(products)} uses, " if len(products) > 1 else ""
    shape = f"{uses}{a} by {b} on {_told(positions)}"
    if reads:
        if shared > 1 or positions * (a + b) >= a * b:
            return Plan(whole, "example by example", shape)
        return Plan(Table(reads, others), "rows", shape)
    if positions * (a + b) < a * b or positions == 1:
        return Plan(Gram(others), "inner products", shape)
    return Plan(Direct(others), "example by example", shape)


def _index_first(product: Product) -> Product:
    if product.left.rows:
        return product
    return replace(product, left=product.right, right=product.left)


def _told(positions: int) -> str:
    return f"{positions} position" + "s" * (positions != 1)
