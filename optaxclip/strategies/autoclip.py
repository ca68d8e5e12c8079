"""AutoClip: limit the norm to a percentile of recent norms."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike

from optaxclip import norms, responses, scopes
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.norms import Norm, as_norm
from optaxclip.thresholds import RollingPercentile


def autoclip(
    percentile: ArrayLike = 10.0,
    *,
    window: int = 1000,
    ord: float | Norm = norms.l2,
    axis_name: AxisName = None,
    name: str = "autoclip",
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink the whole update to a percentile of its recent norms.

    $$
    u \leftarrow u \cdot \min(1, c_t / \lVert u_t \rVert), \qquad
    c_t = \mathrm{percentile}_p(\lVert u_{t-n+1} \rVert, \dots, \lVert u_t \rVert)
    $$

    The window includes the current norm, and the first step is never clipped. A low
    percentile clips nearly every step, so the step length hardly depends on the
    gradient: tune the learning rate together with it.

    Args:
      percentile: p, from 0 to 100; about 100 - p percent of the steps are clipped.
      window: the number of norms remembered, n >= 1; a Python int.
      ord: the order of the norm, at least 1 and possibly infinite, or a norm.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if `percentile` or `ord` has the wrong type, or `window` is traced.
      ValueError: if `percentile` is not from 0 to 100, or `window` or `ord` is below 1.

    Examples:
      >>> clip = optaxclip.autoclip(50.0)
      >>> state = clip.init(jnp.zeros(1))
      >>> for norm in 3.0, 1.0, 100.0, jnp.nan, 4.0:
      ...     updates, state = clip.update(jnp.array([norm]), state)
      >>> updates
      Array([3.5], dtype=float32)

    Note:
      The paper remembers every norm since the start. A window needs a fixed amount of
      memory and forgets the start of training; the two agree up to step n. The
      authors' TensorFlow code keeps 10,000 norms, but clips each tensor, and takes the
      nearest norm instead of interpolating. Norms that are not finite, which would
      make every later percentile NaN, are not remembered.

    References:
      Seetharaman et al., AutoClip: adaptive gradient clipping for source separation
      networks, 2020, arXiv:2007.14469.
    """
    return clipper(
        scopes.whole(axis_name=axis_name),
        as_norm(ord),
        RollingPercentile(percentile, window),
        responses.shrink,
        name=name,
    )
