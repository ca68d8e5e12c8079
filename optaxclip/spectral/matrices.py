"""Leaves as stacked matrices: which dimensions are rows, and which are columns."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from optaxclip.groups import Groups, PerGroup
from optaxclip.leaves import dimensions, is_axes, of_leaves, shapes_of
from optaxclip.numbers import Leaf, Number
from optaxclip.spectral.linear_algebra import Matrices


@dataclass(frozen=True)
class Layout:
    """How a leaf is laid out as matrices that are no wider than tall.

    Attributes:
      shape: the shape of the leaf.
      stack: the dimensions that stack matrices.
      rows: the dimensions that make up the longer side.
      columns: the dimensions that make up the shorter side.
    """

    shape: tuple[int, ...]
    stack: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def _lengths(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.shape[d] for d in dims)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of matrices, rows and columns."""
        sides = (self.stack, self.rows, self.columns)
        return tuple(math.prod(self._lengths(side)) for side in sides)

    def matrices(self, leaf: Leaf) -> Matrices:
        """Convert a leaf to matrices."""
        moved = jnp.transpose(leaf, self.stack + self.rows + self.columns)
        return moved.reshape(self.sizes)

    def leaf(self, matrices: Matrices) -> Leaf:
        """Convert matrices back to a leaf."""
        order = self.stack + self.rows + self.columns
        back = [order.index(d) for d in range(len(order))]
        return jnp.transpose(matrices.reshape(self._lengths(order)), back)


def _layout(shape: tuple[int, ...], leading: int, axis: Any) -> Layout:
    stack = tuple(range(leading))
    inner = tuple(range(leading, len(shape)))
    given = inner[:-1] if axis is None else dimensions(axis, shape)
    inputs = tuple(d for d in inner if d in given)
    outputs = tuple(d for d in inner if d not in inputs)
    sides = sorted(
        (inputs, outputs), key=lambda dims: -math.prod(shape[d] for d in dims)
    )
    return Layout(shape, stack, *sides)


def like_leaves(groups: Groups, leaves: Iterable[Any]) -> PyTree:
    """Arrange one object per leaf in a tree like the groups."""
    return jax.tree.structure(groups.struct()).unflatten(leaves)


def per_matrix(groups: Groups, rows: list[Number]) -> PerGroup:
    """Convert one row per leaf, with one number per matrix, to per-group numbers."""
    shapes, tree = jax.tree.flatten(groups.struct())
    pairs = zip(rows, shapes, strict=True)
    return tree.unflatten(
        [row.reshape(group.shape).astype(group.dtype) for row, group in pairs]
    )


def layouts(groups: Groups, leading_axes: Any, axis: Any) -> list[Layout]:
    """Lay out each leaf as matrices.

    Args:
      groups: the leaves, where each matrix is a group.
      leading_axes: the number of leading dimensions that stack matrices, or a prefix
        tree.
      axis: the dimensions that are the inputs of a matrix, or a prefix tree; all but
        the last if None.
    """
    tree = like_leaves(groups, groups.leaves)
    given = 0 if leading_axes is None else leading_axes
    leading = of_leaves("leading_axes", given, tree)
    axes = of_leaves("axis", axis, tree, is_axes)
    return [
        _layout(shape, *each)
        for shape, *each in zip(shapes_of(tree), leading, axes, strict=True)
    ]


def unannotated(
    function: Callable[..., Any], leaf: Leaf, *others: Any, returns_leaf: bool
) -> Any:
    """Call a function of a leaf, letting XLA choose the sharding inside it.

    On a mesh with explicit axes, reshapes would otherwise need annotations.

    Args:
      function: the function.
      leaf: its first argument.
      others: its other arguments.
      returns_leaf: whether it returns a leaf, sharded like this one, and something
        else; otherwise all its results are replicated.
    """
    sharding = jax.typeof(leaf).sharding
    if not sharding.mesh.explicit_axes:
        return function(leaf, *others)
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    out = (sharding, replicated) if returns_leaf else replicated
    return jax.sharding.auto_axes(function, out_sharding=out)(leaf, *others)
