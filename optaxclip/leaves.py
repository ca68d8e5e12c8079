"""Which leaves of a tree count, and the entry of a prefix tree for each of them."""

import functools
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import PyTree

from optaxclip.arguments import is_static_int, not_static
from optaxclip.numbers import Leaf
from optaxclip.paths import ByPath, check_matched, names_of
from optaxclip.sentences import shown

AxisName = Any


def counts(leaf: Any) -> bool:
    """Return whether a leaf is measured and clipped: nonempty and floating-point."""
    if isinstance(leaf, float | complex):
        return True
    dtype = None if isinstance(leaf, type) else getattr(leaf, "dtype", None)
    return dtype is not None and _is_inexact(dtype) and 0 not in leaf.shape


@functools.cache  # JAX does not cache this, and it runs for every leaf.
def _is_inexact(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


def is_one_leaf(tree: PyTree) -> bool:
    """Return whether a tree is a single number or array, not a container."""
    structure = jax.tree.structure(tree)
    return structure.num_nodes == structure.num_leaves == 1


def counted(tree: PyTree) -> list[Any]:
    """Return the leaves that count, as arrays, or as ``ShapeDtypeStruct`` if given."""
    return [_as_array(leaf) for leaf in jax.tree.leaves(tree) if counts(leaf)]


def _as_array(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return leaf
    try:
        return jnp.asarray(leaf)
    except (TypeError, ValueError):
        raise TypeError(
            f"a tree must hold numbers that JAX can hold, not {shown(leaf)} in a "
            f"{type(leaf).__name__}; make it an array of float32."
        ) from None


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
      ValueError: if a leaf that counts has no entry, or an entry no place.
    """
    spec = spec(tree) if isinstance(spec, ByPath) else spec
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
    check_matched(argument, entries, tree, tree_name)
    return found


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
    known = all(is_static_int(d) and -rank <= d < rank for d in dims)
    named = sorted({int(d) % rank for d in dims}) if known else []
    if len(named) < len(dims):
        raise ValueError(
            f"axis must name dimensions of a leaf of shape {shape}, each once, not "
            f"{reprlib.repr(axis)}; give a prefix tree of axes where leaves differ."
        )
    return tuple(named)


def trailing_dimensions(shape: tuple[int, ...], leading: Any) -> tuple[int, ...]:
    """Return the dimensions that follow the leading ones.

    Raises:
      TypeError: if `leading` is traced.
      ValueError: if the leaf has fewer than `leading` dimensions.
    """
    if isinstance(leading, jax.Array):
        raise not_static("leading_axes", "int", leading)
    if not is_static_int(leading) or not 0 <= leading <= len(shape):
        raise ValueError(
            f"leading_axes must be an int of 0 to {len(shape)} for a leaf of shape "
            f"{shape}, not {reprlib.repr(leading)}; give a prefix tree where leaves "
            "differ."
        )
    return tuple(range(int(leading), len(shape)))


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
            raise ValueError("a tree in place of an array")
        return param

    try:
        matched = jax.tree.map(matching, updates, params, is_leaf=lambda x: x is None)
    except ValueError:
        raise ValueError(
            f"{name} needs params of the same structure as the updates, and "
            f"{_difference_of(updates, params)}; hand over the parameters that these "
            "are the updates of."
        ) from None
    wanted, found = shapes_of(updates), shapes_of(matched)
    if len(found) != len(wanted):
        raise ValueError(
            f"{name} needs params of the same shapes as the updates, and has "
            f"floating-point numbers in {len(found)} leaves, not {len(wanted)}."
        )
    given = jax.tree_util.tree_leaves_with_path(matched)
    for (path, _), shape, other in zip(given, wanted, found, strict=True):
        if shape != other:
            raise ValueError(
                f"{name} needs params of the same shapes as the updates, not {other} "
                f"beside {shape} at {'/'.join(names_of(path)) or 'the one leaf'}."
            )
    return matched


def _difference_of(updates: PyTree, params: PyTree) -> str:
    """Name one leaf that only one of two trees has."""
    first, second = (
        {names_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (updates, params)
    )
    lone = sorted(first ^ second)
    if not lone:
        return f"these are {shown(updates)}, those {shown(params)}"
    if not lone[0]:
        return "only one of the two is a single leaf"
    return f"only one of the two has a leaf {'/'.join(lone[0])}"
