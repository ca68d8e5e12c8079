"""The entries of a report: the numbers of all leaves in one vector, with names."""

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
    """The name of one entry of a report, or of all entries that belong to one leaf.

    Attributes:
      name: the path of a leaf, or a label.
      stack: the shape in which the leaf stacks separate tensors.
      is_path: whether the name is a path, not a label.
    """

    name: str
    stack: tuple[int, ...] = ()
    is_path: bool = True

    def names(self) -> Iterator[str]:
        """Yield the name of each entry; tensors in a stack get their index appended."""
        for index in np.ndindex(self.stack):
            yield "/".join(filter(None, [self.name, *map(str, index)]))


def paths_of(tree: Any) -> list[str]:
    """Return the paths of all leaves of a tree, as names."""
    return [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _name(path: tuple[Any, ...]) -> str:
    # In Flax NNX, arrays are values of variables in the init, but not in updates.
    inside = path[-1:] == (GetAttrKey("value"),)
    return "/".join(names_of(path[:-1] if inside else path))


def packed(arrays: list[Number], shapes: list[tuple[int, ...]]) -> Number:
    """Concatenate the numbers of all leaves into one vector."""
    rows = [
        _gathered(jnp.broadcast_to(x, shape).ravel())
        for x, shape in zip(arrays, shapes, strict=True)
    ]
    return jnp.concatenate(rows)


def _gathered(row: Number) -> Number:
    """Gather a short row by a sum if it may be sharded.

    The other collectives of a measurement are sums, too, and XLA can merge them.
    """
    if row.size == 1 or on_one_device(row):
        return row
    kept = jnp.where(jnp.eye(row.size, dtype=bool), row[:, None], 0)
    return jnp.sum(kept, axis=0)
