"""Gradients of a loss with every example's clipped, and the norms by themselves."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import PyTree

from optaxclip.leaves import AxisName
from optaxclip.magnitudes import as_number
from optaxclip.per_example.limits import arrange, check_limits
from optaxclip.per_example.sums import (
    Loss,
    PerExample,
    add_up,
    in_chunks,
    measure_norms,
    prepare,
)
from optaxclip.responses import Response, clamp, shrink


def clipped_value_and_grad(
    loss: Callable[..., Any],
    max_norm: PyTree[ArrayLike],
    *,
    has_aux: bool = False,
    response: Response = shrink,
    denominator: ArrayLike | None = None,
    in_axes: Any = 0,
    microbatch_size: int | None = None,
    axis_name: AxisName = None,
) -> Callable[..., tuple[PerExample, PyTree]]:
    check_limits(max_norm)
    _check_response(response)

    def value_and_grad(
        params: PyTree, *batch: Any, mask: Any = None
    ) -> tuple[PerExample, PyTree]:
        examples = prepare(params, batch, in_axes, mask, axis_name)
        limits = arrange(max_norm, examples.params)
        if denominator is None:
            number = jnp.sum(examples.mask, dtype=jnp.float32)
            number = number if axis_name is None else jax.lax.psum(number, axis_name)
            share = 1 / jnp.maximum(number, 1)
        else:
            share = 1 / as_number(denominator)
        function = partial(add_up, Loss(loss, has_aux), limits, response, share)
        if microbatch_size is None:
            told, sums = function(examples)
        else:
            told, sums = in_chunks(function, examples, microbatch_size)
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
        leaves, treedef = jax.tree.flatten(examples.params)
        grads = [s.astype(x.dtype) for s, x in zip(sums, leaves, strict=True)]
        return told, jax.tree.unflatten(treedef, grads)

    return value_and_grad


def clipped_grad(loss, max_norm, *, has_aux: bool = False, **options):
    both = clipped_value_and_grad(loss, max_norm, has_aux=has_aux, **options)

    def grad(params: PyTree, *batch: Any, mask: Any = None):
        told, grads = both(params, *batch, mask=mask)
        return (grads, told.aux) if has_aux else grads

    return grad


def per_example_norms(loss, *, has_aux=False, prefix=0, in_axes=0):
    traced_loss = Loss(loss, has_aux)

    def norms(params: PyTree, *batch: Any):
        examples = prepare(params, batch, in_axes, None, None)
        groups = arrange(jax.tree.map(lambda _: 0.0, prefix), examples.params)
        return measure_norms(traced_loss, groups, examples).norm

    return norms


def _check_response(response: Response) -> None:
    if response is clamp or not isinstance(response, Response):
        raise ValueError(
            "response must multiply a whole gradient, as responses.shrink does, not "
            f"{response!r}."
        )
