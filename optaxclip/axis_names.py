"""Find the mesh axes of each leaf from the argument `axis_name`."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from optaxclip.arguments import check_named_axis
from optaxclip.leaves import AxisName, as_tuple, counted, is_axes, of_leaves
from optaxclip.mesh import MeshAxes, automatic_axes, varying_axes


def mesh_axes(
    spec: AxisName, tree: PyTree, dims: Sequence[tuple[int, ...]] | None = None
) -> tuple[MeshAxes, ...]:
    """Return the mesh axes over which each leaf that counts is sharded.

    Args:
      spec: a name, a tuple of names, a PartitionSpec, or a prefix tree of these.
      tree: the tree whose leaves are looked up.
      dims: the dimensions of each leaf that are measured together. Only a PartitionSpec
        tells which of them an axis shards; by default all dimensions count.

    Raises:
      ValueError: if JAX knows that a leaf varies over an axis that is not named.
    """
    leaves = counted(tree)
    dims = dims or [tuple(range(leaf.ndim)) for leaf in leaves]
    found = []
    for leaf, axes, own in zip(leaves, axis_names(spec, tree), dims, strict=True):
        every = names_along(axes, range(leaf.ndim))
        varying = varying_axes(leaf) if isinstance(leaf, Tracer) else frozenset()
        missed = varying - set(every)
        alone = axes == () and not isinstance(axes, PartitionSpec)
        if missed and not alone:
            raise ValueError(
                f"axis_name must name {sorted(missed)}, over which a leaf of shape "
                f"{leaf.shape} varies, not {axes!r}; give () to clip on each device by "
                "itself."
            )
        found.append(names_along(axes, own))
    return tuple(found)


def axes_apart(
    spec: AxisName, tree: PyTree, dims: Sequence[tuple[int, ...]]
) -> tuple[MeshAxes, ...]:
    """Return the mesh axes over which the groups of each leaf that counts are spread.

    They shard dimensions that are not measured together, which only a PartitionSpec
    tells.
    """
    leaves = counted(tree)
    found = []
    for leaf, axes, own in zip(leaves, axis_names(spec, tree), dims, strict=True):
        others = (d for d in range(leaf.ndim) if d not in own)
        known = isinstance(axes, PartitionSpec)
        found.append(names_along(axes, others) if known else ())
    return tuple(found)


def axis_names(spec: AxisName, tree: PyTree) -> list[Any]:
    """Return the entry of `axis_name` for each leaf that counts."""
    if _is_list_of_names(spec) and not isinstance(tree, list):
        raise ValueError(
            f"axis_name must be a tuple where it names several axes, not a list; give "
            f"{tuple(spec)}."
        )
    for axes in jax.tree.leaves(spec, is_leaf=_is_entry):
        if not isinstance(axes, PartitionSpec):
            check_named_axis("axis_name", axes)
    return of_leaves("axis_name", spec, tree, _is_entry)


def names_along(axes: AxisName, dims: Iterable[int]) -> MeshAxes:
    """Return the axes that shard some dimensions, which only a PartitionSpec tells.

    Its axes that are not manual are left to XLA.
    """
    if not isinstance(axes, PartitionSpec):
        return as_tuple(axes)
    entries = [axes[d] for d in dims if d < len(axes)]
    names = (name for entry in entries for name in as_tuple(entry))
    automatic = automatic_axes()
    return tuple(n for n in names if isinstance(n, str) and n not in automatic)


def _is_entry(node: Any) -> bool:
    return isinstance(node, PartitionSpec) or is_axes(node)


def _is_list_of_names(spec: Any) -> bool:
    return isinstance(spec, list) and all(isinstance(name, str) for name in spec)
