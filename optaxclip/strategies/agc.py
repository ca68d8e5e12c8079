"""AGC: adaptive gradient clipping, from networks without normalization."""

from __future__ import annotations

from typing import Any

import optax
from jax.typing import ArrayLike

from optaxclip import norms, responses, scopes
from optaxclip.arguments import check_nonnegative
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.thresholds import Limit, Share, as_threshold


def agc(
    clipping: Limit = 0.01,
    *,
    floor: ArrayLike = 1e-3,
    axis: Any = None,
    axis_name: AxisName = None,
    name: str = "agc",
) -> optax.GradientTransformationExtraArgs:
    r"""Limit the norm of each unit's update relative to that of its parameters.

    $$
    G_j \leftarrow G_j \cdot \min\left(1,
    \lambda \frac{\max(\lVert W_j \rVert, \epsilon)}{\lVert G_j \rVert}\right)
    $$

    Needs ``params``. The paper does not clip the last linear layer: use
    ``optax.masked`` to do the same.

    Args:
      clipping: the share λ >= 0: a number, an array, a schedule of the clipper's own
        step, or a threshold. The paper's 0.01 is for batches of 4096; smaller
        batches want more.
      floor: the norm ε >= 0 that units with smaller parameters are taken to have, so
        that parameters which start at zero can leave it.
      axis: the dimensions that are measured together: an int, a tuple, or a prefix
        tree of these; all but the last by default, since JAX stores kernels
        as ``(..., inputs, outputs)``. Scalars and vectors are always measured whole.
      axis_name: mesh axes over which the measured dimensions are sharded inside
        ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if `clipping` or `floor` has the wrong type.
      ValueError: if `clipping` or `floor` is negative or NaN, or a leaf has no
        dimension `axis`; in the update, if ``params`` do not fit the updates.

    Examples:
      >>> clip = optaxclip.agc(0.1)
      >>> params = jnp.array([[3.0, 0.0], [4.0, 0.0]])
      >>> state = clip.init(params)
      >>> updates, _ = clip.update(jnp.array([[3.0, 0.0], [4.0, 1.0]]), state, params)
      >>> updates
      Array([[3.e-01, 0.e+00],
             [4.e-01, 1.e-04]], dtype=float32)

    Note:
      The authors' code measures a kernel of shape (1, n) as a whole and does not
      support kernels of rank 5; here every kernel has one unit per entry of its last
      dimension. Optax measures kernels of rank 3 along their first dimension only;
      here ``axis=0`` does that. No guard against division by zero is needed.

    References:
      Brock et al., High-performance large-scale image recognition without
      normalization, 2021, arXiv:2102.06171.
    """
    check_nonnegative(floor, "floor")
    return clipper(
        scopes.unit(axis=axis, axis_name=axis_name),
        norms.l2,
        Share(as_threshold(clipping, "clipping"), floor),
        responses.shrink,
        name=name,
    )
