"""The trust ratio of LARS and LAMB, used as a clip."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from optaxclip import norms, responses, scopes
from optaxclip.arguments import check_limit
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.thresholds import Limit, Share, as_threshold


def clip_trust_ratio(
    max_ratio: Limit,
    *,
    eps: ArrayLike = 1e-3,
    leading_axes: PyTree[int] | None = None,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Limit the norm of each tensor's update relative to that of the tensor.

    $$
    u_t \leftarrow u_t \cdot \min\left(1,
    r \frac{\max(\lVert w_t \rVert, \epsilon)}{\lVert u_t \rVert}\right)
    $$

    This is the trust ratio of LARS and LAMB used as a clip, which never scales up: the
    ``clip`` mode of LARC. Place it last in a chain, after the learning rate, where it
    bounds the step. Needs ``params``.

    Args:
      max_ratio: the largest ratio r >= 0 of a step to its tensor (0.02 in LARC's code):
        a number, an array, a schedule of the clipper's own step, a prefix tree of
        these, or a threshold.
      eps: the smallest parameter norm assumed, ε >= 0, so that parameters that start
        at zero can grow.
      leading_axes: the number of leading dimensions that stack separate tensors,
        such as scanned layers: an int or a prefix tree of ints; 0 by default.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if `max_ratio` or `eps` has the wrong type.
      ValueError: if `max_ratio` or `eps` is negative or NaN, or a leaf has fewer
        dimensions than `leading_axes`; in the update, if ``params`` do not match.

    Examples:
      >>> clip = optaxclip.clip_trust_ratio(0.1)
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, _ = clip.update(-params, clip.init(params), params)
      >>> updates
      Array([-0.3, -0.4], dtype=float32)

    Note:
      LARC does not clip a tensor whose parameters are all zero, and one step later
      limits it to a fraction of almost nothing; `eps` covers both cases. Its code adds
      the weight decay to the gradient's norm; here the update already contains it.

    References:
      You et al., Large batch training of convolutional networks, 2017,
      arXiv:1708.03888.
    """
    check_limit(eps, "eps")
    return clipper(
        scopes.tensor(leading_axes=leading_axes, axis_name=axis_name),
        norms.l2,
        Share(as_threshold(max_ratio, "max_ratio"), eps),
        responses.shrink,
        name="clip_trust_ratio",
    )
