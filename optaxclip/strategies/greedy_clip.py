"""Greedy clipping: a limit that grows while the loss falls."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike

from optaxclip import norms, responses, scopes
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.norms import Norm, as_norm
from optaxclip.thresholds import Greedy, Limit, as_threshold


def greedy_clip(
    init_norm: Limit,
    *,
    growth: ArrayLike = 1.05,
    backoff: ArrayLike = 0.95,
    decay: ArrayLike = 0.9,
    ord: float | Norm = norms.l2,
    axis_name: AxisName = None,
    name: str = "greedy_clip",
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink the whole update to a limit that grows while the loss falls.

    $$
    u \leftarrow u \cdot \min(1, c_t / \lVert u_t \rVert), \qquad
    c_t = c_{t-1} \cdot \begin{cases}
    g & \text{if } \ell_t < \bar\ell_{t-1} \\
    b & \text{if } \ell_t > \bar\ell_{t-1}
    \end{cases}
    $$

    Needs the loss: ``update(updates, state, params, value=loss)``. It is compared with
    the moving average of past losses, since those of single batches are noisy.

    Args:
      init_norm: the limit of the first step, $c_0$ >= 0: a number, an array, or a
        schedule or threshold that the factor learned so far multiplies.
      growth: by what the limit is multiplied where the loss fell, g >= 1.
      backoff: by what it is multiplied where the loss rose, b from 0 to 1. Below 1 / g
        the limit shrinks while the loss only fluctuates.
      decay: the weight of the past in the average of losses, at least 0 and below 1;
        0 compares with the last loss.
      ord: the order of the norm, at least 1 and maybe infinity, or a norm.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``; the
        loss must be the same on all devices along them.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `init_norm` is negative or NaN, `growth` below 1, `backoff` not
        from 0 to 1, `decay` not at least 0 and below 1, or `ord` below 1; in the
        update, if there is no ``value``.

    Examples:
      >>> clip = optaxclip.greedy_clip(1.0, growth=2.0, backoff=0.5)
      >>> state = clip.init(jnp.zeros(1))
      >>> for loss in 9.0, 8.0, 7.0, 20.0:
      ...     updates, state = clip.update(jnp.array([100.0]), state, value=loss)
      ...     print(updates)
      [1.]
      [2.]
      [4.]
      [2.]

    Note:
      This method is the library's own. A step whose loss or norm is not finite does not
      change the limit.
    """
    start = as_threshold(init_norm, "init_norm")
    return clipper(
        scopes.whole(axis_name=axis_name),
        as_norm(ord),
        Greedy(start, growth, backoff, decay),
        responses.shrink,
        name=name,
    )
