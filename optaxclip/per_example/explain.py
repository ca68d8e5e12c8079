"""Explain how each leaf's gradients are clipped, and at what cost."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from optaxclip.per_example.tracing import checked_params, trace

_HEADS = ("leaf", "shape", "way", "norm costs", "held", "why")


def explain(
    loss: Callable[..., Any], params: PyTree, *example: Any, has_aux: bool = False
) -> None:
    """Print how each leaf's gradients are clipped, at what cost, and why.

    Nothing is computed; no noise is added, and there is no privacy accounting. The
    methods are:

    - ``inner products``: the norm comes from inner products between the positions of a
      sequence or an image; the gradient of an example is not formed.
    - ``rows``: the same, for a table of which an example reads a few rows.
    - ``example by example``: the gradient of each example is formed, because that is
      cheaper or because there is no rule.
    - ``none``: the loss does not depend on the leaf.

    Args:
      loss: the loss of ONE example, ``loss(params, *example)``.
      params: the parameters, or their shapes and dtypes.
      *example: ONE example, not a batch, or its shapes and dtypes.
      has_aux: whether the loss returns a pair of a number and anything else.

    Raises:
      TypeError: if params contains anything but floats, or the loss is not a number.

    Examples:
      >>> def loss(params, x):
      ...     return jnp.sum(jnp.tanh(x @ params["w"]) * params["scale"])
      >>> params = {"w": jnp.ones((64, 32)), "scale": jnp.ones(32)}
      >>> optaxclip.explain(loss, params, jnp.ones(64))
      leaf       shape  way                 norm costs  held  why
      ['scale']  32     example by example          32    32  it is made by mul
      ['w']      64x32  inner products              96     0  64 by 32 on 1 position

      The costs are the multiplications and the numbers stored for one example.
    """
    params = checked_params(params)
    traced = trace(loss, params, example, has_aux)
    rows: list[tuple[str, ...]] = [_HEADS]
    pairs = zip(jax.tree.leaves_with_path(params), traced.plans, strict=True)
    for (path, leaf), plan in pairs:
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        way = plan.way
        cost, held = (0, 0) if way is None else (way.cost, way.memory)
        name = jax.tree_util.keystr(path) or "params"
        rows.append((name, shape, plan.name, f"{cost:,}", f"{held:,}", plan.reason))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if head in ("norm costs", "held") else cell.ljust(width)
            for cell, width, head in zip(row, widths, _HEADS, strict=True)
        ]
        print("  ".join(cells).rstrip())
