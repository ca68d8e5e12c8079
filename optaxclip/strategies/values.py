"""Clipping of single numbers."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike

from optaxclip import norms, responses, scopes
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.thresholds import Limit, PerRootSize, as_threshold
from optaxclip.thresholds.constant import as_interval


def clip_value(
    max_value: Limit,
    *,
    min_value: ArrayLike | optax.Schedule | None = None,
    axis_name: AxisName = None,
    name: str = "clip_value",
) -> optax.GradientTransformationExtraArgs:
    r"""Clip every number to an interval around zero.

    $$u_i \leftarrow \min(\max(u_i, a), c)$$

    Complex numbers are clipped to the modulus c and keep their phase.

    Args:
      max_value: the largest value allowed, c >= 0: a number, an array, a schedule of
        the clipper's own step or a threshold, or a prefix tree of the first three.
      min_value: the smallest value allowed, a <= 0; -c by default.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``; the
        report needs it.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      ValueError: if `max_value` is negative or NaN, or `min_value` positive or NaN.

    Examples:
      >>> clip = optaxclip.clip_value(1.0)
      >>> updates, _ = clip.update(jnp.array([-3.0, 0.5]), clip.init(jnp.zeros(2)))
      >>> updates
      Array([-1. ,  0.5], dtype=float32)

    References:
      Mikolov, Statistical language models based on neural networks, PhD thesis,
      Brno University of Technology, 2012.
    """
    return clipper(
        scopes.element(axis_name=axis_name),
        norms.linf,
        as_interval(max_value, min_value),
        responses.clamp,
        name=name,
    )


def clip_scaled_value(
    scale: Limit,
    *,
    axis_name: AxisName = None,
    name: str = "clip_scaled_value",
) -> optax.GradientTransformationExtraArgs:
    r"""Clip every number to an interval that shrinks with the size of the model.

    $$u_i \leftarrow \min(\max(u_i, -c / \sqrt n), c / \sqrt n)$$

    where n is the number of parameters. The L2 norm of the clipped updates is at most
    c.

    Args:
      scale: c >= 0: a number, an array, a schedule of the clipper's own step or a
        threshold.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``; n
        counts every shard.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      ValueError: if `scale` is negative or NaN.

    Examples:
      >>> clip = optaxclip.clip_scaled_value(1.0)
      >>> updates, _ = clip.update(jnp.full(4, 3.0), clip.init(jnp.zeros(4)))
      >>> updates
      Array([0.5, 0.5, 0.5, 0.5], dtype=float32)
    """
    return clipper(
        scopes.element(axis_name=axis_name),
        norms.linf,
        PerRootSize(as_threshold(scale, "scale")),
        responses.clamp,
        name=name,
    )
