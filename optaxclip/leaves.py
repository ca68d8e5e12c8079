"""Which leaves of a tree count, and the entry of a prefix tree for each of them."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import PyTree

from optaxclip.arguments import not_static
from optaxclip.mesh import varying_axes
from optaxclip.numbers import Leaf

AxisName = Any


def counts(leaf: Any) -> bool:
    """Return whether a leaf is measured and clipped: nonempty and floating-point."""
    if isinstance(leaf, float | complex):
        return True
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and _is_inexact(dtype) and leaf.size > 0


@functools.cache  # JAX does not cache this, and it runs for every leaf.
def _is_inexact(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


def is_one_leaf(tree: PyTree) -> bool:
    """Return whether a tree is a single number or array, not a container."""
    structure = jax.tree.structure(tree)
    return structure.num_nodes == structure.num_leaves == 1


def counted(tree: PyTree) -> list[Any]:
    """Return the leaves that count, as arrays, or as ``ShapeDtypeStruct`` if given."""
    arrays = jax.Array | jax.ShapeDtypeStruct
    leaves = [leaf for leaf in jax.tree.leaves(tree) if counts(leaf)]
    return [x if isinstance(x, arrays) else jnp.asarray(x) for x in leaves]


def structure_of(tree: PyTree) -> Any:
    """Return the structure of a tree without the leaves that do not count."""
    return jax.tree.structure(
        jax.tree.map(lambda x: x if counts(x) else optax.MaskedNode(), tree)
    )


def filled(tree: PyTree, leaves: Iterable[Leaf]) -> PyTree:
    """Replace the leaves that count by others, in the order of the tree."""
    given = iter(leaves)
    return jax.tree.map(lambda x: next(given) if counts(x) else x, tree)


def zeros_for(tree: PyTree, dtype_of: Callable[[Leaf], DTypeLike]) -> PyTree:
    """Return zeros for each leaf that counts, and ``MaskedNode`` for the others."""

    def zeros(leaf: Any) -> Any:
        if not counts(leaf):
            return optax.MaskedNode()
        (leaf,) = counted(leaf)
        return jnp.zeros_like(leaf, dtype_of(leaf))

    return jax.tree.map(zeros, tree)


def is_axes(spec: Any) -> bool:
    """Return whether `spec` is one entry: None, or a tuple of axes or dimensions."""
    return spec is None or (
        isinstance(spec, tuple)
        and all(isinstance(s, str | int | np.integer) for s in spec)
    )


def of_leaves(
    argument: str,
    spec: Any,
    tree: PyTree,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    tree_name: str = "the updates",
) -> list[Any]:
    """Look up the entry of a prefix tree for each leaf that counts.

    Entries are found by name, so a dict can stand for a module or state of any library
    with the same names.

    Args:
      argument: the name of `spec` in error messages.
      spec: one entry for all leaves, or a prefix tree of entries.
      tree: the tree whose leaves are looked up.
      is_leaf: recognizes entries that are themselves trees.
      tree_name: the name of `tree` in error messages.

    Returns:
      One entry per leaf that counts.

    Raises:
      ValueError: if a leaf that counts has no entry.
    """
    given = jax.tree_util.tree_leaves_with_path(spec, is_leaf=is_leaf)
    entries = {names_of(path): entry for path, entry in given}
    if () in entries:
        return [entries[()]] * len(shapes_of(tree))
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not counts(leaf):
            continue
        names = names_of(path)
        prefixes = [names[:n] for n in range(len(names) + 1)]
        known = [entries[prefix] for prefix in prefixes if prefix in entries]
        if not known:
            below = any(entry[: len(names)] == names for entry in entries)
            fault = "a tree" if below else "no entry"
            remedy = "give one value there" if below else "add one"
            raise ValueError(
                f"{argument} must be one value or a prefix tree of {tree_name}, and "
                f"has {fault} for {'/'.join(names) or 'their one leaf'}; {remedy}."
            )
        found.append(known[0])
    return found


def names_of(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the names along the path to a leaf, for any kind of tree."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def as_tuple(spec: Any) -> tuple:
    """Wrap a single entry in a tuple; None is the empty tuple."""
    return () if spec is None else spec if isinstance(spec, tuple) else (spec,)


def dimensions(axis: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Normalize `axis` to sorted, nonnegative dimensions.

    Raises:
      TypeError: if `axis` is traced.
      ValueError: if there is no such dimension.
    """
    dims = as_tuple(axis)
    for dim in dims:
        if isinstance(dim, jax.Array):
            raise not_static("axis", "int", dim)
    rank = len(shape)
    if not all(isinstance(d, int | np.integer) and -rank <= d < rank for d in dims):
        raise ValueError(
            f"axis must name dimensions of a leaf of shape {shape}, not {axis!r}; "
            "give a prefix tree of axes where leaves differ."
        )
    return tuple(sorted({int(d) % rank for d in dims}))


def trailing_dimensions(shape: tuple[int, ...], leading: Any) -> tuple[int, ...]:
    """Return the dimensions that follow the leading ones.

    Raises:
      TypeError: if `leading` is traced.
      ValueError: if the leaf has fewer than `leading` dimensions.
    """
    if isinstance(leading, jax.Array):
        raise not_static("leading_axes", "int", leading)
    if not isinstance(leading, int | np.integer) or not 0 <= leading <= len(shape):
        raise ValueError(
            f"leading_axes must lie between 0 and {len(shape)} for a leaf of shape "
            f"{shape}, not {leading!r}; give a prefix tree where leaves differ."
        )
    return tuple(range(int(leading), len(shape)))


def mesh_axes(spec: AxisName, tree: PyTree) -> tuple[tuple[str, ...], ...]:
    """Return the mesh axes over which each leaf that counts is sharded.

    Raises:
      ValueError: if JAX knows that a leaf varies over an axis that is not named.
    """
    named = of_leaves("axis_name", spec, tree, is_axes)
    for leaf, axes in zip(counted(tree), named, strict=True):
        varying = varying_axes(leaf) if isinstance(leaf, Tracer) else frozenset()
        missed = varying - set(as_tuple(axes))
        if missed and axes != ():
            raise ValueError(
                f"axis_name must name {sorted(missed)}, over which a leaf of shape "
                f"{leaf.shape} varies, not {spec!r}; give () to clip on each device "
                "by itself."
            )
    return tuple(as_tuple(axes) for axes in named)


def shapes_of(tree: PyTree) -> tuple[tuple[int, ...], ...]:
    """Return the shape of each leaf that counts."""
    return tuple(jnp.shape(x) for x in jax.tree.leaves(tree) if counts(x))


def beside(name: str, updates: PyTree, params: PyTree | None) -> PyTree:
    """Return the parameters of the updates that count, and None for the others.

    Args:
      name: the name of the transformation in error messages.
      updates: the updates.
      params: the parameters, or None if the user gave none.

    Raises:
      ValueError: if there are none, or if they do not match the updates.
    """
    if params is None:
        raise ValueError(f"{name} needs params; call update(updates, state, params).")

    def matching(update: Any, param: Any) -> Any:
        if not counts(update):
            return None
        within = jax.tree.structure(param)
        if not (counts(param) or jax.tree_util.treedef_is_leaf(within)):
            raise ValueError(f"they have {within} where the updates have one array.")
        return param

    try:
        matched = jax.tree.map(matching, updates, params, is_leaf=lambda x: x is None)
    except ValueError as error:
        raise ValueError(
            f"{name} needs params of the same structure as the updates; {error}"
        ) from error
    wanted, found = list(shapes_of(updates)), list(shapes_of(matched))
    if found != wanted:
        raise ValueError(
            f"{name} needs params of the same shapes as the updates, which are "
            f"{wanted}, not {found}."
        )
    return matched
