"""Batches in chunks, which are looped over."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optaxclip.per_example.batches import Batch, differing


def chunked(x: Any, size: int) -> Any:
    """Put what has the examples in front into chunks of a size.

    A chunk takes examples at equal distances, so that each device of a mesh has as many
    of every chunk as of the batch.
    """
    return jnp.moveaxis(x.reshape(size, -1, *x.shape[1:]), 1, 0)


def joined(x: Any) -> Any:
    """Put chunks of `chunked` together again."""
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def differences(
    in_axes: tuple[Any, ...], batch: Batch
) -> tuple[list[Any], Callable[[Sequence[Any]], Batch]]:
    """Take what differs between examples out of a batch; also return what puts back."""
    leaves, treedef = jax.tree.flatten(batch)
    split = differing(in_axes, batch)

    def together(own: Sequence[Any]) -> Batch:
        given = iter(own)
        pairs = zip(leaves, split, strict=True)
        return jax.tree.unflatten(treedef, [next(given) if s else x for x, s in pairs])

    return [x for x, s in zip(leaves, split, strict=True) if s], together
