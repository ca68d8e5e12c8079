"""Clip trees directly, without an Optax transformation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from optaxclip import scopes
from optaxclip.arguments import check_limit, check_magnitude
from optaxclip.leaves import AxisName, filled
from optaxclip.norms import Magnitude, Norm, as_norm, l2
from optaxclip.norms.norm import measure, unscaled
from optaxclip.numbers import as_number
from optaxclip.responses import shrink
from optaxclip.responses.apply import apply_response, nonnegative
from optaxclip.updates import check_updates


def tree_norm(
    tree: PyTree, ord: float | Norm = l2, *, axis_name: AxisName = None
) -> Float[Array, ""]:
    r"""Compute the norm of a whole tree, $(\sum_i |x_i|^p)^{1/p}$, in at least float32.

    Args:
      tree: any tree; leaves that are not floating-point numbers do not count, unless
        there are integers alone.
      ord: the order p, at least 1 and maybe infinity, or a norm.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.

    Returns:
      The norm, in float32 or the widest dtype of the leaves.

    Raises:
      TypeError: if `ord` is not a number or norm, or `tree` holds no numbers.
      ValueError: if `ord` is below 1.

    Examples:
      >>> optaxclip.tree_norm({"w": jnp.array([3.0, 4.0], jnp.bfloat16)})
      Array(5., dtype=float32)
    """
    norm, leaves = as_norm(ord), jax.tree.leaves(tree)
    if leaves and all(map(_is_integer, leaves)):
        tree = jax.tree.map(as_number, tree)
    check_updates("tree_norm", tree)
    return _measure(tree, norm, axis_name).plain


def shrink_tree(
    tree: PyTree,
    max_norm: ArrayLike,
    norm: ArrayLike | None = None,
    *,
    axis_name: AxisName = None,
) -> tuple[PyTree, Float[Array, ""]]:
    r"""Scale a whole tree down to a maximum norm, and return its original norm too.

    $$x \leftarrow x \cdot \min(1, c / \lVert x \rVert)$$

    Args:
      tree: any tree; leaves that are not floating-point stay as they are.
      max_norm: the largest norm allowed, c; a traced negative number acts as 0.
      norm: the norm of the tree, if known; otherwise the L2 norm is computed. If it is
        infinite, NaN, or negative (and traced), the tree becomes NaN unless `max_norm`
        is infinite.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.

    Returns:
      The tree, with the same structure, shapes and dtypes, and its original norm.

    Raises:
      TypeError: if `max_norm` or `norm` is not a number, or `tree` has leaves of which
        none is of floating point.
      ValueError: if `max_norm` is known now and negative or NaN, or `norm` is known
        now and negative, or is several numbers.

    Examples:
      >>> tree, norm = optaxclip.shrink_tree({"w": jnp.array([3.0, 4.0])}, 1.0)
      >>> tree["w"], norm
      (Array([0.6, 0.8], dtype=float32), Array(5., dtype=float32))
    """
    check_limit(max_norm, "max_norm")
    check_updates("shrink_tree", tree)
    if norm is None:
        size = _measure(tree, l2, axis_name)
    else:
        check_magnitude(norm, "norm")
        known = as_number(norm)
        known = jnp.where(known < 0, jnp.nan, known)
        size = unscaled(known)
    groups = scopes.whole(axis_name=axis_name).arrange(tree)
    limit = nonnegative(as_number(max_norm), size.value)
    leaves = apply_response(shrink, groups, size, limit)
    return filled(tree, leaves), size.plain


def _is_integer(leaf: Any) -> bool:
    dtype = None if isinstance(leaf, type) else getattr(leaf, "dtype", None)
    is_array = dtype is not None and jnp.issubdtype(dtype, jnp.integer)
    return is_array or isinstance(leaf, int)


def _measure(tree: PyTree, norm: Norm, axis_name: AxisName) -> Magnitude:
    return measure(norm, scopes.whole(axis_name=axis_name).arrange(tree))
