"""ZClip: clip norms that are many standard deviations above their mean."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike

from optaxclip import norms, responses, scopes, thresholds
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.norms import Norm, as_norm
from optaxclip.thresholds import Limit, Minimum, Spike, ZScore, as_threshold


def zclip(
    z_threshold: ArrayLike = 2.5,
    *,
    spike: Spike = thresholds.adaptive_scaling,
    max_norm: Limit | None = None,
    decay: ArrayLike = 0.97,
    warmup_steps: ArrayLike = 25,
    skip_update_on_spike: bool = False,
    eps: ArrayLike = 1e-6,
    ord: float | Norm = norms.l2,
    axis_name: AxisName = None,
    name: str = "zclip",
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink the whole update if its norm is a spike relative to recent norms.

    $$
    z_t = \frac{\lVert u_t \rVert - \mu_t}{\sigma_t + \epsilon}, \qquad
    u \leftarrow u \cdot \frac{c_t}{\lVert u_t \rVert} \text{ if } z_t > z_{\max},
    \qquad c_t = \mu_t + \frac{z_{\max}^2}{z_t} \sigma_t
    $$

    The larger the spike, the closer to the mean its norm becomes. The mean and standard
    deviation are moving averages, initialized from the first `warmup_steps` norms and
    updated with the limit in place of a spike; see `optaxclip.thresholds.ZScore`.

    Args:
      z_threshold: the largest z-score allowed, $z_{\max}$ >= 0.
      spike: what the norm of a spike becomes: `thresholds.adaptive_scaling`, as above;
        `thresholds.to_mean`, $\mu_t$; or `thresholds.to_percentile`,
        $\mu_t + z_{\max} \sigma_t$.
      max_norm: a bound on the norm of every step, including the warm-up: a number, an
        array, a schedule of the clipper's own step, or a threshold; no bound if None.
      decay: the decay of mean and variance, at least 0 and below 1.
      warmup_steps: the number of finite norms before the first limit, at least 1.
      skip_update_on_spike: whether spikes are left out of mean and variance.
      eps: ε >= 0, in the unit of the norm; norms far below it are never spikes.
      ord: the order of the norm, at least 1 and possibly infinite, or a norm.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `z_threshold`, `max_norm` or `eps` is negative or NaN, `decay` is
        not at least 0 and below 1, or `warmup_steps` or `ord` is below 1.

    Examples:
      >>> clip = optaxclip.zclip(warmup_steps=4)
      >>> state = clip.init(jnp.zeros(1))
      >>> for norm in 0.9, 1.1, 0.9, 1.1, 2.0:
      ...     updates, state = clip.update(jnp.array([norm]), state)
      >>> updates
      Array([1.0625], dtype=float32)

    Note:
      In the authors' code `max_norm` is 1, which makes the rest irrelevant if norms are
      usually larger; here there is no bound by default. Their `mode` and `clip_option`
      correspond to the three values of `spike`. Their `clip_factor` is left out: their
      documentation scales the deviations by it, their code the whole limit. As in their
      code, the averages are not bounded by `max_norm`, and the variance is updated with
      the new mean. A norm that is not finite, after which their code never clips again,
      has no effect on later steps here.

    References:
      Kumar et al., ZClip: adaptive spike mitigation for LLM pre-training, 2025,
      arXiv:2504.02507.
    """
    threshold = ZScore(
        z_threshold, spike, decay, warmup_steps, skip_update_on_spike, eps
    )
    bounded = (
        threshold
        if max_norm is None
        else Minimum(threshold, as_threshold(max_norm, "max_norm"))
    )
    return clipper(
        scopes.whole(axis_name=axis_name),
        as_norm(ord),
        bounded,
        responses.shrink,
        name=name,
    )
