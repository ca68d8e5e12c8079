"""Keep parameters on spheres, of their own norm or of a given one."""

from __future__ import annotations

from typing import Any

import optax
from jaxtyping import PyTree

from optaxclip import norms, responses, scopes
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName, counted, filled
from optaxclip.norms import Norm, as_norm
from optaxclip.reports import LengthState, marked
from optaxclip.thresholds import Limit, Share, as_threshold
from optaxclip.weights.bounds import place_weights


def normalize_weights(
    radius: Limit = 1.0,
    *,
    axis: Any = None,
    ord: float | Norm = norms.l2,
    axis_name: AxisName = None,
    name: str = "normalize_weights",
) -> optax.GradientTransformationExtraArgs:
    r"""Scale the parameters of each unit to a given norm after every step.

    $$w_j \leftarrow R\, \frac{w_j}{\lVert w_j \rVert_p}$$

    Place it last in a chain. Units of zeros stay zeros. Needs ``params``.

    Args:
      radius: the norm R >= 0: a number, an array, a schedule of the clipper's own
        step, a prefix tree of these, or a threshold.
      axis: the dimensions that are measured together: ``axis=0`` for columns and
        ``axis=1`` for rows of a matrix; an int, a tuple, or a prefix tree of these;
        all but the last by default, since JAX stores kernels as
        ``(..., inputs, outputs)``. Scalars and vectors are always measured whole.
      ord: the order p of the norm, at least 1 and possibly infinite, or a norm.
      axis_name: mesh axes over which the measured dimensions are sharded inside
        ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases. These and the report
      are those of the parameters.

    Raises:
      TypeError: if `radius` or `ord` has the wrong type.
      ValueError: if `radius` is negative or NaN, `ord` is below 1, or a leaf has no
        dimension `axis`; in the update, if ``params`` do not fit the updates.

    Examples:
      >>> sgd = optax.chain(optax.sgd(0.1), optaxclip.normalize_weights())
      >>> params = jnp.array([[3.0, 0.0], [4.0, 2.0]])
      >>> updates, _ = sgd.update(jnp.zeros((2, 2)), sgd.init(params), params)
      >>> jnp.round(optax.apply_updates(params, updates), 3)
      Array([[0.6, 0. ],
             [0.8, 1. ]], dtype=float32)

    Note:
      nGPT normalizes along the embedding: ``axis=1`` for a kernel that writes to the
      residual stream, and ``axis=0`` for one that reads from it. EDM2 gives every
      output a root mean square of 1: ``ord=norms.rms``. EDM2 also adds a small number
      to the norm, which is not needed here, and normalizes before the forward pass,
      too. Here, parameters that start off the sphere reach it with the first step.

    References:
      Loshchilov et al., nGPT: normalized transformer with representation learning on
      the hypersphere, 2024, arXiv:2410.01131; Karras et al., Analyzing and improving
      the training dynamics of diffusion models, 2023, arXiv:2312.02696.
    """
    clip = clipper(
        scopes.unit(axis=axis, axis_name=axis_name),
        as_norm(ord),
        as_threshold(radius, "radius"),
        responses.normalize,
        name=name,
    )
    return place_weights(clip, name)


def _downhill(updates: PyTree, params: PyTree | None) -> PyTree:
    return filled(updates, [-leaf for leaf in counted(updates)])


def hyperball(
    learning_rate: Limit,
    *,
    radius: Limit | None = None,
    leading_axes: PyTree[int] | None = None,
    axis_name: AxisName = None,
    name: str = "hyperball",
) -> optax.GradientTransformationExtraArgs:
    r"""Move each tensor along the sphere of its norm, by a step relative to that norm.

    $$
    v_t = w_t - \eta \lVert w_t \rVert \frac{u_t}{\lVert u_t \rVert}, \qquad
    w_t \leftarrow \lVert w_t \rVert \frac{v_t}{\lVert v_t \rVert}
    $$

    It replaces the learning rate, last in a chain, after the ``scale_by_...`` of any
    optimizer: Muon's makes MuonH, Adam's makes AdamH. Like
    ``optax.scale_by_learning_rate``, it turns the updates downhill. Weight decay is of
    no use with it. Needs ``params``.

    Args:
      learning_rate: the step as a share of the tensor's norm, η >= 0: a number, an
        array, a schedule of the clipper's own step, a prefix tree of these, or a
        threshold.
      radius: the norm to give the tensors, instead of their current one: any kind of
        limit, such as a prefix tree of norms.
      leading_axes: the number of leading dimensions that stack separate tensors,
        such as scanned layers or experts: an int or a prefix tree of ints; 0 by
        default.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it. These entries are about the parameters;
        those about the step have ``_step`` appended to the name.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if `learning_rate` or `radius` has the wrong type.
      ValueError: if `learning_rate` or `radius` is negative or NaN, or a leaf has
        fewer dimensions than `leading_axes`; in the update, if ``params`` do not fit.

    Examples:
      >>> sgdh = optax.chain(optax.trace(0.9), optaxclip.hyperball(0.1))
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, _ = sgdh.update(jnp.array([1.0, -1.0]), sgdh.init(params), params)
      >>> after = jnp.round(optax.apply_updates(params, updates), 3)
      >>> after, optaxclip.tree_norm(after)
      (Array([2.597, 4.273], dtype=float32), Array(5., dtype=float32))

      Use it for matrices only: vectors that start at zero would stay there, since the
      sphere of norm 0 is a point:

      >>> optimizer = optax.partition(
      ...     {"matrix": sgdh, "other": optax.adam(1e-3)},
      ...     lambda tree: jax.tree.map(
      ...         lambda x: "matrix" if x.ndim > 1 else "other", tree
      ...     ),
      ... )

    Note:
      The paper keeps the norm of the initial parameters; this keeps the current one,
      like the implementations in Levanter and Paddle, and needs no memory. The two
      differ only by rounding, which makes the current norm drift: negligibly in
      float32, but by some millionths per step in bfloat16. There, or to follow the
      paper exactly, pass the initial norms:
      ``radius=jax.tree.map(jnp.linalg.norm, params)``. Even then, the length of a step
      is a share of the current norm, which may differ from the radius until the first
      step is done. Levanter bounds norms from below by 1e-10; no such guard is needed
      here.

    References:
      Wen et al., Fantastic pretraining optimizers and where to find them II: hyperball
      optimization, 2026, arXiv:2606.16899.
    """
    scope = scopes.tensor(leading_axes=leading_axes, axis_name=axis_name)
    own = Share(1.0, 0.0) if radius is None else as_threshold(radius, "radius")
    share = Share(as_threshold(learning_rate, "learning_rate"), 0.0)
    step, sphere = (
        clipper(scope, norms.l2, limit, responses.normalize, name=called)
        for limit, called in ((share, f"{name}_step"), (own, name))
    )
    return optax.with_extra_args_support(
        optax.chain(
            marked(step, LengthState),
            optax.stateless(_downhill),
            place_weights(sphere, name),
        )
    )
