"""Find the mesh axes of each leaf from the argument `axis_name`."""

from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from optaxclip.arguments import check_named_axis
from optaxclip.leaves import AxisName, as_tuple, counted, is_axes, of_leaves
from optaxclip.mesh import varying_axes


def mesh_axes(spec: AxisName, tree: PyTree) -> tuple[tuple[str, ...], ...]:
    """Return the mesh axes over which each leaf that counts is sharded.

    Raises:
      ValueError: if JAX knows that a leaf varies over an axis that is not named.
    """
    spec = jax.tree.map(_axes_of, spec, is_leaf=_is_spec)
    if _is_list_of_names(spec) and not isinstance(tree, list):
        raise ValueError(
            f"axis_name must be a tuple where it names several axes, not a list; give "
            f"{tuple(spec)}."
        )
    for axes in jax.tree.leaves(spec, is_leaf=is_axes):
        check_named_axis("axis_name", axes)
    named = of_leaves("axis_name", spec, tree, is_axes)
    for leaf, axes in zip(counted(tree), named, strict=True):
        varying = varying_axes(leaf) if isinstance(leaf, Tracer) else frozenset()
        missed = varying - set(as_tuple(axes))
        if missed and axes != ():
            raise ValueError(
                f"axis_name must name {sorted(missed)}, over which a leaf of shape "
                f"{leaf.shape} varies, not {axes!r}; give () to clip on each device by "
                "itself."
            )
    return tuple(as_tuple(axes) for axes in named)


def _is_spec(node: Any) -> bool:
    return is_axes(node) or isinstance(node, PartitionSpec)


def _axes_of(spec: Any) -> Any:
    """Return the axes of a PartitionSpec, and anything else unchanged."""
    if not isinstance(spec, PartitionSpec):
        return spec
    entries = (e if isinstance(e, tuple) else (e,) for e in spec)
    names = tuple(name for e in entries for name in e if isinstance(name, str))
    return names or None  # With an empty tuple, each device would clip by itself.


def _is_list_of_names(spec: Any) -> bool:
    return isinstance(spec, list) and all(isinstance(name, str) for name in spec)
