"""Steps that are not finite: zeroed number by number, or skipped as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32, PyTree

from optaxclip import scopes
from optaxclip.guards.skipping import skipping
from optaxclip.guards.streaks import tally
from optaxclip.leaves import AxisName, counted, filled
from optaxclip.numbers import Leaf
from optaxclip.reports import state_type


def _count_nonfinite(updates: PyTree, axis_name: AxisName) -> Float[Array, ""]:
    """Count in float32, which is exact below 2^24 and has no end for huge models."""
    groups = scopes.element(axis_name=axis_name).arrange(updates)
    broken = [~jnp.isfinite(leaf) for leaf in groups.leaves]
    return groups.count(groups.tree.unflatten(broken))


def _finite(leaf: Leaf) -> Leaf:
    return jnp.where(jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf))


class ZeroReport(NamedTuple):
    """What `zero_nonfinite` did.

    Attributes:
      zeroed: how many numbers were not finite in the last step.
      consecutive: in how many steps in a row, up to the last, any was.
      total: in how many steps so far any was.
    """

    zeroed: Float[Array, ""]
    consecutive: Int32[Array, ""]
    total: Int32[Array, ""]


class ZeroState(NamedTuple):
    """What `zero_nonfinite` keeps from step to step."""

    report: ZeroReport


def zero_nonfinite(
    *, axis_name: AxisName = None, name: str = "zero_nonfinite"
) -> optax.GradientTransformationExtraArgs:
    r"""Set every number that is not finite to zero, and count them.

    $$u_i \leftarrow u_i \text{ if } |u_i| < \infty \text{ else } 0$$

    All other numbers keep their bits. The step is taken, so moments decay and weight
    decay acts; `skip_nonfinite` leaves it out altogether. Place it first in a chain:
    a clipper before it has already spread NaN over the group.

    Args:
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``; the
        report needs it.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation. Its entries in `optaxclip.report` are ``zeroed``, how many
      numbers were zeroed in the last step, and ``consecutive`` and ``total``, in how
      many steps in a row and in all there were any.

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

    def init(params: PyTree) -> ZeroState:
        counters = (jnp.zeros((), jnp.int32) for _ in range(2))
        report = ZeroReport(jnp.zeros((), jnp.float32), *counters)
        return state_type(name, ZeroState)(report)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ZeroState]:
        zeroed = _count_nonfinite(updates, axis_name)
        clean = filled(updates, map(_finite, counted(updates)))
        report = tally(state.report, zeroed > 0)._replace(zeroed=zeroed)
        return clean, state_type(name, ZeroState)(report)

    return optax.GradientTransformationExtraArgs(init, update)


class SkipReport(NamedTuple):
    """What `skip_nonfinite` did.

    Attributes:
      skipped: whether the last step was skipped, 0 or 1.
      consecutive: how many steps in a row, up to the last, were skipped.
      total: how many steps so far were skipped.
    """

    skipped: Int32[Array, ""]
    consecutive: Int32[Array, ""]
    total: Int32[Array, ""]


@dataclass(frozen=True)
class _Nonfinite:
    """Judge a step by its numbers."""

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
    """Skip every step whose gradient holds NaN or infinity, and keep all state.

    A skipped step gives updates of zero and leaves the state of `inner` bit for bit:
    moments, schedules, random keys, and what clippers inside remember. Wrap the whole
    optimizer, clippers included, so that the raw gradient is judged.

    Args:
      inner: the whole optimizer.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation that hands ``params`` and extra arguments on to `inner`. Its
      entries in `optaxclip.report` are ``skipped`` (0 or 1), ``consecutive`` and
      ``total``.

    Raises:
      TypeError: if `inner` is no transformation.

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
      ``optax.apply_if_finite`` accepts a bad step once it has refused as many as it
      was told; this never does. A run whose steps stay bad stands still and says so
      in ``consecutive``: end it with `optaxclip.stop_on_streak`. What `inner` makes of
      a finite gradient is not judged. Wrap it round ``optax.MultiSteps``, not inside:
      the sum that is kept there stays NaN once it was.
    """
    return skipping(inner, _Nonfinite(axis_name), name)
