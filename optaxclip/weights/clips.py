"""Bounds on the values and norms of parameters."""

from __future__ import annotations

from typing import Any

import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from optaxclip import norms, responses, scopes
from optaxclip.arguments import check_order, is_real
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.norms import Norm, as_norm
from optaxclip.scopes import Scope
from optaxclip.thresholds import (
    Limit,
    Maximum,
    Minimum,
    OwnShare,
    as_threshold,
)
from optaxclip.thresholds.constant import as_interval
from optaxclip.weights.bounds import bound_weights


def clip_weights(
    max_value: Limit,
    *,
    min_value: ArrayLike | optax.Schedule | None = None,
    axis_name: AxisName = None,
    name: str = "clip_weights",
) -> optax.GradientTransformationExtraArgs:
    r"""Keep every parameter in an interval around zero.

    $$w_i \leftarrow \min(\max(w_i, a), c)$$

    Place it last in a chain: it returns the update after which the parameters are
    exactly within the interval, in their own dtype. Needs ``params``.

    Args:
      max_value: the largest value allowed, c >= 0: a number, an array, a schedule of
        the clipper's own step or a threshold, or a prefix tree of the first three.
      min_value: the smallest value allowed, a <= 0; -c by default.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``; the
        report needs it.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases. These and the report
      are those of the parameters.

    Raises:
      TypeError: if `max_value` has the wrong type.
      ValueError: if `max_value` is negative or NaN, or `min_value` positive or NaN; in
        the update, if ``params`` do not match the updates.

    Examples:
      >>> critic = optax.chain(optax.rmsprop(5e-5), optaxclip.clip_weights(0.25))
      >>> params = jnp.array([0.75, -0.125])
      >>> updates, _ = critic.update(jnp.zeros(2), critic.init(params), params)
      >>> optax.apply_updates(params, updates)
      Array([ 0.25 , -0.125], dtype=float32)

    References:
      Arjovsky et al., Wasserstein GAN, 2017, arXiv:1701.07875.

    Note:
      If updates have a narrower dtype than their parameters, such as bfloat16 for
      float32, a parameter far outside the interval may need a second step to enter it,
      since no update with so few digits leads there. A parameter inside never leaves.
      If both have the same narrow dtype, a parameter far outside may become 0 instead,
      such as a float16 of 6e4 with a limit of 1: the bound holds at once.
    """
    return bound_weights(
        clipper(
            scopes.element(axis_name=axis_name),
            norms.linf,
            as_interval(max_value, min_value),
            responses.clamp,
            name=name,
        ),
        name=name,
    )


def _bound_norms(
    scope: Scope,
    ord: float | Norm,
    max_norm: Limit,
    min_norm: Limit | None,
    name: str,
) -> optax.GradientTransformationExtraArgs:
    """Bound the norms of the parameters from above, and from below if asked to."""
    threshold, response = as_threshold(max_norm, "max_norm"), responses.shrink
    if min_norm is not None:
        lowest = as_threshold(min_norm, "min_norm")
        if is_real(min_norm) and is_real(max_norm):
            check_order(min_norm, max_norm, ("min_norm", "max_norm"))
        # The norm in the band that is nearest to a group's own, which it is scaled to.
        threshold = Minimum(threshold, Maximum(lowest, OwnShare(1.0)))
        response = responses.normalize
    clip = clipper(scope, as_norm(ord), threshold, response, name=name)
    return bound_weights(clip, name=name)


def clip_weight_norm(
    max_norm: Limit,
    *,
    min_norm: Limit | None = None,
    ord: float | Norm = norms.l2,
    leading_axes: PyTree[int] | None = None,
    axis_name: AxisName = None,
    name: str = "clip_weight_norm",
) -> optax.GradientTransformationExtraArgs:
    r"""Keep the norm of every tensor below a bound.

    $$w_t \leftarrow w_t \cdot \min(1, c / \lVert w_t \rVert)$$

    With `min_norm`, tensors with a smaller norm are scaled up to it. Place it last in a
    chain. Needs ``params``.

    Args:
      max_norm: the largest norm allowed, c >= 0: a number, an array, a schedule of
        the clipper's own step, a prefix tree of these, or a threshold.
      min_norm: the smallest norm allowed, up to one rounding, given like `max_norm`,
        which takes precedence; no lower bound if not given. Zeros stay zeros.
      ord: the order of the norm, at least 1 and maybe infinity, or a norm.
      leading_axes: how many leading dimensions stack tensors that are measured
        alone, such as scanned layers: an int or a prefix tree of ints; none if not
        given.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases. These and the report
      are those of the parameters.

    Raises:
      TypeError: if `max_norm`, `min_norm` or `ord` has the wrong type.
      ValueError: if `max_norm` or `min_norm` is negative or NaN, `min_norm` is above
        `max_norm`, `ord` below 1, or a leaf has fewer dimensions than `leading_axes`;
        in the update, if ``params`` do not fit.

    Examples:
      >>> sgd = optax.chain(optax.sgd(0.1), optaxclip.clip_weight_norm(5.0))
      >>> params = jnp.array([6.0, 8.0])
      >>> updates, _ = sgd.update(jnp.zeros(2), sgd.init(params), params)
      >>> optax.apply_updates(params, updates)
      Array([3., 4.], dtype=float32)
    """
    scope = scopes.tensor(leading_axes=leading_axes, axis_name=axis_name)
    return _bound_norms(scope, ord, max_norm, min_norm, name)


def clip_weight_unit_norm(
    max_norm: Limit,
    *,
    min_norm: Limit | None = None,
    ord: float | Norm = norms.l2,
    axis: Any = None,
    axis_name: AxisName = None,
    name: str = "clip_weight_unit_norm",
) -> optax.GradientTransformationExtraArgs:
    r"""Keep the norm of the weights that feed each unit below a bound.

    $$w_j \leftarrow w_j \cdot \min(1, c / \lVert w_j \rVert)$$

    This is the max-norm constraint. With `min_norm`, units with a smaller norm are
    scaled up to it. Place it last in a chain. Needs ``params``.

    Args:
      max_norm: the largest norm allowed, c >= 0: a number, an array, a schedule of
        the clipper's own step, a prefix tree of these, or a threshold.
      min_norm: the smallest norm allowed, up to one rounding, given like `max_norm`,
        which takes precedence; no lower bound if not given. Zeros stay zeros.
      ord: the order of the norm, at least 1 and maybe infinity, or a norm.
      axis: the dimensions that are measured together: an int, a tuple, or a prefix
        tree of these; all but the last if not given, as JAX keeps kernels
        input-first. Scalars and vectors are always measured whole.
      axis_name: mesh axes over which the measured dimensions are sharded inside
        ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases. These and the report
      are those of the parameters.

    Raises:
      TypeError: if `max_norm`, `min_norm` or `ord` has the wrong type.
      ValueError: if `max_norm` or `min_norm` is negative or NaN, `min_norm` is above
        `max_norm`, `ord` below 1, or a leaf has no dimension `axis`; in the update, if
        ``params`` do not fit the updates.

    Examples:
      >>> sgd = optax.chain(optax.sgd(0.1), optaxclip.clip_weight_unit_norm(5.0))
      >>> params = jnp.array([[6.0, 0.3], [8.0, 0.4]])
      >>> updates, _ = sgd.update(jnp.zeros((2, 2)), sgd.init(params), params)
      >>> optax.apply_updates(params, updates)
      Array([[3. , 0.3],
             [4. , 0.4]], dtype=float32)

    References:
      Srivastava et al., Dropout: a simple way to prevent neural networks from
      overfitting, JMLR 15, 2014, section 5.1.

    Note:
      ``MaxNorm`` in Keras adds 1e-7 to the norm that it divides by, which also shrinks
      parameters within the bound; no such guard is needed here.
    """
    scope = scopes.unit(axis=axis, axis_name=axis_name)
    return _bound_norms(scope, as_norm(ord), max_norm, min_norm, name)
