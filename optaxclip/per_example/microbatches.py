"""Batches in chunks, which are looped over."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optaxclip.per_example.batches import Batch, differing


def chunked(x: Any, size: int) -> Any:
    """Put what has the examples in front into chunks of a size."""
    return jnp.moveaxis(x.reshape(size, -1, *x.shape[1:]), 1, 0)


def joined(x: Any) -> Any:
    """Put chunks of `chunked` together again."""
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def in_microbatches(
    in_axes: tuple[Any, ...], batch: Batch, microbatch_size: int
) -> tuple[Batch, Callable[[Batch], Batch]]:
    """Cut the examples into chunks, to be looped over beside what all share.

    A chunk takes examples at equal distances, so that each device of a mesh has as many
    of every chunk as of the batch.
    """
    leaves, treedef = jax.tree.flatten(batch)
    split = differing(in_axes, batch)
    chunks = [
        chunked(x, microbatch_size) for x, cut in zip(leaves, split, strict=True) if cut
    ]

    def together(chunk: Any) -> Batch:
        cut = iter(chunk)
        return jax.tree.unflatten(
            treedef,
            [next(cut) if s else x for x, s in zip(leaves, split, strict=True)],
        )

    return tuple(chunks), together
