"""Watching: what passes through is measured, and nothing is changed."""

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
from optaxclip.scopes import Scope


class Watched(NamedTuple):
    """What was measured of a tree.

    Attributes:
      whole: of all leaves together.
      each: of every leaf, or of every tensor where leaves stack several.
    """

    whole: Float[Array, ...]
    each: Float[Array, ...]


class WatchReport(NamedTuple):
    """What `watch` saw in the last step in which it looked.

    Attributes:
      update_norm: how big what passed through was.
      param_norm: how big the parameters were; () if they are not watched.
      ratio: the first divided by the second; () if they are not watched.
      step: which step that was, counted from 1; 0 before the first.
    """

    update_norm: Watched
    param_norm: Watched | tuple[()]
    ratio: Watched | tuple[()]
    step: Int32[Array, ...]


class WatchState(NamedTuple):
    """What `watch` keeps from step to step.

    Attributes:
      steps: how many steps there were.
      report: what it saw.
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
    r"""Measure what passes through and the parameters, and change nothing.

    $$
    \lVert u \rVert, \qquad \lVert w \rVert, \qquad \lVert u \rVert / \lVert w \rVert
    $$

    for the whole tree and for each of its tensors. First in a chain it sees gradients,
    last, after the learning rate, it sees the step that the parameters take, whose
    ratio to them is often about 1e-3; two of them in one chain want two names.

    Args:
      every: the report is of the first step and of every such step after it, and stays
        in between. It saves writing to a log, and nothing on the device, which would
        have to decide for it whether to measure.
      ord: the order p of the norm, at least 1 and maybe infinity, or a norm.
      params: whether the parameters are measured, too, which the update then needs. If
        not, the report has neither their norm nor the ratio.
      leading_axes: how many leading dimensions stack tensors that are measured
        alone, such as scanned layers: an int or a prefix tree of ints; none if not
        given.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation that gives the updates back. Its entries in `optaxclip.report`,
      scalars of float32 for the whole tree, are ``update_norm``, ``param_norm``,
      ``ratio``, and ``step``, which step they are of. Those of the tensors are vectors
      such as ``update_norm/each``, or with `names` scalars such as
      ``update_norm/body/kernel``. The ratio to parameters of norm 0 is given as 0.

    Raises:
      TypeError: if `every` is not an int, `ord` not a number or norm, or `name` not a
        string.
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
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {name!r}.")
    whole = scopes.whole(axis_name=axis_name)
    each = scopes.tensor(leading_axes=leading_axes, axis_name=axis_name)
    watching = _Watch(name, as_norm(ord), whole, each, every, params)
    return optax.GradientTransformationExtraArgs(watching.init, watching.update)


@dataclass(frozen=True)
class _Watch:
    """The settings of `watch`, and its two functions."""

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

        def nothing() -> Watched:  # A buffer each, or the state could not be donated.
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
    """Measure each group; where no float32 holds a norm, its largest number does."""
    size: Magnitude = measure(norm, groups)
    no_limit = jnp.asarray(jnp.inf, groups.dtype)
    summary = groups.summarize(size.value, size.scale, no_limit)
    return summary.magnitude.astype(jnp.float32)


def _ratio(update: Float[Array, ...], param: Float[Array, ...]) -> Float[Array, ...]:
    nothing = param == 0
    ratio = capped(update, jnp.where(nothing, jnp.ones_like(param), param))
    return jnp.where(nothing, jnp.zeros_like(ratio), ratio)
