"""Gradients of a loss with per-example clipping, and per-example gradient norms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from optaxclip.arguments import check_denominator, check_loss
from optaxclip.leaves import AxisName
from optaxclip.numbers import as_number
from optaxclip.per_example.limits import arrange, check_limits, check_response
from optaxclip.per_example.placement import on_any_mesh
from optaxclip.per_example.sums import (
    Examples,
    Loss,
    PerExample,
    add_up,
    in_chunks,
    measure_norms,
    prepare,
)
from optaxclip.responses import Response, shrink


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
    r"""Differentiate a loss with every example's gradient clipped, without noise.

    There is no privacy accounting either. This is the first half of private training,
    and makes training robust to single examples.

    $$\bar g = \frac1n \sum_i g_i \min(1, c / \lVert g_i \rVert)$$

    Gradients of single examples are not formed. One forward and one backward pass for
    the batch give the inputs of each layer and the cotangents of its outputs; the norms
    come from these, and the sum is one contraction per parameter. The loss is traced,
    so it can be any function, with any modules or scans. A parameter that no rule
    covers is differentiated example by example; `explain` shows which.

    Args:
      loss: the loss of ONE example, ``loss(params, *example)``, which returns a number.
      max_norm: the largest norm of an example's gradient, c >= 0. In a prefix tree of
        params, each number limits the leaves below it, so that ``{"body": 1.0, "head":
        0.5}`` limits two norms; an array has one limit per leaf of params.
      has_aux: whether the loss returns a pair of a number and anything else.
      response: what happens to a gradient above the limit: `responses.shrink`,
        `drop`, `normalize`, `auto_s` or any other that multiplies it by a number.
      denominator: the divisor of the sum; by default the number of examples that count,
        on the whole mesh; 1 gives the sum.
      in_axes: the axis of the examples in the arguments after the parameters: an int,
        None for shared arguments, or a tuple with a tree of these per argument, as in
        ``jax.vmap``.
      microbatch_size: the number of examples in memory at a time; all by default.
      axis_name: mesh axes over which the examples are sharded inside
        ``jax.shard_map``; gradients are summed over them.

    Returns:
      A function of the parameters, the batch and optionally ``mask``, with one bool per
      example, False for padding. A single ``jax.random.key`` in the batch is split into
      one key per example. It returns a `PerExample` and the gradient, like params.
      An example whose gradient is not finite counts as zeros.

    Raises:
      TypeError: if `max_norm` or `response` has the wrong type; when called, if params
        contains anything but floats, or the loss is not a number.
      ValueError: if `max_norm` is negative or NaN; when called, if the arguments have
        different numbers of examples, or none.

    Examples:
      >>> def loss(w, x, y):
      ...     return (x @ w - y) ** 2 / 2
      >>> gradient = optaxclip.clipped_value_and_grad(loss, max_norm=1.0)
      >>> x, y = jnp.array([[3.0, 4.0], [0.0, 0.5]]), jnp.array([-1.0, -1.0])
      >>> examples, grads = gradient(jnp.zeros(2), x, y)
      >>> examples.norm
      Array([5. , 0.5], dtype=float32)
      >>> grads
      Array([0.3 , 0.65], dtype=float32)

      With noise from Optax, for a batch of expected size 256:

      >>> gradient = optaxclip.clipped_grad(loss, 1.0, denominator=256)
      >>> noise = optax.add_noise(eta=(1.1 / 256) ** 2, gamma=0.0, key=0)
      >>> optimizer = optax.chain(noise, optax.sgd(0.1))

    References:
      Abadi et al., Deep learning with differential privacy, 2016, arXiv:1607.00133.
      Bu et al., Differentially private optimization on large model at small cost, 2022,
      arXiv:2210.00038.

    Note:
      Adding or removing one example changes the sum by at most c in norm, or by
      $\sqrt{\sum_l c_l^2}$ for several limits, up to rounding; replacing one, by twice
      that. A fixed `denominator` d divides these bounds. The default one is fixed
      only for batches of one size; for batches sampled at random give the expected
      size. With `normalize` and a single limit zero gradients stay zero, and the bounds
      hold. Examples that are not finite still count in the denominator.
      What is held are the inputs and cotangents of all layers, which `microbatch_size`
      bounds; a loss with ``jax.checkpoint`` and at most two limits takes two passes
      instead, which hold nothing. Under ``jit`` a multiple of the number of devices
      leaves all examples where they are on a mesh, whose axes the loss sees as auto.
      The paper's reference code adds 1e-6 to the norm before it divides; this does not.
    """
    check_loss(loss)
    check_limits(max_norm)
    check_response(response)
    if denominator is not None:
        check_denominator(denominator)

    def clip_all(examples: Examples) -> tuple[PerExample, PyTree]:
        limits = arrange(max_norm, examples.params).places(examples.params)
        given = denominator
        number = examples.number(axis_name) if given is None else as_number(given)
        function = partial(add_up, Loss(loss, has_aux), limits, response, number)
        told, sums = in_chunks(function, examples, microbatch_size)
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
        leaves, treedef = jax.tree.flatten(examples.params)
        grads = [s.astype(x.dtype) for s, x in zip(sums, leaves, strict=True)]
        return told, jax.tree.unflatten(treedef, grads)

    def value_and_grad(
        params: PyTree, *batch: Any, mask: Any = None
    ) -> tuple[PerExample, PyTree]:
        examples = prepare(params, batch, in_axes, mask, axis_name)
        return on_any_mesh(clip_all, examples, lambda each, shared: (each, shared))

    return value_and_grad


def clipped_grad(
    loss: Callable[..., Any],
    max_norm: PyTree[ArrayLike],
    *,
    has_aux: bool = False,
    response: Response = shrink,
    denominator: ArrayLike | None = None,
    in_axes: Any = 0,
    microbatch_size: int | None = None,
    axis_name: AxisName = None,
) -> Callable[..., Any]:
    r"""Differentiate a loss with every example's gradient clipped, like ``jax.grad``.

    It adds no noise and does no privacy accounting. The arguments are those of
    `clipped_value_and_grad`, whose notes on noise and sensitivity also apply here.

    $$\bar g = \frac1n \sum_i g_i \min(1, c / \lVert g_i \rVert)$$

    Args:
      loss: the loss of ONE example, ``loss(params, *example)``.
      max_norm: the largest norm of an example's gradient, or several limits.
      has_aux: whether the loss returns a pair of a number and anything else.
      response: what happens to a gradient above the limit.
      denominator: the divisor of the sum; the number of examples by default.
      in_axes: the axis of the examples in each argument.
      microbatch_size: the number of examples in memory at a time; all by default.
      axis_name: mesh axes over which the examples are sharded.

    Returns:
      A function of the parameters, the batch and optionally ``mask`` that returns the
      gradient; with `has_aux`, a pair of the gradient and aux, with a leading axis of
      examples.

    Raises:
      TypeError: as in `clipped_value_and_grad`.
      ValueError: as in `clipped_value_and_grad`.

    Examples:
      >>> def loss(w, x):
      ...     return jnp.dot(x, w)
      >>> gradient = optaxclip.clipped_grad(loss, max_norm=1.0)
      >>> gradient(jnp.zeros(2), jnp.array([[3.0, 4.0], [0.0, 0.5]]))
      Array([0.3 , 0.65], dtype=float32)
    """
    both = clipped_value_and_grad(
        loss,
        max_norm,
        has_aux=has_aux,
        response=response,
        denominator=denominator,
        in_axes=in_axes,
        microbatch_size=microbatch_size,
        axis_name=axis_name,
    )

    def grad(params: PyTree, *batch: Any, mask: Any = None) -> Any:
        told, grads = both(params, *batch, mask=mask)
        return (grads, told.aux) if has_aux else grads

    return grad


def per_example_norms(
    loss: Callable[..., Any],
    *,
    prefix: PyTree = 0,
    has_aux: bool = False,
    in_axes: Any = 0,
) -> Callable[..., PyTree]:
    r"""Compute every example's gradient norm, at the cost of one batch gradient.

    This clips nothing, adds no noise and does no privacy accounting: norms reveal
    information about examples, so limits based on them are not private.

    Args:
      loss: the loss of ONE example, ``loss(params, *example)``.
      prefix: a prefix tree of params; the leaves below each entry are measured
        together, by default all of params. The entries themselves do not matter.
      has_aux: whether the loss returns a pair of a number and anything else.
      in_axes: the axis of the examples in each argument.

    Returns:
      A function of the parameters and the batch that returns the norms, arranged like
      `prefix`, with a leading axis of examples.

    Raises:
      TypeError: when called, as in `clipped_value_and_grad`.
      ValueError: when called, as in `clipped_value_and_grad`.

    Examples:
      >>> norms = optaxclip.per_example_norms(lambda w, x: jnp.dot(x, w))
      >>> norms(jnp.zeros(2), jnp.array([[3.0, 4.0], [0.0, 0.5]]))
      Array([5. , 0.5], dtype=float32)
    """

    def measure_all(examples: Examples) -> PyTree:
        zeros = jax.tree.map(lambda _: 0.0, prefix)
        groups = arrange(zeros, examples.params, "prefix")
        groups = groups.places(examples.params)
        return measure_norms(Loss(loss, has_aux), groups, examples).norm

    def norms(params: PyTree, *batch: Any) -> PyTree:
        examples = prepare(params, batch, in_axes, None, None)
        return on_any_mesh(measure_all, examples, lambda each, shared: each)

    return norms
