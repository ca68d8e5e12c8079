"""The transformation behind every clipper: measure, get limits, respond, report."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from optaxclip.groups import Groups, PerGroup
from optaxclip.leaves import beside, filled
from optaxclip.norms import Magnitude, Norm, linf
from optaxclip.norms.norm import ByNorm, Measure
from optaxclip.reports import (
    ClipState,
    check_shapes,
    check_state,
    empty_report,
    next_report,
    state_type,
)
from optaxclip.responses import Response, clamp
from optaxclip.responses.apply import ByResponse, Respond, nonnegative
from optaxclip.roles import check_name, check_role
from optaxclip.scopes import Scope
from optaxclip.thresholds import Limit, Observation, Threshold, as_threshold
from optaxclip.updates import check_updates


def clipper(
    scope: Scope,
    norm: Norm,
    threshold: Limit,
    response: Response,
    *,
    name: str = "clip",
) -> optax.GradientTransformationExtraArgs:
    r"""Build a clipper from a scope, a norm, a threshold and a response.

    Every strategy that measures, compares and responds is a call to this function.
    Data flows one way, and only the threshold has memory:

        updates --measure--> magnitudes --threshold--> limits --respond--> updates

    Args:
      scope: which numbers are measured together; one of `optaxclip.scopes`.
      norm: how the size of such a group is measured; one of `optaxclip.norms`.
      threshold: the limit: a number, an array, a schedule (of the clipper's own step
        count), a tree of these as the scope accepts it, or one of
        `optaxclip.thresholds`.
      response: what happens to a group above its limit; one of `optaxclip.responses`,
        whose module docstring has the table of edge cases.
      name: the name used in `optaxclip.report`.

    Returns:
      A transformation whose updates keep their structure, shapes and dtypes, and
      whose state is a `ClipState` of fixed structure, shapes and dtypes.

    Raises:
      TypeError: if an argument has the wrong type, or is a class or factory that
        still has to be called.
      ValueError: if a limit is negative or NaN, or if the response is `clamp` and the
        norm is not `linf`, since clamping single numbers does not bound a sum.

    Examples:
      Limit the root mean square of each tensor, smoothly:

      >>> clip = optaxclip.clipper(
      ...     optaxclip.scopes.tensor(),
      ...     optaxclip.norms.rms,
      ...     1.0,
      ...     optaxclip.responses.soften(optaxclip.responses.algebraic),
      ... )
      >>> state = clip.init({"w": jnp.zeros(2)})
      >>> updates, state = clip.update({"w": jnp.array([3.0, 3.0])}, state)
      >>> updates["w"]
      Array([0.75, 0.75], dtype=float32)
    """
    check_role(scope, Scope, "scope", "scopes.whole()")
    check_role(norm, Norm, "norm", "norms.l2")
    threshold = as_threshold(threshold)
    check_role(response, Response, "response", "responses.shrink")
    if response is clamp and norm != linf:
        raise ValueError(
            f"norm must be norms.linf where the response is clamp, not {norm}; use "
            "shrink to bound another norm."
        )
    return Clip(name, scope, threshold, ByNorm(norm), ByResponse(response)).transform()


@dataclass(frozen=True)
class Clip:
    """The flow that all clippers share, whatever they measure and do.

    Attributes:
      name: the name used in `optaxclip.report`.
      scope: which numbers are measured together.
      threshold: the limit of each group.
      measure: measures each group.
      respond: changes the groups above their limit.
      known_shapes: cached shapes of states by groups, since finding them takes a trace.
    """

    name: str
    scope: Scope
    threshold: Threshold
    measure: Measure
    respond: Respond
    known_shapes: dict[Hashable, Any] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        check_name(self.name)

    def transform(self) -> optax.GradientTransformationExtraArgs:
        """Return the Optax transformation."""
        return optax.GradientTransformationExtraArgs(self.init, self.update)

    def init(self, params: PyTree) -> ClipState:
        """Return the initial state."""
        groups = self.scope.arrange(params)
        kind = state_type(self.name, ClipState, groups.entries)
        return kind(*self._memories(groups), empty_report(groups.report_shape))

    def _memories(self, groups: Groups) -> tuple[Any, Any]:
        return self.threshold.init(groups.struct()), self.measure.init(groups)

    def update(
        self,
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ClipState]:
        """Clip the updates."""
        check_updates(self.name, updates)
        groups = self.scope.arrange(updates)
        self.check(state, groups)
        size, memory = self.measure(groups, state.measure)
        state = state._replace(measure=memory)
        return self.clip(updates, groups, size, state, params, extra_args)

    def clip(
        self,
        updates: PyTree,
        groups: Groups,
        size: Magnitude,
        state: Any,
        params: PyTree | None,
        extra_args: Mapping[str, Any],
    ) -> tuple[PyTree, ClipState]:
        """Clip what was measured already."""
        limit, memory = self.limit(updates, groups, size, state, params, extra_args)
        leaves, size, reach = self.respond(groups, size, limit)
        report = next_report(reach, state.report, groups, size, limit)
        return filled(updates, leaves), state._replace(threshold=memory, report=report)

    def limit(
        self,
        updates: PyTree,
        groups: Groups,
        size: Magnitude,
        state: Any,
        params: PyTree | None,
        extra_args: Mapping[str, Any],
    ) -> tuple[PerGroup, Any]:
        """Ask the threshold of what was measured; give its limits and its memory."""
        self.check(state, groups)

        def measure_params() -> PerGroup:
            given = groups.of(beside(self.name, updates, params))
            return self.measure(given, state.measure)[0].plain

        limits = functools.partial(self.scope.limits, tree=updates)
        seen = Observation(groups, size, measure_params, limits, extra_args)
        limit, memory = self.threshold.update(seen, state.threshold)
        return nonnegative(limit, size.value), memory

    def check(self, state: Any, groups: Groups) -> None:
        """Reject a missing state, or one of another model or threshold."""
        check_state(self.name, state)
        leaves = tuple((leaf.shape, leaf.dtype) for leaf in groups.leaves)
        seen = jax.tree.structure(groups), leaves
        if seen not in self.known_shapes:
            first = jax.eval_shape(lambda: self._memories(groups))
            shapes = (x.shape for x in jax.tree.leaves(first))
            self.known_shapes[seen] = [*shapes, groups.report_shape]
        wanted = self.known_shapes[seen]
        kept = state.threshold, state.measure, state.report.pre_norm
        check_shapes(self.name, kept, wanted)
