"""Clipping whose factor has a lower bound, so that training cannot stall."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike

from optaxclip import norms, responses, scopes
from optaxclip.arguments import check_between
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.norms import Norm, as_norm
from optaxclip.thresholds import Limit, Maximum, OwnShare, as_threshold


def delta_clip(
    max_norm: Limit,
    min_factor: ArrayLike,
    *,
    ord: float | Norm = norms.l2,
    axis_name: AxisName = None,
    name: str = "delta_clip",
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink the whole update to a given norm, but never by a factor below δ.

    $$
    u \leftarrow u \cdot
    \min\left(1, \max\left(\delta, c / \lVert u \rVert_p\right)\right)
    $$

    Known as δ-GClip, or regularized clipping. However large a gradient is, the share δ
    of it remains, so the norm of the result is not bounded.

    Args:
      max_norm: the norm c >= 0 above which updates are shrunk: a number, an array, a
        schedule of the clipper's own step, or a threshold.
      min_factor: the smallest factor, δ, from 0 to 1; with 0 this is
        `clip_global_norm`.
      ord: the order p of the norm, at least 1 and possibly infinite, or a norm.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases. Here a limit of 0
      leaves the share δ.

    Raises:
      TypeError: if `max_norm`, `min_factor` or `ord` has the wrong type.
      ValueError: if `max_norm` is negative or NaN, `min_factor` is not between 0
        and 1, or `ord` is below 1.

    Examples:
      >>> clip = optaxclip.delta_clip(1.0, 0.1)
      >>> for size in 1.0, 10.0:
      ...     updates = size * jnp.array([3.0, 4.0])
      ...     print(clip.update(updates, clip.init(updates))[0])
      [0.6 0.8]
      [3. 4.]

    References:
      Tucat et al., Regularized gradient clipping provably trains wide and deep neural
      networks, 2024, arXiv:2404.08624.
    """
    check_between(min_factor, 0, 1, "min_factor")
    return clipper(
        scopes.whole(axis_name=axis_name),
        as_norm(ord),
        Maximum(as_threshold(max_norm, "max_norm"), OwnShare(min_factor)),
        responses.shrink,
        name=name,
    )
