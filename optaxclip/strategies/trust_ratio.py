"""The trust ratio of LARS and LAMB, used as a clip."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from optaxclip import norms, responses, scopes
from optaxclip.arguments import check_nonnegative
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.thresholds import Limit, Share, as_threshold


def clip_trust_ratio(
    max_ratio: Limit,
    *,
    floor: ArrayLike = 1e-3,
    leading_axes: PyTree[int] | None = None,
    axis_name: AxisName = None,
    name: str = "clip_trust_ratio",
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
      max_ratio: the largest ratio r >= 0 of a step to its tensor, of which LARC's code
        has 0.02: a number, an array, a schedule of the clipper's own step, a prefix
        tree of these, or a threshold.
      floor: the norm ε >= 0 that tensors with smaller parameters are taken to have, so
        that parameters which start at zero can leave it.
      leading_axes: how many leading dimensions stack tensors that are measured
        alone, such as scanned layers: an int or a prefix tree of ints; none if not
        given.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if `max_ratio` or `floor` has the wrong type.
      ValueError: if `max_ratio` or `floor` is negative or NaN, or a leaf has fewer
        dimensions than `leading_axes`; in the update, if ``params`` do not fit.

    Examples:
      >>> clip = optaxclip.clip_trust_ratio(0.1)
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, _ = clip.update(-params, clip.init(params), params)
      >>> updates
      Array([-0.3, -0.4], dtype=float32)

    Note:
      LARC leaves a tensor whose parameters are all zero alone, and holds it to a share
      of next to nothing one step later; `floor` is one rule for both. Its code adds the
      weight decay to the gradient's norm: here that is in the update already.

    References:
      You et al., Large batch training of convolutional networks, 2017,
      arXiv:1708.03888.
    """
    check_nonnegative(floor, "floor")
    return clipper(
        scopes.tensor(leading_axes=leading_axes, axis_name=axis_name),
        norms.l2,
        Share(as_threshold(max_ratio, "max_ratio"), floor),
        responses.shrink,
        name=name,
    )
