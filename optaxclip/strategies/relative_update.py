"""Scale updates, up or down, relative to the norm of the parameters."""

from __future__ import annotations

import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from optaxclip import norms, responses, scopes
from optaxclip.arguments import check_nonnegative
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.norms import Norm, as_norm
from optaxclip.reports import LengthState, marked
from optaxclip.thresholds import Limit, Share, as_threshold


def relative_update(
    ratio: Limit = 1.0,
    *,
    floor: ArrayLike = 0.0,
    ord: float | Norm = norms.l2,
    leading_axes: PyTree[int] | None = None,
    axis_name: AxisName = None,
    name: str = "relative_update",
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each tensor's update to a share of the tensor's own norm.

    $$
    u_t \leftarrow r\, u_t
    \frac{\max(\lVert w_t \rVert_p, \epsilon)}{\lVert u_t \rVert_p}
    $$

    Small updates are scaled up, so a learning rate that follows is the relative change
    of every tensor per step. Place it after the transformations that determine the
    direction, and before the learning rate. Needs ``params``. `clip_trust_ratio` only
    shrinks.

    Args:
      ratio: the share r >= 0: a number, an array, a schedule of the clipper's own
        step, a prefix tree of these, or a threshold.
      floor: the norm ε >= 0 that tensors with smaller parameters are taken to have.
        With 0, a tensor of zeros stays zero forever.
      ord: the order p of the norm, at least 1 and possibly infinite, or a norm.
      leading_axes: the number of leading dimensions that stack separate tensors,
        such as scanned layers or experts: an int or a prefix tree of ints; 0 by
        default.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if `ratio`, `floor` or `ord` has the wrong type.
      ValueError: if `ratio` or `floor` is negative or NaN, `ord` is below 1, or a leaf
        has fewer dimensions than `leading_axes`; in the update, if ``params`` do not
        fit.

    Examples:
      >>> momentum = optax.chain(
      ...     optax.trace(0.9),
      ...     optaxclip.relative_update(),
      ...     optax.scale_by_learning_rate(0.01),
      ... )
      >>> params = jnp.array([30.0, 40.0])
      >>> updates, _ = momentum.update(jnp.ones(2), momentum.init(params), params)
      >>> optaxclip.tree_norm(updates)  # a hundredth of 50
      Array(0.5, dtype=float32)

    Note:
      This is the trust ratio of LARS, and NeMo's hook of the same name. These add a
      small number to norms or bound them from below; here zero updates stay zeros
      without that.

    References:
      You et al., Large batch training of convolutional networks, 2017,
      arXiv:1708.03888.
    """
    check_nonnegative(floor, "floor")
    clip = clipper(
        scopes.tensor(leading_axes=leading_axes, axis_name=axis_name),
        as_norm(ord),
        Share(as_threshold(ratio, "ratio"), floor),
        responses.normalize,
        name=name,
    )
    return marked(clip, LengthState)
