"""Gradients of a loss with per-example clipping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jax.typing import ArrayLike, DTypeLike
from jaxtyping import PyTree

from optaxclip.arguments import (
    check_denominator,
    check_dtype,
    check_loss,
    check_transform,
)
from optaxclip.leaves import AxisName
from optaxclip.per_example.differentiated import check_argnums, chosen, woven
from optaxclip.per_example.limits import arrange, check_limits, check_response
from optaxclip.per_example.placement import on_any_mesh
from optaxclip.per_example.sensitivity import ClippedGradient
from optaxclip.per_example.sums import (
    Examples,
    Loss,
    PerExample,
    add_up,
    in_chunks,
    prepare,
)
from optaxclip.per_example.transformed import Transform, told_before, transformed
from optaxclip.responses import Response, shrink


def clipped_value_and_grad(
    loss: Callable[..., Any],
    max_norm: PyTree[ArrayLike],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    response: Response = shrink,
    denominator: ArrayLike | None = None,
    in_axes: Any = 0,
    microbatch_size: int | None = None,
    axis_name: AxisName = None,
    dtype: DTypeLike | None = None,
    pre_clipping_transform: Transform | None = None,
) -> ClippedGradient:
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
      argnums: which arguments of the loss are parameters, as in ``jax.grad``.
      has_aux: whether the loss returns a pair of a number and anything else.
      response: what happens to a gradient above the limit: `responses.shrink`,
        `drop`, `normalize`, `auto_s` or any other that multiplies it by a number.
      denominator: the divisor of the sum; by default the number of examples that count,
        on the whole mesh; 1 gives the sum.
      in_axes: the axis of the examples in the arguments besides the parameters: an int,
        None for shared arguments, or a tuple with a tree of these per argument, as in
        ``jax.vmap``. Arrays given by name have the examples along axis 0.
      microbatch_size: the number of examples in memory at a time; all by default.
      axis_name: mesh axes over which the examples are sharded inside
        ``jax.shard_map``; gradients are summed over them.
      dtype: the dtype of the gradient; by default that of each parameter. To add noise,
        give ``jnp.float32``.
      pre_clipping_transform: a function of one example's gradient whose result is
        clipped in its place. The gradients are then formed example by example; where
        it only scales them, scale the parameters in the loss instead.

    Returns:
      A `ClippedGradient`: a function of the arguments of the loss, for a batch, and
      optionally ``mask``, with one bool per example, False for padding. A single
      ``jax.random.key`` in the batch is split into one key per example. It returns a
      `PerExample` and the gradient, like params. An example whose gradient is not
      finite counts as zeros; a batch of no examples gives zeros.

    Raises:
      TypeError: if an argument has the wrong type; when called, if params contains
        anything but floats, or the loss is not a number.
      ValueError: if `max_norm` is negative or NaN; when called, if the arguments have
        different numbers of examples.

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
      >>> eta = (1.1 * gradient.sensitivity()) ** 2
      >>> noise = optax.add_noise(eta=eta, gamma=0.0, key=0)
      >>> optimizer = optax.chain(noise, optax.sgd(0.1))

    References:
      Abadi et al., Deep learning with differential privacy, 2016, arXiv:1607.00133.
      Bu et al., Differentially private optimization on large model at small cost, 2022,
      arXiv:2210.00038.

    Note:
      How far one example moves the gradient, its method `sensitivity` tells. For
      batches sampled at random give the expected size as `denominator`. Examples that
      are not finite still count in the default one.
      What is held are the inputs and cotangents of all layers, which `microbatch_size`
      bounds; a loss with ``jax.checkpoint`` takes two passes instead, which hold
      nothing of a layer. Under ``jit`` a multiple of the number of devices leaves all
      examples where they are on a mesh, whose axes the loss sees as auto.
      The paper's reference code adds 1e-6 to the norm before it divides; this does not.
    """
    check_loss(loss)
    check_limits(max_norm)
    check_response(response)
    check_argnums(argnums)
    check_denominator(denominator)
    check_dtype(dtype)
    check_transform(pre_clipping_transform)
    of_one = Loss(woven(loss, argnums), has_aux)

    def value_and_grad(
        *args: Any, mask: Any = None, **named: Any
    ) -> tuple[PerExample, PyTree]:
        params, batch = chosen(argnums, args)
        examples = prepare(params, batch, named, in_axes, mask, axis_name)
        one, examples = transformed(of_one, pre_clipping_transform, examples)

        def mean(examples: Examples) -> tuple[PerExample, PyTree]:
            limits = arrange(max_norm, examples.params).places(examples.params)
            number = examples.number(denominator)
            function = partial(add_up, one, limits, response, number)
            told, sums = in_chunks(function, examples, microbatch_size)
            return told, examples.gradient(sums, dtype)

        told, mean_gradient = on_any_mesh(
            mean, examples, lambda each, shared: (each, shared)
        )
        return told if one is of_one else told_before(told), mean_gradient

    return ClippedGradient(value_and_grad, max_norm, response, denominator)


def clipped_grad(
    loss: Callable[..., Any],
    max_norm: PyTree[ArrayLike],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    response: Response = shrink,
    denominator: ArrayLike | None = None,
    in_axes: Any = 0,
    microbatch_size: int | None = None,
    axis_name: AxisName = None,
    dtype: DTypeLike | None = None,
    pre_clipping_transform: Transform | None = None,
) -> ClippedGradient:
    r"""Differentiate a loss with every example's gradient clipped, like ``jax.grad``.

    It adds no noise and does no privacy accounting. The arguments are those of
    `clipped_value_and_grad`, whose notes on noise and sensitivity also apply here.

    $$\bar g = \frac1n \sum_i g_i \min(1, c / \lVert g_i \rVert)$$

    Args:
      loss: the loss of ONE example, ``loss(params, *example)``.
      max_norm: the largest norm of an example's gradient, or several limits.
      argnums: which arguments of the loss are parameters.
      has_aux: whether the loss returns a pair of a number and anything else.
      response: what happens to a gradient above the limit.
      denominator: the divisor of the sum; the number of examples by default.
      in_axes: the axis of the examples in each argument.
      microbatch_size: the number of examples in memory at a time; all by default.
      axis_name: mesh axes over which the examples are sharded.
      dtype: the dtype of the gradient; by default that of each parameter.
      pre_clipping_transform: a function of one example's gradient whose result is
        clipped in its place.

    Returns:
      A `ClippedGradient`: a function of the arguments of the loss, for a batch, and
      optionally ``mask`` that returns the gradient; with `has_aux`, a pair of the
      gradient and aux, with a leading axis of examples.

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
        argnums=argnums,
        has_aux=has_aux,
        response=response,
        denominator=denominator,
        in_axes=in_axes,
        microbatch_size=microbatch_size,
        axis_name=axis_name,
        dtype=dtype,
        pre_clipping_transform=pre_clipping_transform,
    )

    def grad(*args: Any, mask: Any = None, **named: Any) -> Any:
        told, grads = both(*args, mask=mask, **named)
        return (grads, told.aux) if has_aux else grads

    return ClippedGradient(grad, max_norm, response, denominator)
