"""Batches of examples: check them, and split their random keys."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from optaxclip.mesh import on_its_mesh, vary, varying_axes

Batch = tuple[PyTree, ...]


def arrays_of(tree: PyTree) -> list[Any]:
    """Return the leaves that are traced, which a bool or a string is not."""
    return [x for x in jax.tree.leaves(tree) if hasattr(x, "dtype")]


def _is_key(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _each_leaf(
    visit: Callable[[int, str, Any], Any], in_axes: Any, argument: PyTree, name: str
) -> PyTree:
    """Visit the leaves of an argument that have an axis of examples."""

    def below(above: Any, axis: int | None, part: PyTree) -> PyTree:
        if axis is None:
            return part
        start = name + jax.tree_util.keystr(above)
        return jax.tree.map_with_path(
            lambda path, x: visit(axis, start + jax.tree_util.keystr(path), x), part
        )

    return jax.tree.map_with_path(below, in_axes, argument, is_leaf=lambda a: a is None)


def each_leaf(
    visit: Callable[[int, str, Any], Any], in_axes: tuple[Any, ...], batch: Batch
) -> Batch:
    """Visit the leaves of all arguments that have an axis of examples."""
    pairs = zip(in_axes, batch, strict=True)
    return tuple(_each_leaf(visit, axes, argument, "") for axes, argument in pairs)


def axes_of(in_axes: Any, batch: Batch, named: dict[str, Any]) -> tuple[Any, ...]:
    """Return the axes of each argument after the parameters, and of the named ones.

    What has a name is batched as in ``jax.vmap``: arrays along axis 0.
    """
    if not batch and not named:
        raise ValueError(
            "a batch is missing; call the function with the parameters and at least "
            "one batch of examples."
        )
    for axis in jax.tree.leaves(in_axes):
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
            raise TypeError(
                "in_axes must hold ints, or None for what all examples share, not "
                f"{axis!r}."
            )
    if isinstance(in_axes, list | tuple):
        if len(in_axes) != len(batch):
            raise ValueError(
                f"in_axes must have an entry for each of the {len(batch)} arguments "
                f"after params, not {len(in_axes)}."
            )
        axes = tuple(in_axes)
    else:
        axes = (in_axes,) * len(batch)
    for position, (part, argument) in enumerate(zip(axes, batch, strict=True)):
        if not _is_prefix(part, argument):
            raise ValueError(
                "in_axes must have an int, None or a prefix tree for each argument, "
                f"but {part!r} does not fit batch argument {position + 1} of "
                f"structure {jax.tree.structure(argument)}; give each part an axis."
            )
    return *axes, jax.tree.map(lambda x: 0 if hasattr(x, "dtype") else None, named)


def _is_prefix(in_axes: Any, argument: PyTree) -> bool:
    """Return whether axes are a prefix tree of an argument."""
    try:
        jax.tree.map(lambda *_: None, in_axes, argument, is_leaf=lambda a: a is None)
    except ValueError:
        return False
    return True


def number_of_examples(in_axes: tuple[Any, ...], batch: Batch) -> int:
    """Count the examples; all arguments must agree, of which the last have names."""
    sizes: dict[str, int] = {}
    raw_keys: list[str] = []

    def visit(axis: int, name: str, x: Any) -> None:
        if _is_key(x) and x.ndim == 0:
            return
        if not -jnp.ndim(x) <= axis < jnp.ndim(x):
            raise ValueError(
                f"{name} must have its examples along axis {axis}, but has shape "
                f"{jnp.shape(x)}; give None in in_axes for what all examples share."
            )
        sizes[name] = jnp.shape(x)[axis]
        if jnp.shape(x) == (2,) and getattr(x, "dtype", None) == jnp.uint32:
            raw_keys.append(name)

    titles = [f"batch argument {i + 1}" for i in range(len(batch) - 1)] + ["argument"]
    for title, axes, argument in zip(titles, in_axes, batch, strict=True):
        _each_leaf(visit, axes, argument, title)
    if not sizes:
        raise ValueError(
            "in_axes must name an axis of examples for at least one argument; none "
            "of the arguments after params has one."
        )
    number = next(iter(sizes.values()))
    for name, count in sizes.items():
        if count != number and raw_keys:
            raise ValueError(
                f"{raw_keys[0]} of two uint32 looks like an old-style random key, "
                "which cannot be told from two examples; hand over a "
                "jax.random.key, which is split."
            )
        if count != number:
            first = next(iter(sizes))
            raise ValueError(
                f"{name} has {count} examples, but {first} has {number}; all "
                "arguments of a batch must have the same number."
            )
    return number


def examples_first(
    in_axes: tuple[Any, ...], batch: Batch, number: int, fold: Sequence[str] = ()
) -> tuple[tuple[Any, ...], Batch]:
    """Move the examples to axis 0, and split a single key into one per example."""

    def visit(axis: int, name: str, x: Any) -> Any:
        if _is_key(x) and x.ndim == 0:
            for mesh_axis in fold:
                x = jax.random.fold_in(x, jax.lax.axis_index(mesh_axis))
            return jax.random.split(x, number)
        return jnp.moveaxis(jnp.asarray(x), axis, 0)

    moved = each_leaf(visit, in_axes, batch)
    zero = jax.tree.map(lambda _: 0, in_axes)
    return zero, moved


def examples_of(in_axes: tuple[Any, ...], batch: Batch) -> list[Any]:
    """List the arrays that have the examples in front."""
    found: list[Any] = []
    each_leaf(lambda axis, name, x: found.append(x), in_axes, batch)
    return found


def with_one_of_zeros(in_axes: tuple[Any, ...], batch: Batch) -> Batch:
    """Return a batch of one example, of which all numbers are 0."""

    def visit(axis: int, name: str, x: Any) -> Any:
        if _is_key(x):
            key = jax.random.key(0, impl=jax.random.key_impl(x))
            return jnp.broadcast_to(key, (1, *x.shape[1:]))
        return vary(jnp.zeros((1, *x.shape[1:]), x.dtype), varying_axes(x))

    return each_leaf(visit, in_axes, batch)


def shared_keys(in_axes: tuple[Any, ...], batch: Batch) -> dict[int, str]:
    """Name the keys that are shared since all around them is, by their positions.

    A key whose own entry in `in_axes` is None is meant to be shared.
    """

    def below(axis: int | None, part: PyTree) -> PyTree:
        return jax.tree.map(lambda x: axis is None and x is not part, part)

    found: list[tuple[str, bool]] = []
    for number, (axes, argument) in enumerate(zip(in_axes, batch, strict=True)):
        marks = jax.tree.map(below, axes, argument, is_leaf=lambda a: a is None)
        pairs = zip(
            jax.tree.leaves_with_path(argument), jax.tree.leaves(marks), strict=True
        )
        found += [
            (f"batch argument {number + 1}{jax.tree_util.keystr(path)}", shared)
            for (path, x), shared in pairs
            if hasattr(x, "dtype")
        ]
    leaves = arrays_of(batch)
    return {
        i: name
        for i, ((name, shared), x) in enumerate(zip(found, leaves, strict=True))
        if shared and _is_key(x)
    }


def differing(in_axes: Any, batch: Batch) -> list[bool]:
    """Return which leaves of a batch differ between its examples."""
    own = object()
    each = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(batch)
    marks = each_leaf(lambda axis, name, x: own, each, batch)
    return [mark is own for mark in jax.tree.leaves(marks)]


def one_example(in_axes: tuple[Any, ...], batch: Batch) -> PyTree:
    """Return the shapes and dtypes of one example."""

    def first(axis: int, name: str, x: Any) -> Any:
        return on_its_mesh(jax.eval_shape(lambda x: x[0], x))

    return each_leaf(first, in_axes, batch)


def without_bad(in_axes: tuple[Any, ...], batch: Batch, good: jax.Array) -> Batch:
    """Put zeros in the place of each example that is not good."""

    def visit(axis: int, name: str, x: Any) -> Any:
        which = good.reshape(good.shape + (1,) * (x.ndim - 1))
        return jnp.where(which, x, _zero_like(x))

    return each_leaf(visit, in_axes, batch)


def _zero_like(x: Any) -> jax.Array:
    if _is_key(x):
        return jax.random.key(0, impl=jax.random.key_impl(x))
    return jnp.zeros((), x.dtype)
