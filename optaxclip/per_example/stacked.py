"""Clip and average gradients that are stacked by example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, PyTree

from optaxclip import scopes
from optaxclip.axis_names import mesh_axes
from optaxclip.clipper import Clip
from optaxclip.groups import Groups, Labeled, PerGroup, Summary, map_groups
from optaxclip.leaves import AxisName, counted, counts, shapes_of
from optaxclip.norms import Magnitude, l2
from optaxclip.norms.norm import ByNorm
from optaxclip.numbers import Leaf, capped, multiply, widen
from optaxclip.per_example.limits import arrange, check_response
from optaxclip.per_example.ways import spread_over_examples
from optaxclip.reports import ClipState
from optaxclip.responses import Response, shrink
from optaxclip.responses.apply import Outcome, apply_response
from optaxclip.thresholds import Constant, Limit, Scheduled, as_threshold


def clip_per_example(
    max_norm: Limit,
    *,
    response: Response = shrink,
    axis_name: AxisName = None,
    name: str = "clip_per_example",
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
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation that takes updates with the examples along axis 0, and returns
      them without this axis. Leaves that hold integers, or no numbers at all, are
      returned unchanged. Examples that are not finite count as zeros, also in the
      report. It shows the gradient, or the part of one, that exceeds its limit the
      most, and the fraction of them above their limit.

    Raises:
      TypeError: if `max_norm` or `response` has the wrong type.
      ValueError: if `max_norm` is negative or NaN, leaves differ in their number of
        examples, or `axis_name` does not name an axis over which they vary.

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

    scope = _ByExample(threshold.limit, axis_name)
    respond = _ByMean(response, axis_name)
    clip = Clip(name, scope, threshold, ByNorm(l2), respond)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ClipState]:
        _check_number(updates)
        return clip.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(clip.init, update)


def _check_number(updates: PyTree) -> None:
    """Reject leaves that differ in their number of examples."""
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


@dataclass(frozen=True)
class _Examples(Labeled):
    """Each example on its own, in every part of the tree that has a limit.

    Per-group numbers have one row per part; a report shows only one group.

    Attributes:
      axis_name: the mesh axes over which the examples are sharded.
    """

    axis_name: AxisName

    @property
    def report_shape(self) -> tuple[int, ...]:
        return ()

    def summarize(self, value: PerGroup, scale: PerGroup, limit: PerGroup) -> Summary:
        numbers = scopes.element(axis_name=self.axis_name).arrange(value)
        plain = map_groups(capped, value, scale)
        return numbers.summarize(plain, jnp.ones((), plain.dtype), limit)


_FIELDS = ["dims", "axes", "members", "labels", "axis_name"]
register_dataclass(_Examples, ["leaves"], _FIELDS)


@dataclass(frozen=True)
class _ByExample:
    """Measures each example on its own, in every part of the tree that has a limit.

    Attributes:
      max_norm: the limits, which define the parts.
      axis_name: the mesh axes over which the examples are sharded.
    """

    max_norm: PyTree
    axis_name: AxisName

    def arrange(self, tree: PyTree) -> _Examples:
        mesh_axes(self.axis_name, tree)  # Raises if an axis is not named.
        start = jnp.zeros((), jnp.int32)
        now = jax.tree.map(lambda x: x(start) if callable(x) else x, self.max_norm)
        parts = arrange(now, tree, tree="the updates").groups
        dims = tuple(tuple(range(1, len(shape))) for shape in shapes_of(tree))
        axes, members = ((),) * len(dims), tuple(filter(None, parts))
        return _Examples(counted(tree), dims, axes, members, (), self.axis_name)

    def limits(self, spec: PyTree[ArrayLike], tree: PyTree) -> PerGroup:
        found = arrange(spec, tree, tree="the updates")
        parts = zip(found.groups, found.values, strict=True)
        limits = [limit for leaves, limit in parts if leaves]
        with jax.numpy_dtype_promotion("standard"):
            return jnp.stack(limits)[:, None] if limits else jnp.zeros((0, 1))


@dataclass(frozen=True)
class _ByMean:
    """Averages the examples after the response; broken ones count as zeros.

    Attributes:
      response: what happens to a gradient above the limit.
      axis_name: the mesh axes over which the examples are sharded.
    """

    response: Response
    axis_name: AxisName

    def __call__(self, groups: Groups, size: Magnitude, limit: PerGroup) -> Outcome:
        good = jnp.all(jnp.isfinite(size.value), axis=0)
        wide = groups.with_leaves([widen(leaf) for leaf in groups.leaves])
        clipped = apply_response(self.response, wide, size, limit)
        means = [
            self._mean(x, good).astype(leaf.dtype)
            for x, leaf in zip(clipped, groups.leaves, strict=True)
        ]
        counted = Magnitude(jnp.where(good, size.value, 0), size.scale)
        return Outcome(means, counted, self.response.reach)

    def _mean(self, clipped: Leaf, good: Bool[Array, " examples"]) -> Leaf:
        # Divide before adding, so that the sum does not overflow.
        shares = multiply(clipped, jnp.asarray(1 / len(clipped)))
        kept = jnp.where(spread_over_examples(good, shares), shares, 0)
        mean = jnp.sum(kept, axis=0)
        return jax.lax.pmean(mean, self.axis_name) if self.axis_name else mean
