"""AdaGC: limit each tensor by the average of its own past norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int32, PyTree

from optaxclip import norms, responses, scopes
from optaxclip.arguments import check_decay, check_nonnegative, check_steps
from optaxclip.clipper import clipper
from optaxclip.groups import Groups, PerGroup, map_groups
from optaxclip.groups.reduction import MAX, MIN, SUM
from optaxclip.leaves import AxisName
from optaxclip.norms import Magnitude
from optaxclip.norms.norm import root, unscaled
from optaxclip.numbers import Number, computed_once
from optaxclip.thresholds import Limit, Observation, Threshold, as_threshold
from optaxclip.thresholds.memory import begin, full, increment, like, remember
from optaxclip.thresholds.threshold import GroupShapes


def adagc(
    max_norm: Limit = 1.0,
    *,
    factor: ArrayLike = 1.05,
    decay: ArrayLike = 0.98,
    warmup_steps: ArrayLike = 100,
    leading_axes: PyTree[int] | None = None,
    axis_name: AxisName = None,
    name: str = "adagc",
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink each tensor to a multiple of the average of its own past norms.

    $$
    u_i \leftarrow u_i \cdot \min(1, \lambda \gamma_i / \lVert u_i \rVert), \qquad
    \gamma_i \leftarrow \beta \gamma_i + (1 - \beta) \lVert u_i \rVert
    $$

    where $\gamma_i$ is updated with the norm after clipping. During the first
    `warmup_steps` steps the whole update is shrunk to `max_norm` instead, and
    $\gamma_i$ is the smallest norm of its tensor after that clipping.

    Args:
      max_norm: the largest norm of the whole update during the warm-up: a number, an
        array, a schedule of the clipper's own step, or a threshold.
      factor: the largest ratio of a norm to its average, λ >= 0.
      decay: β, at least 0 and below 1.
      warmup_steps: the length of the warm-up, in finite steps.
      leading_axes: the number of leading dimensions that stack separate tensors,
        such as scanned layers: an int or a prefix tree of ints; 0 by default.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases. During the warm-up
      there is one group: a NaN makes the whole update NaN.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `max_norm` or `factor` is negative or NaN, `decay` not at least 0
        and below 1, `warmup_steps` negative, or a leaf has fewer dimensions than
        `leading_axes`.

    Examples:
      >>> clip = optaxclip.adagc(5.0, warmup_steps=1)
      >>> state = clip.init({"w": jnp.zeros(1), "b": jnp.zeros(1)})
      >>> for w, b in (3.0, 4.0), (300.0, 4.0):
      ...     updates = {"w": jnp.array([w]), "b": jnp.array([b])}
      ...     updates, state = clip.update(updates, state)
      >>> updates["w"], updates["b"]
      (Array([3.15], dtype=float32), Array([4.], dtype=float32))

    Note:
      By the paper's formulae a tensor whose gradient was zero during the warm-up has
      $\gamma_i = 0$ and is frozen forever; one that is unused for a while, such as an
      expert, is nearly frozen. Here $\gamma_i$ ignores zeros, and a tensor that has had
      only zeros stays in the warm-up. A warm-up step in which any tensor is not finite
      counts for no tensor, unless `max_norm` is infinite in that step.

    References:
      Wang et al., AdaGC: improving training stability for large language model
      pretraining, 2025, arXiv:2502.11034.
    """
    return clipper(
        scopes.tensor(leading_axes=leading_axes, axis_name=axis_name),
        norms.l2,
        _OwnPast(as_threshold(max_norm, "max_norm"), factor, decay, warmup_steps),
        responses.shrink,
        name=name,
    )


class AdaGCState(NamedTuple):
    """The average norm of each tensor after clipping, and its finite steps so far."""

    usual: Float[Array, ...]
    step: Int32[Array, ...]


def _first(group: jax.ShapeDtypeStruct) -> AdaGCState:
    return AdaGCState(full(group, jnp.inf), full(group, 0, jnp.int32))


def _together(groups: Groups, size: Magnitude) -> Magnitude:
    """Combine the norms of all tensors into the norm of the whole update."""
    values, scales = map(jax.tree.leaves, size)
    if not values:
        return unscaled(jnp.zeros((), jnp.float32))
    scale = groups.combine(MIN, jax.lax.stop_gradient(scales))
    scaled = [v * (scale / s) for v, s in zip(values, scales, strict=True)]
    # It cancels out of the derivative, and maxima across a mesh have none.
    largest = groups.combine(MAX, jax.lax.stop_gradient(scaled))
    one = jnp.where(largest == 0, jnp.ones_like(largest), largest)
    total = groups.combine(SUM, [jnp.square(x / one) for x in scaled])
    return Magnitude(one * root(total, 2), scale)


def _part(
    value: Number, scale: Number, whole: Number, common: Number, max_norm: Number
) -> Number:
    """Return the limit per tensor that amounts to clipping all of them together.

    It is the tensor's part of `max_norm`, which is finite even if the tensor's own norm
    overflows.
    """
    within = (whole <= max_norm * common) | (max_norm == jnp.inf)
    # Infinity times a derivative of 0 would be NaN.
    finite = jnp.where(within, 0, max_norm)
    ratio = value * (common / scale) / jnp.where(whole == 0, 1, whole)
    return jnp.where(within, jnp.inf, finite * ratio)


@dataclass(frozen=True)
class _OwnPast:
    """First a part of the limit on the whole update, then each tensor's own past."""

    max_norm: Threshold
    factor: ArrayLike
    decay: ArrayLike
    warmup_steps: ArrayLike

    def __post_init__(self) -> None:
        check_nonnegative(self.factor, "factor")
        check_decay(self.decay)
        check_steps(self.warmup_steps, 0, "warmup_steps")

    def init(self, groups: GroupShapes) -> tuple[Any, Any]:
        return self.max_norm.init(groups), begin(_first, groups)

    def update(
        self, seen: Observation, state: tuple[Any, Any]
    ) -> tuple[PerGroup, tuple[Any, Any]]:
        max_norm, first = self.max_norm.update(seen, state[0])
        max_norm = max_norm.astype(seen.groups.dtype)
        whole = map(computed_once, _together(seen.groups, seen.size))
        part = map_groups(_part, *seen.size, *whole, max_norm)
        limit, memory = remember(_first, self._step, seen.magnitude, state[1], part)
        return limit, (first, memory)

    def _step(
        self, size: Number, memory: AdaGCState, part: Number
    ) -> tuple[Number, AdaGCState]:
        usual, step = memory
        warm = step < jnp.asarray(self.warmup_steps).astype(step.dtype)
        early = warm | (usual == jnp.inf)
        part = jnp.maximum(like(part, size), 0)
        limit = jnp.where(early, part, like(self.factor, size) * usual)
        through = jnp.minimum(size, limit)
        kept = like(self.decay, size)
        moved = jnp.where(
            early, jnp.minimum(usual, through), kept * usual + (1 - kept) * through
        )
        whole = ~jnp.isnan(part)
        # A 0 would remain the smallest norm forever.
        learns = (through > 0) & ~(early & ~whole)
        counted = jnp.where(warm & ~whole, step, increment(step))
        return limit, AdaGCState(jnp.where(learns, moved, usual), counted)
