"""Quantile clipping: a limit that tracks a quantile of the norms."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike

from optaxclip import norms, responses, scopes
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.norms import Norm, as_norm
from optaxclip.thresholds import Limit, TrackedQuantile, as_threshold


def quantile_clip(
    quantile: ArrayLike = 0.5,
    *,
    init_norm: Limit = 0.1,
    learning_rate: ArrayLike = 0.2,
    ord: float | Norm = norms.l2,
    axis_name: AxisName = None,
    name: str = "quantile_clip",
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink the whole update to a running estimate of a quantile of its norms.

    $$
    u \leftarrow u \cdot \min(1, c_t / \lVert u_t \rVert), \qquad
    c_{t+1} = c_t e^{-\eta (b_t - \gamma)}, \qquad
    b_t = 1 \text{ if } \lVert u_t \rVert \le c_t, \text{ else } 0
    $$

    Args:
      quantile: the share of steps that should not be clipped, $\gamma$ from 0 to 1.
      init_norm: the first limit, $c_0$ >= 0: a number, an array, or a schedule or
        threshold that the factor learned so far multiplies.
      learning_rate: how fast the limit moves, η >= 0: from step to step it grows or
        shrinks by a factor of at most $e^{\eta}$.
      ord: the order of the norm, at least 1 and possibly infinite, or a norm.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `quantile` is not from 0 to 1, `init_norm` or `learning_rate`
        is negative or NaN, or `ord` is below 1.

    Examples:
      >>> clip = optaxclip.quantile_clip(0.9, init_norm=1.0)
      >>> state = clip.init(jnp.zeros(1))
      >>> for norm in 3.0, 3.0:
      ...     updates, state = clip.update(jnp.array([norm]), state)
      >>> updates
      Array([1.1972], dtype=float32)

    Note:
      The paper counts how many clients of a round are below the limit, and adds noise
      for privacy. This is its update for one norm per step and without noise, so it
      provides no privacy. The defaults are the paper's.

    References:
      Andrew et al., Differentially private learning with adaptive clipping, 2021,
      arXiv:1905.03871.
    """
    start = as_threshold(init_norm, "init_norm")
    return clipper(
        scopes.whole(axis_name=axis_name),
        as_norm(ord),
        TrackedQuantile(start, quantile, learning_rate),
        responses.shrink,
        name=name,
    )
