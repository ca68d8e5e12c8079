"""Clip and average gradients that are stacked example by example."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from optaxclip.groups import Whole
from optaxclip.leaves import AxisName, counted, counts, filled
from optaxclip.norms import Magnitude, l2
from optaxclip.norms.norm import measure
from optaxclip.numbers import as_number
from optaxclip.per_example.decisions import Decisions, decide
from optaxclip.per_example.limits import Limits, arrange, check_response
from optaxclip.per_example.ways import Factors, weigh
from optaxclip.reports import (
    ClipReport,
    ClipState,
    check_state,
    empty_report,
    state_type,
)
from optaxclip.responses import Response, shrink
from optaxclip.thresholds import (
    Constant,
    Limit,
    Observation,
    Scheduled,
    as_threshold,
)

NAME = "clip_per_example"


def clip_per_example(
    max_norm: Limit,
    *,
    response: Response = shrink,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Clip gradients stacked along axis 0, and average them, without noise.

    There is no privacy accounting either; for noise, chain ``optax.add_noise`` or
    jax-privacy after it. If you have the loss, `clipped_grad` avoids stacked gradients.

    $$u \leftarrow \frac1n \sum_i u_i \min(1, c / \lVert u_i \rVert)$$

    Args:
      max_norm: the largest norm of an example's gradient, c >= 0: a number, an array or
        a schedule of the transformation's own step. In a prefix tree, each number
        limits the leaves below it; an array has one limit per leaf.
      response: what happens to a gradient above the limit; one of
        `optaxclip.responses` that multiplies it by a number.
      axis_name: mesh axes over which the examples are sharded inside
        ``jax.shard_map``; the mean is over all of them.

    Returns:
      A transformation whose input updates have a leading axis of examples, and whose
      output does not. Leaves of integers, or of no numbers at all, are returned
      unchanged. Examples that are not finite count as zeros. The report has the largest
      finite norm, the largest limit, and the fraction of examples above a limit.

    Raises:
      TypeError: if `max_norm` or `response` has the wrong type.
      ValueError: if `max_norm` is negative or NaN, or leaves have different numbers of
        examples.

    Examples:
      >>> clip = optaxclip.clip_per_example(1.0)
      >>> state = clip.init(jnp.zeros(2))
      >>> updates, state = clip.update(jnp.array([[3.0, 4.0], [0.0, 0.5]]), state)
      >>> updates
      Array([0.3 , 0.65], dtype=float32)

    References:
      Abadi et al., Deep learning with differential privacy, 2016, arXiv:1607.00133.

    Note:
      Adding or removing an example changes the sum by at most c in norm, or by
      $\sqrt{\sum_l c_l^2}$ for several limits. The mean divides by all examples.
    """
    threshold = as_threshold(max_norm, "max_norm")
    if not isinstance(threshold, Constant | Scheduled):
        raise TypeError(
            "max_norm must be a number, an array, a schedule or a tree of these, not "
            f"{max_norm!r}."
        )
    check_response(response)

    def init(params: PyTree) -> ClipState:
        memory = threshold.init(jax.ShapeDtypeStruct((), jnp.float32))
        return state_type(NAME, ClipState)(memory, (), empty_report(()))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ClipState]:
        del params
        check_state(NAME, state)
        leaves = counted(updates)
        number = _number_of_examples(updates)
        seen = Observation(
            groups=Whole(leaves, ((),) * len(leaves), ((),) * len(leaves)),
            size=Magnitude([], []),  # Given limits do not use it.
            measure_params=list,
            limits=_as_numbers,
            extra_args=extra,
        )
        given, memory = threshold.update(seen, state.threshold)
        kind = state_type(NAME, ClipState)
        if not leaves:
            return updates, kind(memory, (), state.report)
        limits = arrange(given, updates, tree="the updates")
        sizes = [_measure([leaves[i] for i in group]) for group in limits.groups]
        weights = decide(sizes, limits, response, jnp.ones(number, bool))
        total = jax.lax.psum(number, axis_name) if axis_name else number
        factors = limits.of_leaves(weights.divided(total))
        means = [
            _sum(leaf, factors[i], weights, axis_name) for i, leaf in enumerate(leaves)
        ]
        mean = filled(updates, means)
        report = _report(state.report, limits, weights, axis_name)
        return mean, kind(memory, (), report)

    return optax.GradientTransformationExtraArgs(init, update)


def _as_numbers(limits: PyTree[ArrayLike]) -> PyTree[Array]:
    return jax.tree.map(as_number, limits)


def _number_of_examples(updates: PyTree) -> int:
    """Count the examples; all leaves must agree."""
    sizes = {
        jax.tree_util.keystr(path) or "the update": jnp.shape(leaf)
        for path, leaf in jax.tree.leaves_with_path(updates)
        if counts(leaf)
    }
    for name, shape in sizes.items():
        first = next(iter(sizes))
        if not shape or shape[0] != sizes[first][0]:
            raise ValueError(
                "updates must have the same number of examples along axis 0 of all "
                f"leaves; {name} has shape {shape} and {first} {sizes[first]}."
            )
    return next(iter(sizes.values()))[0] if sizes else 1


def _measure(leaves: list[Array]) -> Magnitude:
    """Measure each example, several leaves together."""
    flat = [leaf.reshape(len(leaf), -1) for leaf in leaves]
    return measure(l2, Whole(flat, ((1,),) * len(flat), ((),) * len(flat)))


def _sum(
    leaf: Array, factors: Factors, weights: Decisions, axis_name: AxisName
) -> Array:
    total = jnp.sum(weigh(leaf, factors, weights.good), axis=0)
    total = jax.lax.psum(total, axis_name) if axis_name else total
    return total.astype(leaf.dtype)


def _report(
    before: ClipReport, limits: Limits, weights: Decisions, axis_name: AxisName
) -> ClipReport:
    """Report the largest finite norm, and the fraction of clipped examples."""
    norms, after = [], []
    for (value, scale), (first, second) in zip(
        weights.sizes, weights.factors, strict=True
    ):
        norms.append((value / scale).astype(jnp.float32))
        after.append((value * (first / scale * second)).astype(jnp.float32))
    norms, after = jnp.stack(norms), jnp.stack(after)
    bounds = jnp.stack([limit.astype(jnp.float32) for limit in limits.values])
    good = weights.good[None, :]
    above = jnp.any(~(norms <= bounds[:, None]), axis=0)
    fraction = jnp.mean(above, dtype=jnp.float32)
    largest = [jnp.max(jnp.where(good, x, jnp.zeros_like(x))) for x in (norms, after)]
    if axis_name:
        fraction = jax.lax.pmean(fraction, axis_name)
        largest = jax.lax.pmax(largest, axis_name)
    steps = before.clipped_steps
    return ClipReport(
        pre_norm=largest[0],
        post_norm=largest[1],
        limit=jnp.max(bounds),
        clipped_fraction=fraction,
        clipped_steps=jnp.where(fraction > 0, optax.safe_increment(steps), steps),
    )
