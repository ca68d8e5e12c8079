"""Limits on the norm of the whole tree, of groups, of tensors and of units."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import optax
from jaxtyping import PyTree

from optaxclip import norms, responses, scopes
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.norms import Norm, as_norm
from optaxclip.thresholds import Limit, as_threshold


def clip_global_norm(
    max_norm: Limit,
    *,
    ord: float | Norm = norms.l2,
    axis_name: AxisName = None,
    name: str = "clip_global_norm",
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink the whole update so that its norm is at most `max_norm`.

    $$u \leftarrow u \cdot \min(1, c / \lVert u \rVert_p)$$

    Inside ``optax.masked`` and ``optax.partition`` the clipper only sees the leaves
    passed to it; place it outside to measure all parameters together.

    Args:
      max_norm: the largest norm allowed, c >= 0: a number, an array, a schedule of
        the clipper's own step, or a threshold.
      ord: the order p of the norm, at least 1 and possibly infinite, or a norm.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if `max_norm` or `ord` has the wrong type.
      ValueError: if `max_norm` is negative or NaN, or `ord` below 1.

    Examples:
      >>> clip = optaxclip.clip_global_norm(1.0)
      >>> updates, _ = clip.update(jnp.array([3.0, 4.0]), clip.init(jnp.zeros(2)))
      >>> updates
      Array([0.6, 0.8], dtype=float32)

    References:
      Pascanu et al., On the difficulty of training recurrent neural networks, 2013,
      arXiv:1211.5063.
    """
    return clipper(
        scopes.whole(axis_name=axis_name),
        as_norm(ord),
        as_threshold(max_norm, "max_norm"),
        responses.shrink,
        name=name,
    )


def clip_tensor_norm(
    max_norm: Limit,
    *,
    ord: float | Norm = norms.l2,
    leading_axes: PyTree[int] | None = None,
    axis_name: AxisName = None,
    name: str = "clip_tensor_norm",
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink each leaf so that its own norm is at most `max_norm`.

    $$u_t \leftarrow u_t \cdot \min(1, c / \lVert u_t \rVert_p)$$

    This is ``clipnorm`` in Keras.

    Args:
      max_norm: the largest norm allowed, c >= 0: a number, an array, a schedule of
        the clipper's own step, a prefix tree of these, or a threshold.
      ord: the order p of the norm, at least 1 and possibly infinite, or a norm.
      leading_axes: the number of leading dimensions that stack separate tensors,
        such as scanned layers: an int or a prefix tree of ints; 0 by default.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if `max_norm` or `ord` has the wrong type.
      ValueError: if `max_norm` is negative or NaN, or `ord` below 1, or a leaf has
        fewer dimensions than `leading_axes`.

    Examples:
      >>> clip = optaxclip.clip_tensor_norm({"w": 1.0, "b": jnp.inf})
      >>> updates = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([3.0])}
      >>> updates, _ = clip.update(updates, clip.init(updates))
      >>> updates["w"], updates["b"]
      (Array([0.6, 0.8], dtype=float32), Array([3.], dtype=float32))
    """
    return clipper(
        scopes.tensor(leading_axes=leading_axes, axis_name=axis_name),
        as_norm(ord),
        as_threshold(max_norm, "max_norm"),
        responses.shrink,
        name=name,
    )


def clip_tensor_rms(
    max_rms: Limit,
    *,
    leading_axes: PyTree[int] | None = None,
    axis_name: AxisName = None,
    name: str = "clip_tensor_rms",
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink each leaf so that its root mean square is at most `max_rms`.

    $$u_t \leftarrow u_t / \max(1, \mathrm{RMS}(u_t) / d)$$

    Args:
      max_rms: the largest root mean square allowed, d >= 0: a number, an array, a
        schedule of the clipper's own step, a prefix tree of these, or a threshold.
      leading_axes: as in `clip_tensor_norm`.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if `max_rms` has the wrong type.
      ValueError: if `max_rms` is negative or NaN, or a leaf has fewer dimensions
        than `leading_axes`.

    Examples:
      >>> clip = optaxclip.clip_tensor_rms(1.0)
      >>> updates, _ = clip.update(jnp.full(4, 3.0), clip.init(jnp.zeros(4)))
      >>> updates
      Array([1., 1., 1., 1.], dtype=float32)

    References:
      Shazeer and Stern, Adafactor: adaptive learning rates with sublinear memory
      cost, 2018, arXiv:1804.04235, section 6.
    """
    return clipper(
        scopes.tensor(leading_axes=leading_axes, axis_name=axis_name),
        norms.rms,
        as_threshold(max_rms, "max_rms"),
        responses.shrink,
        name=name,
    )


def clip_unit_norm(
    max_norm: Limit,
    *,
    ord: float | Norm = norms.l2,
    axis: Any = None,
    axis_name: AxisName = None,
    name: str = "clip_unit_norm",
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink the update of each output unit so that its norm is at most `max_norm`.

    $$u_j \leftarrow u_j \cdot \min(1, c / \lVert u_j \rVert_p)$$

    Args:
      max_norm: as in `clip_tensor_norm`.
      ord: the order p of the norm, at least 1 and possibly infinite, or a norm.
      axis: the dimensions that are measured together: an int, a tuple, or a prefix
        tree of these; all but the last by default, since JAX stores kernels
        as ``(..., inputs, outputs)``. Scalars and vectors are always measured whole.
      axis_name: mesh axes over which the measured dimensions are sharded inside
        ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if `max_norm` or `ord` has the wrong type.
      ValueError: if `max_norm` is negative or NaN, or `ord` below 1, or a leaf has
        no dimension `axis`.

    Examples:
      >>> clip = optaxclip.clip_unit_norm(1.0)
      >>> updates = jnp.array([[3.0, 0.3], [4.0, 0.4]])
      >>> updates, _ = clip.update(updates, clip.init(updates))
      >>> updates
      Array([[0.6, 0.3],
             [0.8, 0.4]], dtype=float32)
    """
    return clipper(
        scopes.unit(axis=axis, axis_name=axis_name),
        as_norm(ord),
        as_threshold(max_norm, "max_norm"),
        responses.shrink,
        name=name,
    )


def clip_group_norm(
    max_norm: Limit,
    labels: PyTree[Hashable] | Callable[[PyTree], PyTree[Hashable]],
    *,
    ord: float | Norm = norms.l2,
    axis_name: AxisName = None,
    name: str = "clip_group_norm",
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink each labeled group of leaves so that its norm is at most its limit.

    $$u_g \leftarrow u_g \cdot \min(1, c_g / \lVert u_g \rVert_p)$$

    A huge gradient in one group does not shrink the others.

    Args:
      max_norm: the largest norm allowed in each group, c_g >= 0: a dict from labels
        to numbers, arrays or schedules, one of these for all groups, or a threshold.
      labels: a prefix tree of labels, or a function from the updates to one, as in
        ``optax.partition``.
      ord: the order p of the norm, at least 1 and possibly infinite, or a norm.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases. Its report has one
      entry per group, sorted by label.

    Raises:
      TypeError: if `max_norm` or `ord` has the wrong type.
      ValueError: if a limit is negative, NaN or missing, or `ord` is below 1.

    Examples:
      >>> clip = optaxclip.clip_group_norm(
      ...     {"head": 1.0, "body": 10.0}, {"w": "body", "b": "body", "out": "head"}
      ... )
      >>> updates = {"w": jnp.ones(2), "b": jnp.ones(1), "out": jnp.array([3.0, 4.0])}
      >>> updates, _ = clip.update(updates, clip.init(updates))
      >>> updates["w"], updates["out"]
      (Array([1., 1.], dtype=float32), Array([0.6, 0.8], dtype=float32))
    """
    return clipper(
        scopes.groups(labels, axis_name=axis_name),
        as_norm(ord),
        as_threshold(max_norm, "max_norm"),
        responses.shrink,
        name=name,
    )
