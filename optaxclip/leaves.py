"""Which leaves of a tree count, and what a prefix tree says of each."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from optaxclip.magnitudes import Leaf

AxisName = Any


def counts(leaf: Any) -> bool:
    """Tell whether a leaf holds numbers that are measured and clipped."""
    if isinstance(leaf, float | complex):
        return True
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact) and leaf.size > 0


def counted(tree: PyTree) -> list[Leaf]:
    """Give the leaves that count, as arrays."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if counts(leaf)]
    return [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in leaves]


@dataclass(frozen=True)
class _Box:
    """Keeps what a prefix tree says of a leaf from being taken for more tree."""

    content: Any


def _is_tuple_of_names(spec: Any) -> bool:
    return spec is None or (
        isinstance(spec, tuple) and all(isinstance(s, str | int) for s in spec)
    )


def of_leaves(argument: str, spec: Any, tree: PyTree) -> list[Any]:
    """Say of each leaf that counts what a prefix tree says of it."""
    boxed = jax.tree.map(_Box, spec, is_leaf=_is_tuple_of_names)
    try:
        boxes = jax.tree.leaves(jax.tree.broadcast(boxed, tree))
    except ValueError as error:
        raise ValueError(
            f"{argument} must be one value or a prefix tree of the updates: {error}"
        ) from error
    leaves = jax.tree.leaves(tree)
    return [b.content for b, x in zip(boxes, leaves, strict=True) if counts(x)]


def as_tuple(spec: Any) -> tuple:
    """Take None as no entry, and a single entry as a tuple of it."""
    return () if spec is None else spec if isinstance(spec, tuple) else (spec,)


def mesh_axes(spec: AxisName, tree: PyTree) -> tuple[tuple[str, ...], ...]:
    """Say of each leaf that counts over which mesh axes it is spread."""
    return tuple(as_tuple(axes) for axes in of_leaves("axis_name", spec, tree))


def shapes_of(tree: PyTree) -> tuple[tuple[int, ...], ...]:
    """Give the shape of each leaf that counts."""
    return tuple(jnp.shape(x) for x in jax.tree.leaves(tree) if counts(x))
