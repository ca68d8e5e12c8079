"""A leaf as stacked matrices: which of its dimensions are rows, and which columns."""

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
        """Tell how many matrices of how many rows and columns there are."""
        sides = (self.stack, self.rows, self.columns)
        return tuple(math.prod(self._lengths(side)) for side in sides)

    def matrices(self, leaf: Leaf) -> Matrices:
        """Give the leaf as matrices."""
        moved = jnp.transpose(leaf, self.stack + self.rows + self.columns)
        return moved.reshape(self.sizes)

    def leaf(self, matrices: Matrices) -> Leaf:
        """Give the matrices as a leaf."""
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
    """Put something for each leaf in the place where that stands in its tree."""
    return jax.tree.structure(groups.struct()).unflatten(leaves)


def per_matrix(groups: Groups, rows: list[Number]) -> PerGroup:
    """Take a row of numbers for each leaf, one a matrix, as numbers of the groups."""
    shapes, tree = jax.tree.flatten(groups.struct())
    pairs = zip(rows, shapes, strict=True)
    return tree.unflatten(
        [row.reshape(group.shape).astype(group.dtype) for row, group in pairs]
    )


def layouts(groups: Groups, leading_axes: Any, axis: Any) -> list[Layout]:
    """Lay out each leaf as matrices.

    Args:
      groups: the leaves, each matrix being a group.
      leading_axes: how many leading dimensions stack matrices, or a prefix tree.
      axis: the dimensions that make up the inputs of a matrix, all but the last if
        None, or a prefix tree.
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
    """Call a function of a leaf where XLA chooses how all between is sharded.

    On a mesh with explicit axes no reshape would do without annotations.

    Args:
      function: what to call.
      leaf: its first argument.
      others: its further arguments.
      returns_leaf: whether it gives a leaf, sharded as this one, and something else;
        otherwise all of what it gives is replicated.
    """
    sharding = jax.typeof(leaf).sharding
    if not sharding.mesh.explicit_axes:
        return function(leaf, *others)
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    out = (sharding, replicated) if returns_leaf else replicated
    return jax.sharding.auto_axes(function, out_sharding=out)(leaf, *others)
