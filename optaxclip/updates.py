"""Check that updates can be clipped."""

from typing import Any

import jax
import jax.numpy as jnp

from optaxclip.sentences import shown


def check_updates(name: str, updates: Any) -> None:
    """Reject a tree that has leaves, but none with numbers that can be clipped."""
    leaves = jax.tree.leaves(updates)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        raise TypeError(
            f"{name} must be given numbers, not their shapes alone; hand over arrays, "
            "or call it in jax.eval_shape."
        )
    if leaves and not any(map(_is_inexact, leaves)):
        raise TypeError(
            f"{name} must be given floating-point numbers, not "
            f"{_kind(leaves[0])}; hand over the gradients, as floats."
        )
    _check_unique(updates)


def _is_inexact(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or isinstance(leaf, type):
        return isinstance(leaf, float | complex)
    return jnp.issubdtype(dtype, jnp.inexact)


def _kind(leaf: Any) -> str:
    """Describe a leaf that is not floating-point."""
    kind = f"the {type(leaf).__name__} " if isinstance(leaf, int | str) else ""
    return kind + shown(leaf)


def _check_unique(tree: Any) -> None:
    """Reject sparse arrays that may hold several numbers for the same place."""

    def is_sparse(node: Any) -> bool:
        return hasattr(node, "unique_indices") and hasattr(node, "indices")

    for node in jax.tree.leaves(tree, is_leaf=is_sparse):
        if is_sparse(node) and not node.unique_indices:
            raise ValueError(
                f"a {type(node).__name__} of shape {node.shape} may hold several "
                "numbers of one place, which cannot be measured one by one; call its "
                "sum_duplicates() first."
            )
