"""Bounds on parameters by the range of their initialization."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from optaxclip import norms, responses, scopes
from optaxclip.axis_names import axis_names, names_along
from optaxclip.clipper import clipper
from optaxclip.groups import PerGroup, map_groups
from optaxclip.leaves import AxisName, counts, dimensions, is_axes, of_leaves
from optaxclip.numbers import Number
from optaxclip.roles import check_name
from optaxclip.thresholds import Limit, Observation, Threshold, as_threshold
from optaxclip.weights.bounds import bound_weights


def _home(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the path of the subtree that contains a leaf.

    Flax NNX may store the array of a parameter as the value of a variable.
    """
    is_value = path and path[-1] == jax.tree_util.GetAttrKey("value")
    return path[:-2] if is_value else path[:-1]


def _fan_ins(tree: PyTree, axis: Any, axis_name: AxisName) -> list[int | None]:
    """Return the fan-in of each leaf that counts on the whole mesh, or None."""
    paths = [
        (_home(path), jnp.shape(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if counts(leaf)
    ]
    axes = of_leaves("axis", axis, tree, is_axes)
    own: list[int | None] = []
    largest: dict[tuple[Any, ...], int] = {}
    for (home, shape), dims, names in zip(
        paths, axes, axis_names(axis_name, tree), strict=True
    ):
        if len(shape) < 2:
            own.append(None)
            continue
        inputs = range(len(shape) - 1) if dims is None else dimensions(dims, shape)
        fan_in = math.prod(shape[d] for d in inputs) * _shards(names, inputs, shape)
        own.append(fan_in)
        largest[home] = max(largest.get(home, 0), fan_in)
    pairs = zip(own, paths, strict=True)
    return [fan_in or largest.get(home) for fan_in, (home, _) in pairs]


def _shards(names: Any, inputs: Iterable[int], shape: tuple[int, ...]) -> int:
    """Return over how many devices the inputs of a kernel are sharded."""
    if names and not isinstance(names, PartitionSpec):
        raise ValueError(
            "axis_name must be a PartitionSpec for kernels of clip_weights_to_init, "
            f"which tells whether their inputs are sharded, not {names!r} for one of "
            f"shape {shape}; give a tree of PartitionSpecs."
        )
    return math.prod(map(jax.lax.axis_size, names_along(names, inputs)))


@dataclass(frozen=True)
class _PerRootFanIn:
    """A limit divided by the root of each leaf's fan-in; no limit without a fan-in."""

    scale: Threshold
    fan_ins: list[int | None]

    def init(self, groups: Any) -> Any:
        return self.scale.init(groups)

    def update(self, seen: Observation, state: Any) -> tuple[PerGroup, Any]:
        scale, state = self.scale.update(seen, state)

        def limit(root: Number, scale: Number) -> Number:
            bound = scale / root.astype(scale.dtype)
            return jnp.where((root == 0) & ~jnp.isnan(scale), jnp.inf, bound)

        roots = [jnp.asarray((fan_in or 0) ** 0.5) for fan_in in self.fan_ins]
        roots = jax.tree.structure(seen.magnitude).unflatten(roots)
        return map_groups(limit, roots, scale), state


def clip_weights_to_init(
    kappa: Limit,
    *,
    axis: Any = None,
    axis_name: AxisName = None,
    name: str = "clip_weights_to_init",
) -> optax.GradientTransformationExtraArgs:
    r"""Keep every parameter within a multiple of the range of its initialization.

    $$w_i \leftarrow \min(\max(w_i, -\kappa / \sqrt n), \kappa / \sqrt n)$$

    where n is the fan-in, the number of inputs of a unit. A kernel, with two or more
    dimensions, has its own fan-in. A bias, scale or other vector takes that of the
    kernel in the same subtree, or the largest of several. Without such a kernel, as in
    normalization layers, it is not bounded. Place it last in a chain. Needs ``params``.

    Args:
      kappa: the multiple κ >= 0, tuned between 1 and 3 in the paper: a number, an
        array, a schedule of the clipper's own step, or a threshold.
      axis: the dimensions that are the inputs of a kernel: an int, a tuple, or a
        prefix tree of these; all but the last by default, since JAX stores kernels as
        ``(..., inputs, outputs)``. A kernel of attention heads
        ``(inputs, heads, features)`` needs ``axis=0``.
      axis_name: how leaves are sharded inside ``jax.shard_map``: a prefix tree of
        PartitionSpecs, which tell over how many devices the fan-in is spread. With
        ``()`` it is that of the device's own kernel.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases. These and the report
      are those of the parameters.

    Raises:
      TypeError: if `kappa` has the wrong type.
      ValueError: if `kappa` is negative or NaN, or a kernel has no dimension `axis`; in
        the update, if ``params`` do not match the updates, or `axis_name` is the name
        of an axis for a kernel.

    Examples:
      >>> sgd = optax.chain(optax.sgd(0.1), optaxclip.clip_weights_to_init(1.0))
      >>> params = {"kernel": jnp.full((4, 1), 2.0), "bias": jnp.full(1, -2.0)}
      >>> updates = jax.tree.map(jnp.zeros_like, params)
      >>> updates, _ = sgd.update(updates, sgd.init(params), params)
      >>> optax.apply_updates(params, updates)["bias"]
      Array([-0.5], dtype=float32)

    References:
      Elsayed et al., Weight clipping for deep continual and reinforcement learning,
      2024, arXiv:2407.01704.

    Note:
      In the authors' code a bias takes the fan-in of whatever parameter was created
      before it. Here the order does not matter.
    """
    scale = as_threshold(kappa, "kappa")
    check_name(name)

    def bound(tree: PyTree, names: AxisName) -> optax.GradientTransformationExtraArgs:
        limits = _PerRootFanIn(scale, _fan_ins(tree, axis, names))
        scope = scopes.element(axis_name=axis_name)
        clip = clipper(scope, norms.linf, limits, responses.clamp, name=name)
        return bound_weights(clip, name=name)

    def init(params: PyTree) -> Any:
        # The state is often made outside of the mapped function, which has the axes.
        return bound(params, None).init(params)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, Any]:
        return bound(updates, axis_name).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)
