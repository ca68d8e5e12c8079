"""The norm of each example's gradient, for those who only want to see it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jaxtyping import PyTree

from optaxclip.arguments import check_loss
from optaxclip.per_example.differentiated import check_argnums, chosen, woven
from optaxclip.per_example.limits import arrange
from optaxclip.per_example.placement import on_any_mesh
from optaxclip.per_example.sums import (
    Examples,
    Loss,
    PerExample,
    in_chunks,
    measure_norms,
    prepare,
)


def per_example_norms(
    loss: Callable[..., Any],
    *,
    prefix: PyTree = 0,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    in_axes: Any = 0,
    microbatch_size: int | None = None,
) -> Callable[..., PyTree]:
    r"""Compute every example's gradient norm, at the cost of one batch gradient.

    This clips nothing, adds no noise and does no privacy accounting: norms reveal
    information about examples, so limits based on them are not private.

    Args:
      loss: the loss of ONE example, ``loss(params, *example)``.
      prefix: a prefix tree of params; the leaves below each entry are measured
        together, by default all of params. The entries themselves do not matter.
      argnums: which arguments of the loss are parameters, as in ``jax.grad``.
      has_aux: whether the loss returns a pair of a number and anything else.
      in_axes: the axis of the examples in each argument.
      microbatch_size: the number of examples in memory at a time; all by default.

    Returns:
      A function of the arguments of the loss, for a batch, and optionally ``mask``
      that returns the norms, arranged like `prefix`, with a leading axis of examples.
      The norm of an example that the mask excludes is 0.

    Raises:
      TypeError: if `argnums` is no position; when called, as in
        `clipped_value_and_grad`.
      ValueError: when called, as in `clipped_value_and_grad`.

    Examples:
      >>> norms = optaxclip.per_example_norms(lambda w, x: jnp.dot(x, w))
      >>> norms(jnp.zeros(2), jnp.array([[3.0, 4.0], [0.0, 0.5]]))
      Array([5. , 0.5], dtype=float32)
    """
    check_loss(loss)
    check_argnums(argnums)
    asked = Loss(woven(loss, argnums), has_aux)

    def measure(groups: Any, examples: Examples) -> tuple[PerExample, list[Any]]:
        return measure_norms(asked, groups, examples), []

    def measure_all(examples: Examples) -> PyTree:
        zeros = jax.tree.map(lambda _: 0.0, prefix)
        groups = arrange(zeros, examples.params, "prefix").places(examples.params)
        return in_chunks(partial(measure, groups), examples, microbatch_size)[0].norm

    def norms(*args: Any, mask: Any = None, **named: Any) -> PyTree:
        params, batch = chosen(argnums, args)
        examples = prepare(params, batch, named, in_axes, mask, None)
        return on_any_mesh(measure_all, examples, lambda each, shared: each)

    return norms
