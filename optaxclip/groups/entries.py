"""The entries of a report: numbers of all leaves in a vector, and what each is of."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey

from optaxclip.mesh import on_one_device
from optaxclip.numbers import Number
from optaxclip.paths import names_of


class Entry(NamedTuple):
    """What one entry of a report is of, or several of one leaf.

    Attributes:
      name: the path of a leaf, or a label.
      stack: the shape in which tensors of their own are stacked in the leaf.
      is_path: whether the name is a path, and no label.
    """

    name: str
    stack: tuple[int, ...] = ()
    is_path: bool = True

    def names(self) -> Iterator[str]:
        """Name each tensor by its place in the stack, or what is not stacked."""
        for index in np.ndindex(self.stack):
            yield "/".join(filter(None, [self.name, *map(str, index)]))


def paths_of(tree: Any) -> list[str]:
    """Name the leaves of a tree by their paths."""
    return [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _name(path: tuple[Any, ...]) -> str:
    # Flax NNX keeps each array as the value of a variable, at init but not in updates.
    inside = path[-1:] == (GetAttrKey("value"),)
    return "/".join(names_of(path[:-1] if inside else path))


def packed(arrays: list[Number], shapes: list[tuple[int, ...]]) -> Number:
    """Put the numbers of all leaves in one vector."""
    rows = [
        _gathered(jnp.broadcast_to(x, shape).ravel())
        for x, shape in zip(arrays, shapes, strict=True)
    ]
    return jnp.concatenate(rows)


def _gathered(row: Number) -> Number:
    """Bring a short row together by a sum, where it may be sharded.

    Adding up is what all else in a measurement does across a mesh, and joins it.
    """
    if row.size == 1 or on_one_device(row):
        return row
    kept = jnp.where(jnp.eye(row.size, dtype=bool), row[:, None], 0)
    return jnp.sum(kept, axis=0)
