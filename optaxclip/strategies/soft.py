"""Smooth clipping: magnitudes that saturate at a limit."""

from __future__ import annotations

import optax

from optaxclip import norms, responses, scopes
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.norms import Norm, as_norm
from optaxclip.responses import Curve
from optaxclip.thresholds import Limit, as_threshold


def soft_clip_value(
    max_value: Limit,
    *,
    curve: Curve = responses.tanh,
    axis_name: AxisName = None,
    name: str = "soft_clip_value",
) -> optax.GradientTransformationExtraArgs:
    r"""Saturate every number smoothly at a bound.

    $$u_i \leftarrow c\, \varphi(|u_i| / c)\, u_i / |u_i|$$

    Args:
      max_value: the bound c >= 0: a number, an array, a schedule of the clipper's
        own step or a threshold, or a prefix tree of the first three.
      curve: $\varphi$: `responses.tanh`, `responses.arctan`,
        `responses.algebraic`, or the Huber-like `responses.pseudo_huber`.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``; the
        report needs it.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if `max_value` or `curve` has the wrong type.
      ValueError: if `max_value` is negative or NaN.

    Examples:
      >>> clip = optaxclip.soft_clip_value(1.0, curve=optaxclip.responses.algebraic)
      >>> updates, _ = clip.update(jnp.array([-1.0, 3.0]), clip.init(jnp.zeros(2)))
      >>> updates
      Array([-0.5 ,  0.75], dtype=float32)
    """
    return clipper(
        scopes.element(axis_name=axis_name),
        norms.linf,
        as_threshold(max_value, "max_value"),
        responses.soften(curve),
        name=name,
    )


def soft_clip_global_norm(
    max_norm: Limit,
    *,
    curve: Curve = responses.tanh,
    ord: float | Norm = norms.l2,
    axis_name: AxisName = None,
    name: str = "soft_clip_global_norm",
) -> optax.GradientTransformationExtraArgs:
    r"""Saturate the norm of the whole update smoothly at a bound.

    $$u \leftarrow c\, \varphi(\lVert u \rVert_p / c)\, u / \lVert u \rVert_p$$

    Args:
      max_norm: the bound c >= 0: a number, an array, a schedule of the clipper's own
        step, or a threshold.
      curve: $\varphi$: `responses.tanh`, `responses.arctan`,
        `responses.algebraic`, or the Huber-like `responses.pseudo_huber`.
      ord: the order p of the norm, at least 1 and possibly infinite, or a norm.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if `max_norm`, `curve` or `ord` has the wrong type.
      ValueError: if `max_norm` is negative or NaN, or `ord` below 1.

    Examples:
      >>> curve = optaxclip.responses.algebraic
      >>> clip = optaxclip.soft_clip_global_norm(5.0, curve=curve)
      >>> updates, _ = clip.update(jnp.array([3.0, 4.0]), clip.init(jnp.zeros(2)))
      >>> updates
      Array([1.5, 2. ], dtype=float32)
    """
    return clipper(
        scopes.whole(axis_name=axis_name),
        as_norm(ord),
        as_threshold(max_norm, "max_norm"),
        responses.soften(curve),
        name=name,
    )
