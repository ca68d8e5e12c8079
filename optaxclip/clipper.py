"""The one transformation: measure, ask the threshold, respond, report."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from optaxclip.arguments import check_role
from optaxclip.groupings import Grouping, each_group
from optaxclip.leaves import beside, counted, filled
from optaxclip.magnitudes import Leaf, Magnitude, Norm, Number, PerGroup, widen
from optaxclip.measuring import measure, measuring_dtype
from optaxclip.norms import linf
from optaxclip.reports import (
    ClipState,
    empty_report,
    next_report,
    state_type,
)
from optaxclip.responses import Response, clamp
from optaxclip.scopes import Scope
from optaxclip.thresholds import Observation, Threshold, as_threshold


def clipper(
    scope: Scope,
    norm: Norm,
    threshold: Threshold | PyTree[ArrayLike | optax.Schedule],
    response: Response,
    *,
    name: str = "clip",
) -> optax.GradientTransformationExtraArgs:
    r"""Clip what is too big: four answers, one transformation.

    Every strategy of the library that measures, compares and responds is a call of
    this function. The flow is one way, and only the threshold remembers:

        updates --measure--> magnitudes --threshold--> limits --respond--> updates

    Args:
      scope: which numbers are measured together, one of `optaxclip.scopes`.
      norm: how big such a group is, one of `optaxclip.norms`.
      threshold: how big is too big: a number, an array, a schedule of the clipper's
        own step, a tree of these as the scope takes it, or one of
        `optaxclip.thresholds`.
      response: what happens to a group that is too big, one of
        `optaxclip.responses`; its module has the table of all edges.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation whose updates keep their structure, shapes and types, and
      whose state is a `ClipState` of fixed structure, shapes and types.

    Raises:
      TypeError: if an argument is not what it has to be, or a function or class that
        gives one when it is called.
      ValueError: if a limit is negative or NaN, or the response is `clamp` and the
        norm not `linf`, since a bound on single numbers says nothing of a sum.

    Examples:
      A limit on the root mean square of each tensor, which bends smoothly:

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
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {name!r}.")
    if response is clamp and norm != linf:
        raise ValueError(
            f"norm must be norms.linf where the response is clamp, not {norm}; use "
            "shrink to bound another norm."
        )

    rule = Rule(scope, norm, threshold, response, name)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ClipState]:
        size = measure(norm, scope.arrange(updates), counted(updates))
        return rule.clip(updates, size, state, params, extra)

    return optax.GradientTransformationExtraArgs(rule.init, update)


@dataclass(frozen=True)
class Rule:
    """All of a clipper but the measuring, for methods that measure something else.

    Attributes:
      scope: which numbers are measured together.
      norm: how the parameters are measured where the threshold asks for them.
      threshold: how big is too big.
      response: what happens to a group that is too big.
      name: what `optaxclip.report` calls it.
    """

    scope: Scope
    norm: Norm
    threshold: Threshold
    response: Response
    name: str

    def init(self, params: PyTree) -> ClipState:
        """Give the state before the first step."""
        grouping, leaves = self.scope.arrange(params), counted(params)
        groups = grouping.like(leaves, measuring_dtype(leaves))
        return state_type(self.name, ClipState)(
            self.threshold.init(groups), empty_report(grouping.report_shape)
        )

    def _check(self, state: Any, grouping: Grouping, leaves: list[Leaf]) -> None:
        """Refuse the state of another model, or of another threshold, or none."""
        if not hasattr(state, "threshold"):
            raise TypeError(
                f"{self.name} needs the state that its own init or update gave, not "
                f"{state!r}."
            )
        groups = grouping.like(leaves, measuring_dtype(leaves))
        memory = jax.eval_shape(lambda: self.threshold.init(groups))
        wanted = [*(x.shape for x in jax.tree.leaves(memory)), grouping.report_shape]
        kept = jax.tree.leaves((state.threshold, state.report.pre_norm))
        given = [jnp.shape(x) for x in kept]
        if given != wanted:
            raise ValueError(
                f"{self.name} was given a state of shapes {given}, but the updates "
                f"need {wanted}; init it with params whose floating-point leaves are "
                "those of the updates, and with the same options."
            )

    def clip(
        self,
        updates: PyTree,
        size: Magnitude,
        state: Any,
        params: PyTree | None,
        extra_args: Mapping[str, Any],
    ) -> tuple[PyTree, ClipState]:
        """Respond to groups of a known size, and report it."""
        leaves = counted(updates)
        grouping = self.scope.arrange(updates)
        self._check(state, grouping, leaves)

        def measure_params() -> PerGroup:
            given = counted(beside(self.name, updates, params))
            return measure(self.norm, grouping, given).plain

        seen = Observation(
            size=size,
            leaves=leaves,
            number=grouping.count(leaves),
            measure_params=measure_params,
            arrange=functools.partial(self.scope.limits, tree=updates),
            share=lambda held: grouping.digest((), held)[1],
            extra_args=extra_args,
        )
        limit, memory = self.threshold.update(seen, state.threshold)
        limit = each_group(tidy, seen.magnitude, limit)
        after = each_group(self.response.reach, each_group(_held_size, *size), limit)
        report = next_report(state.report, grouping, seen.magnitude, after, limit)
        pointwise = grouping.pointwise
        response = self.response.pointwise() if pointwise else self.response
        weights = each_group(response.weigh, size.value, size.unit, limit)
        clipped = respond(response, grouping, updates, weights)
        return clipped, state_type(self.name, ClipState)(memory, report)


def tidy(magnitude: Number, limit: ArrayLike) -> Number:
    """Take a negative limit as 0, in the type in which the group was measured."""
    limit = jnp.asarray(limit).astype(magnitude.dtype)
    if jnp.broadcast_shapes(limit.shape, magnitude.shape) != magnitude.shape:
        raise ValueError(
            f"a limit of shape {limit.shape} does not fit groups of shape "
            f"{magnitude.shape}; give one number, or one for each group."
        )
    return jnp.maximum(limit, jnp.zeros_like(limit))


def respond(
    response: Response, grouping: Grouping, updates: PyTree, weights: Any
) -> PyTree:
    """Apply what was decided for each group to the leaves that count.

    Args:
      response: the response that gave the weights.
      grouping: how the updates are arranged in groups.
      updates: the tree to respond to.
      weights: a tuple for all groups, or a list of tuples with one for each leaf.

    Returns:
      A tree of the same structure, shapes and types.
    """
    leaves = counted(updates)
    if isinstance(weights, list):
        given = weights
    else:
        given = zip(*(grouping.spread(held(weight)) for weight in weights), strict=True)
    # As wide as the weights, which may be too small for the type of the leaf.
    clipped = (
        response.apply(widen(leaf, each[0].dtype), *each).astype(leaf.dtype)
        for leaf, each in zip(leaves, given, strict=True)
    )
    return filled(updates, clipped)


def _held_size(value: Number, unit: Number) -> Number:
    """Give a magnitude as the largest number there is where it is finite beyond."""
    plain = value * unit
    largest = jnp.finfo(plain.dtype).max
    return jnp.where(value < jnp.inf, jnp.minimum(plain, largest), plain)


def held(weight: Number) -> Number:
    """Keep XLA from computing a group's weight again in the kernels of every leaf.

    Compiling a thousand copies of it is most of what clipping would cost there. XLA
    copies cheap arithmetic, but no remainder; and dividing by infinity leaves every
    finite number as its remainder, exactly. Infinity itself becomes the largest one.
    """
    finite = jnp.minimum(weight, jnp.finfo(weight.dtype).max)
    return jax.lax.rem(finite, jnp.full_like(finite, jnp.inf))
