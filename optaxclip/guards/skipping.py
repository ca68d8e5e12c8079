"""The wrapper behind all guards: judge a step, and take it or skip it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from optaxclip.groups import Entry
from optaxclip.guards.holding import held_if
from optaxclip.guards.streaks import tally
from optaxclip.leaves import counts
from optaxclip.numbers import computed_once
from optaxclip.reports import check_shapes, check_state, state_type
from optaxclip.roles import check_name, check_transformation
from optaxclip.updates import check_updates


class SkipState(NamedTuple):
    """State of a guard.

    Attributes:
      inner_state: the state of the optimizer inside.
      memory: what the guard remembers of past steps.
      report: what the last step did.
    """

    inner_state: Any
    memory: Any
    report: Any


@runtime_checkable
class Judge(Protocol):
    """Decides which steps are bad."""

    def init(self, params: PyTree) -> tuple[Any, Any]:
        """Give the memory and the report before the first step."""
        ...

    def entries(self, params: PyTree) -> tuple[Entry, ...]:
        """Return the names of the entries of vectors in the report, if it has any."""
        return ()

    def judge(
        self,
        updates: PyTree,
        params: PyTree | None,
        memory: Any,
        report: Any,
        extra_args: Mapping[str, Any],
    ) -> tuple[Bool[Array, ""], Any, Any]:
        """Tell whether a step is bad, what to remember, and what to report."""
        ...


def skipping(
    inner: optax.GradientTransformation, judge: Judge, name: str
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that bad steps are skipped.

    Both outcomes are computed and one is selected, which ``vmap`` turns a branch into
    anyway. Even without ``vmap`` a branch was slower when timed: it keeps all updates
    in memory, whereas `held_if` lets them be applied as they are computed.

    Args:
      inner: the whole optimizer.
      judge: decides which steps are bad; its report has the fields of `tally` and
        `skipped`.
      name: the name used in `optaxclip.report`.
    """
    check_transformation(inner, "inner")
    check_name(name)
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> SkipState:
        kind = state_type(name, SkipState, judge.entries(params))
        return kind(inner.init(params), *judge.init(params))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, SkipState]:
        check_updates(name, updates)
        check_state(name, state, SkipState)
        _check_own(name, state, jax.eval_shape(judge.init, updates))
        bad, memory, report = judge.judge(
            updates, params, state.memory, state.report, extra
        )
        # Otherwise the kernels of each leaf would judge again.
        bad = computed_once(bad.astype(jnp.float32)) > 0

        def inner_update(inner_state: Any) -> tuple[PyTree, Any]:
            return inner.update(updates, inner_state, params, **extra)

        taken, inner_state = held_if(bad, inner_update, state.inner_state)
        report = tally(report, bad)._replace(skipped=bad.astype(jnp.int32))
        return _zero_if(bad, taken), state._replace(
            inner_state=inner_state, memory=memory, report=report
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _check_own(name: str, state: SkipState, first: tuple[Any, Any]) -> None:
    """Reject the state of another guard, or of one with other options."""
    check_state(name, state.report, type(first[1]))
    wanted = [x.shape for x in jax.tree.leaves(first)]
    check_shapes(name, (state.memory, state.report), wanted)


def _zero_if(bad: Bool[Array, ""], updates: PyTree) -> PyTree:
    """Set every update that could be added to a parameter to zero."""

    def leaf(x: Any) -> Any:
        dtype = getattr(x, "dtype", None)
        is_number = dtype is not None and (
            jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_
        )
        return jnp.where(bad, jnp.zeros_like(x), x) if is_number or counts(x) else x

    return jax.tree.map(leaf, updates)
