"""A guard that skips steps above a limit, which may be any threshold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int32, PyTree

from optaxclip import norms, responses, scopes
from optaxclip.clipper import Clip
from optaxclip.groups import Entry, Groups, map_groups
from optaxclip.guards.holding import keep_if
from optaxclip.guards.measuring import apart
from optaxclip.guards.skipping import skipping
from optaxclip.norms import Norm
from optaxclip.norms.norm import ByNorm
from optaxclip.numbers import Number, capped
from optaxclip.responses.apply import ByResponse
from optaxclip.roles import check_role
from optaxclip.scopes import Scope
from optaxclip.thresholds import Limit, as_threshold

_WHOLE = scopes.whole()


class AboveReport(NamedTuple):
    """Report of `skip_above`.

    Norms and limits have the same shapes as in `ClipReport`.

    Attributes:
      skipped: whether the last step was skipped, 0 or 1.
      consecutive: the length of the current run of skipped steps.
      total: the number of steps skipped so far.
      norm: the magnitude of each group in the last step, skipped or not; with very many
        groups, that of the one group that exceeded its limit the most.
      limit: the limits of the same groups.
    """

    skipped: Int32[Array, ""]
    consecutive: Int32[Array, ""]
    total: Int32[Array, ""]
    norm: Float[Array, "..."]
    limit: Float[Array, "..."]


@dataclass(frozen=True)
class _Above:
    """Judges a step by the limits that a clipper would use."""

    clip: Clip

    def init(self, params: PyTree) -> tuple[Any, AboveReport]:
        first = self.clip.init(params)
        counters = (jnp.zeros((), jnp.int32) for _ in range(3))
        norm, limit = first.report.pre_norm, first.report.limit
        return first.threshold, AboveReport(*counters, norm=norm, limit=limit)

    def entries(self, params: PyTree) -> tuple[Entry, ...]:
        return self.clip.scope.arrange(params).entries

    def judge(
        self,
        updates: PyTree,
        params: PyTree | None,
        memory: Any,
        report: AboveReport,
        extra_args: Mapping[str, Any],
    ) -> tuple[Bool[Array, ""], Any, AboveReport]:
        groups = self.clip.scope.arrange(updates)
        size, _ = self.clip.measure(groups, ())
        first = self.clip.init(updates)
        shown = first.report._replace(pre_norm=report.norm)
        known = first._replace(threshold=memory, report=shown)
        limit, learned = self.clip.limit(
            updates, groups, size, known, params, extra_args
        )
        broken = _any(groups, map_groups(_is_broken, size.value))
        above = _any(groups, map_groups(_exceeds, *size, limit))
        norm, bound, _ = groups.summarize(*size, limit)
        return (
            broken | above,
            keep_if(broken, memory, learned),
            report._replace(
                norm=norm.astype(jnp.float32), limit=bound.astype(jnp.float32)
            ),
        )


def _any(groups: Groups, mask: PyTree[Bool[Array, "..."]]) -> Bool[Array, ""]:
    return groups.share(mask) > 0


def _is_broken(value: Number) -> Bool[Array, "..."]:
    return ~jnp.isfinite(value)


def _exceeds(value: Number, scale: Number, limit: Number) -> Bool[Array, "..."]:
    return ~(capped(value, scale) <= limit)  # Nothing is below a limit of NaN.


def skip_above(
    inner: optax.GradientTransformation,
    threshold: Limit,
    *,
    scope: Scope = _WHOLE,
    norm: Norm = norms.l2,
    name: str = "skip_above",
) -> optax.GradientTransformationExtraArgs:
    r"""Skip every step in which any group is above its limit, and keep all state.

    $$u_t \leftarrow 0 \text{ if } \lVert g_t \rVert > c_t \text{ for any group}$$

    A step that is not finite is above any limit. As with `skip_nonfinite`, a skipped
    step gives updates of zero and keeps the state of `inner` bit for bit. Wrap the
    whole optimizer, clippers included, so that the guard judges the raw gradient.

    The threshold sees every finite step. From a skipped step it learns what it would
    learn from a clipped one: ``Ema`` learns the limit, ``HistoricalSigma`` the full
    magnitude. A limit with memory therefore follows a lasting change of level as fast
    as it does in a clipper, and a schedule continues. Steps that are not finite are not
    remembered.

    Args:
      inner: the whole optimizer.
      threshold: the limit: a number, an array, a schedule of the guard's own finite
        steps, a tree of these that fits the scope, or one of `optaxclip.thresholds`:
        ``thresholds.Ema(20.0)`` is 20 times the average norm.
      scope: which numbers are measured together; one of `optaxclip.scopes`, which also
        takes ``axis_name`` and ``leading_axes``. With ``axis_name=()`` each device
        decides by itself inside ``jax.shard_map``.
      norm: how each group is measured; one of `optaxclip.norms`.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation that passes ``params`` and extra arguments to `inner`. Its
      entries in `optaxclip.report` are ``skipped`` (0 or 1), ``consecutive``,
      ``total``, ``norm`` and ``limit``.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a limit is negative or NaN.

    Examples:
      >>> average = optaxclip.thresholds.Ema(factor=5.0, decay=0.9)
      >>> optimizer = optaxclip.skip_above(optax.sgd(1.0), average)
      >>> state = optimizer.init(jnp.zeros(1))
      >>> for gradient in 1.0, 1.2, 80.0, 1.1:
      ...     updates, state = optimizer.update(jnp.array([gradient]), state)
      ...     print(updates)
      [-1.]
      [-1.2]
      [0.]
      [-1.1]

    Note:
      A limit that does not change, such as a number, can skip forever: the parameters
      stay where the gradient is too large, so the next gradient is too large again. The
      same can happen with a limit that ignores spikes,
      ``ZScore(skip_update_on_spike=True)``, and with a ``Share`` of parameters that no
      longer change. ``consecutive`` shows it, and `optaxclip.stop_on_streak` ends the
      run.

      ``RollingPercentile`` includes the current step in its window. A step larger than
      all others there is skipped at any percentile below 100.
    """
    check_role(scope, Scope, "scope", "scopes.whole()")
    check_role(norm, Norm, "norm", "norms.l2")
    limits = Clip(
        name,
        scope,
        as_threshold(threshold),
        ByNorm(apart(norm)),
        ByResponse(responses.drop),
    )
    return skipping(inner, _Above(limits), name)
