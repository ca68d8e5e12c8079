"""SPAM's clip of single numbers that are far above their own history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int32

from optaxclip import norms, responses, scopes
from optaxclip.arguments import check_decay, check_steps
from optaxclip.averages import root_mean_square
from optaxclip.clipper import clipper
from optaxclip.groups import PerGroup, map_groups
from optaxclip.leaves import AxisName
from optaxclip.numbers import Number
from optaxclip.thresholds import Limit, Observation, Threshold, as_threshold
from optaxclip.thresholds.memory import begin, full, increment, like, remember
from optaxclip.thresholds.threshold import GroupShapes


class _History(NamedTuple):
    """The root mean square of each group's clipped magnitudes."""

    rms: Number


def _first(group: jax.ShapeDtypeStruct) -> _History:
    return _History(full(group, 0))


class _HistoryState(NamedTuple):
    """The memory of each group, and the number of finite steps so far."""

    ratio: Any
    history: Any
    step: Int32[Array, ""]


@dataclass(frozen=True)
class _OwnSquares:
    """A multiple of the root mean square of a group's own past."""

    max_ratio: Threshold
    decay: ArrayLike
    warmup_steps: ArrayLike

    def init(self, groups: GroupShapes) -> _HistoryState:
        history = begin(_first, groups)
        step = jnp.zeros((), jnp.int32)
        return _HistoryState(self.max_ratio.init(groups), history, step)

    def update(
        self, seen: Observation, state: _HistoryState
    ) -> tuple[PerGroup, _HistoryState]:
        active = state.step >= jnp.asarray(self.warmup_steps).astype(jnp.int32)

        def clipped(
            size: Number, memory: _History, ratio: Number
        ) -> tuple[Number, _History]:
            root = jnp.sqrt(jnp.maximum(like(ratio, size), 0))
            limit = jnp.where(active & (memory.rms > 0), root * memory.rms, jnp.inf)
            share = like(1 - self.decay, size)
            left = jnp.minimum(size, limit)
            return limit, _History(root_mean_square(memory.rms, left, share))

        def broken(size: Number) -> Bool[Array, ...]:
            return ~jnp.isfinite(size)

        ratio, ratio_state = self.max_ratio.update(seen, state.ratio)
        limit, history = remember(_first, clipped, seen.magnitude, state.history, ratio)
        finite = seen.groups.share(map_groups(broken, seen.magnitude)) == 0
        step = jnp.where(finite, increment(state.step), state.step)
        return limit, _HistoryState(ratio_state, history, step)


def spam_clip(
    max_ratio: Limit = 5000.0,
    *,
    decay: ArrayLike = 0.999,
    warmup_steps: ArrayLike = 20,
    axis_name: AxisName = None,
    name: str = "spam_clip",
) -> optax.GradientTransformationExtraArgs:
    r"""Clip every number whose square is far above the average of its past squares.

    $$
    u_i \leftarrow \mathrm{sign}(u_i) \min(|u_i|, \sqrt{\theta v_i}), \qquad
    v_i \leftarrow \beta v_i + (1 - \beta) u_i^2
    $$

    The averages are of clipped numbers and are not bias-corrected. They take a buffer
    of the size of the updates, in at least float32. A number that is not finite does
    not enter its average, and a step with such a number does not count as one of
    `warmup_steps`.

    Args:
      max_ratio: the largest ratio θ >= 0 of a square to its average: a number, an
        array, a schedule of the clipper's own step or a threshold, or a prefix tree of
        the first three.
      decay: the decay β of the averages.
      warmup_steps: the number of first steps that are averaged but not clipped.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses`, under `clamp`, for edge cases.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `max_ratio` or `warmup_steps` is negative or NaN, or `decay` is
        not at least 0 and below 1.

    Examples:
      >>> clip = optaxclip.spam_clip(4.0, decay=0.5, warmup_steps=1)
      >>> state = clip.init(jnp.zeros(2))
      >>> _, state = clip.update(jnp.array([1.0, 1.0]), state)
      >>> updates, state = clip.update(jnp.array([1.2, -300.0]), state)
      >>> updates
      Array([ 1.2      , -1.4142135], dtype=float32)

    Note:
      SPAM uses Adam's second moment; a separate clipper has to keep its own. Resetting
      the moments belongs to the optimizer and is not done here, so the clip is not
      suspended after a reset either. In the authors' code a number whose average is
      zero stays at zero forever; here it has no limit until its average is nonzero.

    References:
      Huang et al., SPAM: spike-aware Adam with momentum reset for stable LLM training,
      2025, arXiv:2501.06842.
    """
    check_decay(decay)
    check_steps(warmup_steps, 0, "warmup_steps")
    return clipper(
        scopes.element(axis_name=axis_name),
        norms.linf,
        _OwnSquares(as_threshold(max_ratio, "max_ratio"), decay, warmup_steps),
        responses.clamp,
        name=name,
    )
