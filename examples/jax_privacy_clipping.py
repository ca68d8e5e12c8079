"""jax-privacy's `clipped_grad`, with gradients from optaxclip.

It has the arguments of `jax_privacy.clipping.clipped_grad` and returns what that does,
so a training plan of jax-privacy that selects batches, adds noise and counts privacy
can use it:

    from jax_privacy.experimental import execution_plan

    config = execution_plan.BandMFExecutionPlanConfig.default(..., l2_clip_norm=1.0)
    gradient = functools.partial(clipped_grad, l2_clip_norm=1.0, ...)
    plan = dataclasses.replace(config.plan, clipped_grad=gradient)

Hand over the same `l2_clip_norm`, `normalize_by`, `rescale_to_unit_norm` and `dtype` as
to the plan, whose noise follows them. What differs: an example with a gradient that is
not finite always counts as zeros, norms are those of what is clipped, and neither a
grid for the discrete Gaussian nor `spmd_axis_name` is offered; a mesh needs nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax_privacy import clipping

import optaxclip
from optaxclip import responses


def clipped_grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    l2_clip_norm: Any,
    rescale_to_unit_norm: bool = False,
    normalize_by: float = 1.0,
    batch_argnums: int | Sequence[int] = 1,
    keep_batch_dim: bool = True,
    return_values: bool = False,
    return_grad_norms: bool = False,
    pre_clipping_transform: Callable[[Any], Any] | None = None,
    microbatch_size: int | None = None,
    dtype: Any = None,
    prng_argnum: int | None = None,
) -> clipping.BoundedSensitivityCallable:
    """Sum the clipped gradients of a batch, as jax-privacy's function of this name."""
    params, batched = as_tuple(argnums), as_tuple(batch_argnums)
    keeps = has_aux or return_values or return_grad_norms
    if overlap := set(params) & set(batched):
        raise ValueError(f"argnums and batch_argnums must not overlap in {overlap}.")

    # Where the limit tends to 0, what is rescaled tends to the normalized gradient.
    is_number = isinstance(l2_clip_norm, int | float)
    is_normal = rescale_to_unit_norm and is_number and l2_clip_norm == 0
    limit = 1.0 if is_normal else l2_clip_norm
    response = responses.normalize if is_normal else responses.shrink

    def of_one(*args: Any, **named: Any) -> Any:
        return fun(*(one(i, x) for i, x in enumerate(args)), **named)

    def one(position: int, x: Any) -> Any:
        """Give a batch of one example to a loss that expects batches."""
        with_axis = keep_batch_dim and position in batched
        return jax.tree.map(lambda x: x[None], x) if with_axis else x

    def clip(**options: Any) -> optaxclip.ClippedGradient:
        return optaxclip.clipped_value_and_grad(
            of_one,
            limit,
            argnums=argnums,
            has_aux=has_aux,
            response=response,
            denominator=normalize_by,
            microbatch_size=microbatch_size,
            dtype=dtype,
            pre_clipping_transform=pre_clipping_transform,
            **options,
        )

    def call(*args: Any, is_padding_example: Any = None, **named: Any) -> Any:
        with_axis = (*batched, prng_argnum)
        others = (i for i in range(len(args)) if i not in params)
        axes = tuple(0 if i in with_axis else None for i in others)
        mask = None if is_padding_example is None else ~is_padding_example
        told, grads = clip(in_axes=axes)(*args, mask=mask, **named)
        if rescale_to_unit_norm:
            grads = jax.tree.map(divided, limit, grads)
        aux = clipping.AuxiliaryOutput(
            values=told.value if return_values else None,
            grad_norms=told.norm if return_grad_norms else None,
            aux=jax.tree.map(without_axis, told.aux) if keep_batch_dim else told.aux,
        )
        return (grads, aux) if keeps else grads

    parts = len(jax.tree.leaves(l2_clip_norm))
    unit = math.sqrt(parts) / normalize_by
    bound = unit if rescale_to_unit_norm else clip().sensitivity()
    return clipping.BoundedSensitivityCallable(call, bound, keeps)


def as_tuple(positions: int | Sequence[int]) -> tuple[int, ...]:
    return (positions,) if isinstance(positions, int) else tuple(positions)


def divided(limit: Any, grads: Any) -> Any:
    return jax.tree.map(lambda g: (g / limit).astype(g.dtype), grads)


def without_axis(x: jax.Array) -> jax.Array:
    """Drop the axis of an example's batch of one."""
    return jnp.squeeze(x, 1) if x.ndim > 1 and x.shape[1] == 1 else x
