"""Measure updates and parameters, and change nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32, PyTree

from optaxclip import norms, scopes
from optaxclip.arguments import check_window
from optaxclip.groups import Groups
from optaxclip.leaves import AxisName, beside
from optaxclip.norms import Magnitude, Norm, as_norm
from optaxclip.norms.norm import measure
from optaxclip.numbers import capped
from optaxclip.reports import check_state, state_type
from optaxclip.roles import check_flag, check_name
from optaxclip.scopes import Scope
from optaxclip.updates import check_updates


class Watched(NamedTuple):
    """Measurements of a tree.

    Attributes:
      whole: that of all leaves together.
      each: those of each leaf, or of each tensor if leaves stack several.
    """

    whole: Float[Array, ...]
    each: Float[Array, ...]


class WatchReport(NamedTuple):
    """Report of `watch`, from the last step that it reported.

    Attributes:
      update_norm: the norms of the updates that passed through.
      param_norm: the norms of the parameters; () if these are not watched.
      ratio: the first divided by the second; () if parameters are not watched.
      step: the number of the reported step, counted from 1; 0 before the first.
    """

    update_norm: Watched
    param_norm: Watched | tuple[()]
    ratio: Watched | tuple[()]
    step: Int32[Array, ...]


class WatchState(NamedTuple):
    """State of `watch`.

    Attributes:
      steps: the number of steps so far.
      report: the latest report.
    """

    steps: Int32[Array, ...]
    report: WatchReport


def watch(
    *,
    every: int = 1,
    ord: float | Norm = norms.l2,
    params: bool = True,
    leading_axes: PyTree[int] | None = None,
    axis_name: AxisName = None,
    name: str = "watch",
) -> optax.GradientTransformationExtraArgs:
    r"""Measure the updates that pass through and the parameters, and change nothing.

    $$
    \lVert u \rVert, \qquad \lVert w \rVert, \qquad \lVert u \rVert / \lVert w \rVert
    $$

    for the whole tree and for each of its tensors. Placed first in a chain, it sees
    gradients. Placed last, after the learning rate, it sees the step that is applied to
    the parameters; its ratio to them is often about 1e-3. Give each `watch` in a chain
    its own name.

    Args:
      every: the number of steps from one report to the next, starting with the first
        step; in between, the report stays the same. This saves logging but no work on
        the device, which would need a branch to skip the measurement.
      ord: the order p of the norm, at least 1 and possibly infinite, or a norm.
      params: whether to measure the parameters, too; the update then needs them. If
        not, the report has neither their norm nor the ratio.
      leading_axes: the number of leading dimensions that stack separate tensors,
        such as scanned layers: an int or a prefix tree of ints; 0 by default.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation that returns the updates unchanged. Its entries in
      `optaxclip.report` are ``update_norm``, ``param_norm`` and ``ratio``, float32
      scalars for the whole tree, and ``step``, the step they belong to. The tensors
      have vectors such as ``update_norm/each`` or, with `names`, scalars such as
      ``update_norm/body/kernel``. If parameters have norm 0, the ratio is reported
      as 0.

    Raises:
      TypeError: if `params` is not a bool, `every` is not an int, `ord` is not a number
        or norm, or `name` is not a nonempty string; in the update, if the updates are
        not of floating point.
      ValueError: if `every` or `ord` is below 1; in the update, if ``params`` are
        missing or do not fit the updates.

    Examples:
      >>> optimizer = optax.chain(optax.sgd(0.1), optaxclip.watch())
      >>> params = {"w": jnp.array([0.6, 0.8]), "b": jnp.zeros(1)}
      >>> grads = {"w": jnp.array([0.3, 0.4]), "b": jnp.zeros(1)}
      >>> _, state = optimizer.update(grads, optimizer.init(params), params)
      >>> for key, value in optaxclip.report(state, names=params).items():
      ...     print(key, value)
      watch/update_norm 0.05
      watch/update_norm/b 0.0
      watch/update_norm/w 0.05
      watch/param_norm 1.0
      watch/param_norm/b 0.0
      watch/param_norm/w 1.0
      watch/ratio 0.05
      watch/ratio/b 0.0
      watch/ratio/w 0.05
      watch/step 1
    """
    check_window(every, "every")
    check_flag(params, "params")
    check_name(name)
    whole = scopes.whole(axis_name=axis_name)
    each = scopes.tensor(leading_axes=leading_axes, axis_name=axis_name)
    watching = _Watch(name, as_norm(ord), whole, each, every, params)
    return optax.GradientTransformationExtraArgs(watching.init, watching.update)


@dataclass(frozen=True)
class _Watch:
    """The settings of `watch`, and its init and update."""

    name: str
    norm: Norm
    whole: Scope
    each: Scope
    every: int
    params: bool

    def _arranged(self, tree: PyTree) -> tuple[Groups, Groups]:
        return self.whole.arrange(tree), self.each.arrange(tree)

    def init(self, params: PyTree) -> WatchState:
        whole, each = self._arranged(params)

        def nothing() -> Watched:  # Separate buffers, so that a state can be donated.
            shapes = whole.report_shape, each.report_shape
            first, second = (jnp.zeros(shape, jnp.float32) for shape in shapes)
            return Watched(first, second)

        param_norm, ratio = (nothing() if self.params else () for _ in range(2))
        step = jnp.zeros((), jnp.int32)
        report = WatchReport(nothing(), param_norm, ratio, step)
        kind = state_type(self.name, WatchState, each.entries)
        return kind(jnp.zeros((), jnp.int32), report)

    def update(
        self,
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, WatchState]:
        del extra_args
        check_updates(self.name, updates)
        check_state(self.name, state, WatchState)
        steps = optax.safe_increment(state.steps)
        seen = self._look(updates, params, steps)
        given, wanted = (jax.tree.map(jnp.shape, x) for x in (state.report, seen))
        if given != wanted:
            raise ValueError(
                f"{self.name} was given a state of shapes {given.update_norm}, but the "
                f"updates need {wanted.update_norm}; init it with params like the "
                "updates, and with the same options."
            )
        now = state.steps % self.every == 0
        report = jax.tree.map(
            lambda new, old: jnp.where(now, new, old), seen, state.report
        )
        return updates, state._replace(steps=steps, report=report)

    def _look(self, updates: PyTree, params: PyTree | None, step: Any) -> WatchReport:
        whole, each = self._arranged(updates)
        size = Watched(_measured(self.norm, whole), _measured(self.norm, each))
        if not self.params:
            return WatchReport(size, (), (), step)
        given = beside(self.name, updates, params)
        of_params = Watched(
            _measured(self.norm, whole.of(given)), _measured(self.norm, each.of(given))
        )
        return WatchReport(size, of_params, jax.tree.map(_ratio, size, of_params), step)


def _measured(norm: Norm, groups: Groups) -> Float[Array, ...]:
    """Measure each group; cap a finite norm that overflows float32."""
    size: Magnitude = measure(norm, groups)
    no_limit = jnp.asarray(jnp.inf, groups.dtype)
    summary = groups.summarize(size.value, size.scale, no_limit)
    return summary.magnitude.astype(jnp.float32)


def _ratio(update: Float[Array, ...], param: Float[Array, ...]) -> Float[Array, ...]:
    nothing = param == 0
    ratio = capped(update, jnp.where(nothing, jnp.ones_like(param), param))
    return jnp.where(nothing, jnp.zeros_like(ratio), ratio)
