"""A guard against spikes: skip steps whose loss or gradient norm stands out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int32, PyTree

from optaxclip import norms, scopes
from optaxclip.arguments import (
    check_between,
    check_nonnegative,
    check_shared,
    check_window,
)
from optaxclip.guards.holding import keep_if
from optaxclip.guards.measuring import apart
from optaxclip.guards.skipping import Judge, skipping
from optaxclip.leaves import AxisName
from optaxclip.mesh import varying_axes
from optaxclip.norms.norm import measure
from optaxclip.thresholds.loss import loss_of
from optaxclip.thresholds.window import Window

Scalar = Float[Array, ""]


class SpikeMemory(NamedTuple):
    """The losses and norms of recent steps that were taken."""

    loss: Window
    norm: Window


class SpikeReport(NamedTuple):
    """Report of `skip_spikes`.

    Attributes:
      skipped: whether the last step was skipped, 0 or 1.
      consecutive: the length of the current run of skipped steps.
      total: the number of steps skipped so far.
      norm: the norm of the last gradient, skipped or not.
      norm_score: by how many standard deviations it lay above the mean.
      value_score: by how many the loss did.
      value_given: whether the last step was told its loss, 0 or 1.
    """

    skipped: Int32[Array, ""]
    consecutive: Int32[Array, ""]
    total: Int32[Array, ""]
    norm: Scalar
    norm_score: Scalar
    value_score: Scalar
    value_given: Int32[Array, ""]


@dataclass(frozen=True)
class _Spikes(Judge):
    """Judges a step by its distance from the mean, in standard deviations."""

    sigmas: ArrayLike
    sigmas_below: ArrayLike
    window: int
    min_steps: ArrayLike
    min_std: ArrayLike
    axis_name: AxisName

    def init(self, params: PyTree) -> tuple[SpikeMemory, SpikeReport]:
        memory = SpikeMemory(*(_empty(self.window) for _ in range(2)))
        counters = (jnp.zeros((), jnp.int32) for _ in range(3))
        scores = (jnp.zeros((), jnp.float32) for _ in range(3))
        given = jnp.zeros((), jnp.int32)
        return memory, SpikeReport(*counters, *scores, value_given=given)

    def _score(self, window: Window, x: Scalar) -> Scalar:
        known = window.values < jnp.inf
        values = jnp.where(known, window.values, 0.0)
        # Use a unit near the largest number, so that squares do not over- or underflow.
        largest = jnp.max(jnp.abs(values))
        unit = jnp.clip(largest, 2.0**-100, 2.0**100)
        number = jnp.maximum(window.filled, 1).astype(jnp.float32)
        mean = jnp.sum(values / unit) / number
        apart = jnp.where(known, values / unit - mean, 0.0)
        std = jnp.sqrt(jnp.sum(jnp.square(apart)) / number)
        least = jnp.asarray(self.min_std, jnp.float32) * (largest / unit)
        std = jnp.maximum(std, least)
        distance = x / unit - mean
        enough = window.filled >= jnp.asarray(self.min_steps).astype(jnp.int32)
        judged = enough & (distance != 0)
        return jnp.where(judged, distance / jnp.where(judged, std, 1.0), 0.0)

    def _stands_out(self, score: Scalar, x: Scalar) -> Bool[Array, ""]:
        above = jnp.maximum(jnp.asarray(self.sigmas, jnp.float32), 0.0)
        below = jnp.maximum(jnp.asarray(self.sigmas_below, jnp.float32), 0.0)
        return ~((score <= above) & (score >= -below) & jnp.isfinite(x))

    def judge(
        self,
        updates: PyTree,
        params: PyTree | None,
        memory: SpikeMemory,
        report: SpikeReport,
        extra_args: Mapping[str, Any],
    ) -> tuple[Bool[Array, ""], SpikeMemory, SpikeReport]:
        norm = _norm(updates, self.axis_name)
        seen = {"norm": norm}
        loss = loss_of(extra_args)
        if loss is not None:
            if self.axis_name != ():
                check_shared("value", varying_axes(loss))
            seen["loss"] = loss.astype(jnp.float32)
        scores = {name: self._score(getattr(memory, name), seen[name]) for name in seen}
        bad = jnp.stack([self._stands_out(scores[name], seen[name]) for name in seen])
        bad = jnp.any(bad)
        taken = {name: _taken(getattr(memory, name), x) for name, x in seen.items()}
        unseen = jnp.zeros((), jnp.float32)
        return (
            bad,
            keep_if(bad, memory, memory._replace(**taken)),
            report._replace(
                norm=norm,
                norm_score=scores["norm"],
                value_score=scores.get("loss", unseen),
                value_given=jnp.asarray("loss" in seen, jnp.int32),
            ),
        )


def _taken(window: Window, x: Scalar) -> Window:
    """Skip zeros: they have no scale, and any number after them would stand out."""
    return jax.tree.map(
        lambda old, new: jnp.where(x == 0, old, new), window, window.pushed(x)
    )


def _empty(size: int) -> Window:
    return Window(jnp.full(size, jnp.inf, jnp.float32), jnp.zeros((), jnp.int32))


def _norm(updates: PyTree, axis_name: AxisName) -> Scalar:
    """Measure in float32; if the norm of finite numbers overflows, cap it."""
    groups = scopes.whole(axis_name=axis_name).arrange(updates)
    size = measure(apart(norms.l2), groups)
    largest = float(jnp.finfo(jnp.float32).max)
    most = jnp.where(jnp.isfinite(size.value), largest, jnp.inf)
    return jnp.minimum(size.plain.astype(jnp.float32), most)


def skip_spikes(
    inner: optax.GradientTransformation,
    *,
    sigmas: ArrayLike = 6.0,
    sigmas_below: ArrayLike = jnp.inf,
    window: int = 128,
    min_steps: ArrayLike = 64,
    min_std: ArrayLike = 0.01,
    axis_name: AxisName = None,
    name: str = "skip_spikes",
) -> optax.GradientTransformationExtraArgs:
    r"""Skip every step whose loss or gradient norm stands out, and keep all state.

    $$\frac{x - \mathrm{mean}}{\max(\mathrm{std}, f \max_j |x_j|)} > k$$

    with x the loss or the L2 norm of the raw gradient, and the mean, standard
    deviation and maximum those of the last steps that were taken and where x was not
    0. A step that is not
    finite is always skipped. Like `skip_nonfinite`, a skipped step gives updates of
    zero and leaves the state of `inner` bit for bit. Wrap the whole optimizer,
    clippers included, and hand the loss over:
    ``optimizer.update(grads, state, params, value=loss)``. Without ``value`` the norm
    alone is judged, and the report says so.

    Args:
      inner: the whole optimizer.
      sigmas: the most standard deviations allowed above the mean, k >= 0.
      sigmas_below: the most standard deviations allowed below the mean; no limit by
        default.
      window: the number of steps that the statistics cover.
      min_steps: the number of steps to take before a finite step can be skipped.
      min_std: the smallest standard deviation assumed, as a fraction f of the largest
        number in the window. A constant loss may rise by k times this fraction.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``;
        ``value`` has to be the same on all devices there. With ``()`` each device
        decides by itself.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation that passes ``params`` and extra arguments to `inner`. Its
      entries in `optaxclip.report` are ``skipped`` (0 or 1), ``consecutive``,
      ``total``, ``norm``, ``norm_score``, ``value_score`` and ``value_given`` (0 or
      1: whether there was a loss).

    Raises:
      TypeError: if `inner` is no transformation, `window` is traced, or an argument
        has the wrong type; in the update, if the loss comes as ``loss``.
      ValueError: if `sigmas`, `sigmas_below` or `min_std` is negative or NaN, or not
        1 <= `min_steps` <= `window`; in the update, if ``value`` is no scalar, or
        differs between devices.

    Examples:
      >>> optimizer = optaxclip.skip_spikes(optax.sgd(1.0), window=8, min_steps=4)
      >>> state = optimizer.init(jnp.zeros(()))
      >>> for gradient in 1.0, 1.1, 0.9, 1.0, 50.0, 1.1:
      ...     updates, state = optimizer.update(jnp.array(gradient), state)
      ...     print(updates)
      -1.0
      -1.1
      -0.9
      -1.0
      0.0
      -1.1

    Note:
      The defaults are from OLMo-core, which, like MaxText, judges both sides and
      includes skipped steps in its statistics. There one NaN hides all spikes or skips
      all steps until it leaves the window, and a few spikes in a row raise the standard
      deviation until the next one is taken. Here only steps that were taken count. A
      lasting change of level is therefore skipped for as long as it lasts, as
      ``consecutive`` shows; `optaxclip.stop_on_streak` ends such a run. The standard
      deviation is that of the window, without Bessel's correction.
    """
    check_nonnegative(sigmas, "sigmas")
    check_nonnegative(sigmas_below, "sigmas_below")
    check_nonnegative(min_std, "min_std")
    check_window(window)
    check_between(min_steps, 1, window, "min_steps, which the window has to hold,")
    judge = _Spikes(sigmas, sigmas_below, window, min_steps, min_std, axis_name)
    return skipping(inner, judge, name)
