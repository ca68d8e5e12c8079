"""Explain how the gradients of each leaf are clipped, and at what cost."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from optaxclip.per_example.tracing import checked_params, trace


class LeafPlan(NamedTuple):
    """How the gradients of one leaf are clipped.

    Attributes:
      leaf: the path of the leaf in params.
      shape: its shape, or ``scalar``.
      way: one of the methods that `explain` lists.
      norm_costs: the number of multiplications for the norm of one example.
      held: how many numbers are stored for one example.
      why: the reason for this method.
    """

    leaf: str
    shape: str
    way: str
    norm_costs: int
    held: int
    why: str


@dataclass(frozen=True, repr=False)
class Explanation:
    """A table with one row per leaf, which prints as text.

    Attributes:
      rows: the rows, in the order of the leaves.
    """

    rows: tuple[LeafPlan, ...]

    def __str__(self) -> str:
        """Return the table as text, with aligned columns."""
        heads = tuple(field.replace("_", " ") for field in LeafPlan._fields)
        cells = [heads, *(tuple(map(_as_cell, row)) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(_line(row, widths) for row in cells)

    __repr__ = __str__


def _as_cell(entry: str | int) -> str:
    return f"{entry:,}" if isinstance(entry, int) else entry


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    """Align the cells of a row: numbers to the right, words to the left."""
    cells = [
        cell.rjust(width) if field in ("norm_costs", "held") else cell.ljust(width)
        for cell, width, field in zip(row, widths, LeafPlan._fields, strict=True)
    ]
    return "  ".join(cells).rstrip()


def explain(
    loss: Callable[..., Any], params: PyTree, *example: Any, has_aux: bool = False
) -> Explanation:
    """Explain how each leaf's gradients are clipped, at what cost, and why.

    Nothing is computed; no noise is added, and there is no privacy accounting. The
    methods are:

    - ``inner products``: the norm comes from inner products between the positions of a
      sequence or an image; the gradient of an example is not formed.
    - ``rows``: the same, for a table of which an example reads only a few rows.
    - ``example by example``: the gradient of each example is formed, because that is
      no larger than what it is made of, or because there is no rule.
    - ``one by one``: the same, but only one is in memory at a time.
    - ``shared``: all examples have the same gradient, as that of a penalty.
    - ``none``: the loss does not depend on the leaf.

    Args:
      loss: the loss of ONE example, ``loss(params, *example)``.
      params: the parameters, or their shapes and dtypes.
      *example: ONE example, not a batch, or its shapes and dtypes.
      has_aux: whether the loss returns a pair: a number and anything else.

    Returns:
      A table that prints as text; its `rows` has one entry per leaf.

    Raises:
      TypeError: if params contains anything but floats, or the loss is not a number.

    Examples:
      >>> def loss(params, x):
      ...     return jnp.sum(jnp.tanh(x @ params["w"]) * params["scale"])
      >>> params = {"w": jnp.ones((64, 32)), "scale": jnp.ones(32)}
      >>> optaxclip.explain(loss, params, jnp.ones(64))
      leaf       shape  way                 norm costs  held  why
      ['scale']  32     example by example          32    32  it is no product
      ['w']      64x32  inner products              96     0  64 by 32 on 1 position

      The costs are the multiplications and the numbers stored for one example.
    """
    params = checked_params(params)
    traced = trace(loss, params, example, has_aux)
    rows: list[LeafPlan] = []
    pairs = zip(jax.tree.leaves_with_path(params), traced.plans, strict=True)
    for (path, leaf), plan in pairs:
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        way = plan.way
        cost, held = (0, 0) if way is None else (way.cost, way.memory)
        name = jax.tree_util.keystr(path) or "params"
        rows.append(LeafPlan(name, shape, plan.name, cost, held, plan.reason))
    return Explanation(tuple(rows))
