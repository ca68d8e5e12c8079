"""Guards against NaN and infinity: zero the numbers, or skip the whole step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32, PyTree

from optaxclip import scopes
from optaxclip.guards.skipping import Judge, skipping
from optaxclip.guards.streaks import tally
from optaxclip.leaves import AxisName, counted, filled
from optaxclip.numbers import Leaf
from optaxclip.reports import check_state, state_type
from optaxclip.roles import check_name
from optaxclip.updates import check_updates


def _count_nonfinite(updates: PyTree, axis_name: AxisName) -> Float[Array, ""]:
    """Count in float32, which is exact below 2^24 and does not overflow beyond."""
    groups = scopes.element(axis_name=axis_name).arrange(updates)
    broken = [~jnp.isfinite(leaf) for leaf in groups.leaves]
    return groups.count(groups.tree.unflatten(broken))


def _finite(leaf: Leaf) -> Leaf:
    return jnp.where(jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf))


class ZeroReport(NamedTuple):
    """Report of `zero_nonfinite`.

    Attributes:
      zeroed: the number of non-finite numbers in the last step.
      consecutive: the length of the current run of steps with such a number.
      total: the number of steps so far with such a number.
    """

    zeroed: Float[Array, ""]
    consecutive: Int32[Array, ""]
    total: Int32[Array, ""]


class ZeroState(NamedTuple):
    """State of `zero_nonfinite`."""

    report: ZeroReport


def zero_nonfinite(
    *, axis_name: AxisName = None, name: str = "zero_nonfinite"
) -> optax.GradientTransformationExtraArgs:
    r"""Set every number that is not finite to zero, and count these numbers.

    $$u_i \leftarrow u_i \text{ if } |u_i| < \infty \text{ else } 0$$

    All other numbers are bitwise unchanged. The step is still taken, so moments decay
    and weight decay acts; `skip_nonfinite` skips it altogether. Place this first in a
    chain: a clipper before it would spread NaN over the whole group.

    Args:
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``; the
        report needs it. With ``()`` each device counts by itself.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation. Its entries in `optaxclip.report` are ``zeroed``, the count in
      the last step, and ``consecutive`` and ``total``, the number of steps with any
      such number, in a row and in total.

    Examples:
      >>> zero = optaxclip.zero_nonfinite()
      >>> updates, state = zero.update(
      ...     jnp.array([3.0, jnp.nan, jnp.inf]), zero.init(jnp.zeros(3))
      ... )
      >>> updates
      Array([3., 0., 0.], dtype=float32)
      >>> float(optaxclip.report(state)["zero_nonfinite/zeroed"])
      2.0
    """
    check_name(name)

    def init(params: PyTree) -> ZeroState:
        counters = (jnp.zeros((), jnp.int32) for _ in range(2))
        report = ZeroReport(jnp.zeros((), jnp.float32), *counters)
        return state_type(name, ZeroState)(report)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ZeroState]:
        check_updates(name, updates)
        check_state(name, state, ZeroState)
        zeroed = _count_nonfinite(updates, axis_name)
        clean = filled(updates, map(_finite, counted(updates)))
        report = tally(state.report, zeroed > 0)._replace(zeroed=zeroed)
        return clean, state_type(name, ZeroState)(report)

    return optax.GradientTransformationExtraArgs(init, update)


class SkipReport(NamedTuple):
    """Report of `skip_nonfinite`.

    Attributes:
      skipped: whether the last step was skipped, 0 or 1.
      consecutive: the length of the current run of skipped steps.
      total: the number of steps skipped so far.
    """

    skipped: Int32[Array, ""]
    consecutive: Int32[Array, ""]
    total: Int32[Array, ""]


@dataclass(frozen=True)
class _Nonfinite(Judge):
    """Judges a step by whether all its numbers are finite."""

    axis_name: AxisName

    def init(self, params: PyTree) -> tuple[tuple[()], SkipReport]:
        return (), SkipReport(*(jnp.zeros((), jnp.int32) for _ in range(3)))

    def judge(
        self,
        updates: PyTree,
        params: PyTree | None,
        memory: tuple[()],
        report: SkipReport,
        extra_args: Mapping[str, Any],
    ) -> tuple[Bool[Array, ""], tuple[()], SkipReport]:
        return _count_nonfinite(updates, self.axis_name) > 0, memory, report


def skip_nonfinite(
    inner: optax.GradientTransformation,
    *,
    axis_name: AxisName = None,
    name: str = "skip_nonfinite",
) -> optax.GradientTransformationExtraArgs:
    """Skip every step whose gradient contains NaN or infinity, and keep all state.

    A skipped step returns zero updates and leaves the state of `inner` bitwise
    unchanged: moments, schedules, random keys, and the memory of clippers. Wrap the
    whole optimizer, including its clippers, so that the raw gradient is checked.

    Args:
      inner: the whole optimizer.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``. With
        ``()`` each device decides by itself.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation that passes ``params`` and extra arguments to `inner`. Its
      entries in `optaxclip.report` are ``skipped`` (0 or 1), ``consecutive`` and
      ``total``.

    Raises:
      TypeError: if `inner` is not a transformation.

    Examples:
      >>> optimizer = optaxclip.skip_nonfinite(
      ...     optax.chain(optaxclip.clip_global_norm(1.0), optax.sgd(0.1))
      ... )
      >>> state = optimizer.init(jnp.zeros(2))
      >>> updates, state = optimizer.update(jnp.array([jnp.inf, 1.0]), state)
      >>> updates
      Array([0., 0.], dtype=float32)
      >>> int(optaxclip.report(state)["skip_nonfinite/consecutive"])
      1

    Note:
      ``optax.apply_if_finite`` accepts a bad step after a given number of rejected
      ones; this never does. If all steps are bad, the run makes no progress, as
      ``consecutive`` shows: end it with `optaxclip.stop_on_streak`. The updates of
      `inner` for a finite gradient are not checked. Wrap this around
      ``optax.MultiSteps``, not inside: the sum that it keeps would stay NaN.
    """
    return skipping(inner, _Nonfinite(axis_name), name)
