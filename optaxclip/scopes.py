"""Which numbers are measured together?

A scope arranges the numbers of a tree in groups. Only leaves of real or complex
floating point with at least one element count; all others are passed by.

Under ``jit`` a mesh needs nothing said. Inside ``jax.shard_map`` and ``jax.pmap``,
``axis_name`` names the mesh axes over which the numbers of a group are spread: one
axis, a tuple of axes, or a prefix tree of these with one entry a leaf (None for a
replicated leaf). Where JAX keeps track of what varies (``check_vma=True``), leaves
that are replicated are recognized without being named.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from optaxclip.arguments import not_static
from optaxclip.groupings import Bundled, ByLeaf, Elements, Grouping, Single
from optaxclip.leaves import (
    AxisName,
    dimensions,
    is_axes,
    mesh_axes,
    of_leaves,
    shapes_of,
)
from optaxclip.magnitudes import PerGroup, as_number


@runtime_checkable
class Scope(Protocol):
    """What a scope has to answer."""

    def arrange(self, tree: PyTree) -> Grouping:
        """Arrange the numbers of a tree in groups."""
        ...

    def limits(self, spec: PyTree[ArrayLike], tree: PyTree) -> PerGroup:
        """Arrange limits that are given as a tree like the groups."""
        ...


@dataclass(frozen=True)
class _LeafScope:
    """Limits by a prefix tree: one for all groups of a leaf."""

    axis_name: AxisName = None

    def limits(self, spec: PyTree[ArrayLike], tree: PyTree) -> PerGroup:
        return [as_number(limit) for limit in of_leaves("the limit", spec, tree)]


@dataclass(frozen=True)
class _Element(_LeafScope):
    def arrange(self, tree: PyTree) -> Grouping:
        shapes = shapes_of(tree)
        return Elements(shapes, ((),) * len(shapes), mesh_axes(self.axis_name, tree))


@dataclass(frozen=True)
class _Unit(_LeafScope):
    axis: Any = None

    def arrange(self, tree: PyTree) -> Grouping:
        shapes = shapes_of(tree)
        axes = of_leaves("axis", self.axis, tree, is_axes)
        dims = tuple(map(_unit_dims, shapes, axes))
        return ByLeaf(shapes, dims, mesh_axes(self.axis_name, tree))


def _unit_dims(shape: tuple[int, ...], axis: Any) -> tuple[int, ...]:
    if len(shape) <= 1:
        return tuple(range(len(shape)))
    if axis is None:
        return tuple(range(len(shape) - 1))
    return dimensions(axis, shape)


@dataclass(frozen=True)
class _Tensor:
    leading_axes: Any = None
    axis_name: AxisName = None

    def arrange(self, tree: PyTree) -> Bundled:
        shapes = shapes_of(tree)
        given = 0 if self.leading_axes is None else self.leading_axes
        leading = of_leaves("leading_axes", given, tree)
        dims = tuple(map(_tensor_dims, shapes, leading))
        members = tuple((i,) for i in range(len(shapes)))
        return Bundled(shapes, dims, mesh_axes(self.axis_name, tree), members)

    def limits(self, spec: PyTree[ArrayLike], tree: PyTree) -> PerGroup:
        given = of_leaves("the limit", spec, tree)
        lengths = self.arrange(tree).lengths
        limits = [
            jnp.broadcast_to(jnp.ravel(as_number(limit)), length)
            for limit, length in zip(given, lengths, strict=True)
        ]
        with jax.numpy_dtype_promotion("standard"):
            return jnp.concatenate(limits) if limits else jnp.zeros(0, jnp.float32)


def _tensor_dims(shape: tuple[int, ...], leading: Any) -> tuple[int, ...]:
    if isinstance(leading, jax.Array):
        raise not_static("leading_axes", "int", leading)
    if not isinstance(leading, int | np.integer) or not 0 <= leading <= len(shape):
        raise ValueError(
            f"leading_axes must lie between 0 and {len(shape)} for a leaf of shape "
            f"{shape}, not {leading!r}; give a prefix tree where leaves differ."
        )
    return tuple(range(int(leading), len(shape)))


@dataclass(frozen=True)
class _Groups:
    labels: PyTree[Hashable] | Callable[[PyTree], PyTree[Hashable]]
    axis_name: AxisName = None

    def _labels_of(self, tree: PyTree) -> list[Hashable]:
        labels = self.labels(tree) if callable(self.labels) else self.labels
        found = of_leaves("labels", labels, tree)
        for label in found:
            if not isinstance(label, Hashable) or isinstance(label, jax.Array):
                raise TypeError(
                    "labels must be hashable and no arrays, such as strings, not "
                    f"{label!r}."
                )
        return found

    def arrange(self, tree: PyTree) -> Grouping:
        shapes, labels = shapes_of(tree), self._labels_of(tree)
        return Bundled(
            shapes,
            tuple(tuple(range(len(shape))) for shape in shapes),
            mesh_axes(self.axis_name, tree),
            tuple(
                tuple(i for i, label in enumerate(labels) if label == name)
                for name in _sorted(labels)
            ),
        )

    def limits(self, spec: PyTree[ArrayLike], tree: PyTree) -> PerGroup:
        names = _sorted(self._labels_of(tree))
        if not isinstance(spec, dict) or not set(names) <= set(spec):
            missing = [n for n in names if not isinstance(spec, dict) or n not in spec]
            raise ValueError(
                f"max_norms must be one limit or a dict with a limit for each label; "
                f"add {missing}."
            )
        limits = [as_number(spec[name]) for name in names]
        with jax.numpy_dtype_promotion("standard"):
            return jnp.stack(limits) if limits else jnp.zeros(0, jnp.float32)


def _sorted(labels: list[Hashable]) -> list[Hashable]:
    return sorted(dict.fromkeys(labels), key=str)


@dataclass(frozen=True)
class _Whole:
    axis_name: AxisName = None

    def arrange(self, tree: PyTree) -> Grouping:
        shapes = shapes_of(tree)
        return Single(
            shapes,
            tuple(tuple(range(len(shape))) for shape in shapes),
            mesh_axes(self.axis_name, tree),
            (tuple(range(len(shapes))),) if shapes else (),
        )

    def limits(self, spec: PyTree[ArrayLike], tree: PyTree) -> PerGroup:
        raise ValueError(
            "the limit of the whole tree must be one number, not a tree; use the "
            "scope `tensor` or `groups` for several limits."
        )


def element(*, axis_name: AxisName = None) -> Scope:
    """Measure every number alone; any norm of one number is its modulus.

    Args:
      axis_name: mesh axes over which leaves are sharded; only the report needs it.
    """
    return _Element(axis_name)


def unit(*, axis: Any = None, axis_name: AxisName = None) -> Scope:
    """Measure the numbers that feed one output unit together.

    JAX keeps kernels input-first, ``(..., inputs, outputs)``, so that a unit is a
    slice along the last dimension. Scalars and vectors are one group.

    Args:
      axis: the dimensions that are measured together, instead of all but the last:
        an int, a tuple, or a prefix tree of these. A kernel of attention heads
        ``(inputs, heads, features)`` wants ``axis=0``; a stack of scanned layers
        ``(layers, inputs, outputs)`` wants ``axis=1``.
      axis_name: mesh axes over which the dimensions of a unit are spread.
    """
    return _Unit(axis_name, axis)


def tensor(*, leading_axes: Any = None, axis_name: AxisName = None) -> Scope:
    """Measure every leaf alone.

    Args:
      leading_axes: how many leading dimensions of a leaf stack tensors of which
        each is measured alone, as layers under ``jax.lax.scan`` or a batch of
        experts are: an int or a prefix tree of ints; none if not given.
      axis_name: mesh axes over which leaves are sharded.
    """
    return _Tensor(leading_axes, axis_name)


def groups(
    labels: PyTree[Hashable] | Callable[[PyTree], PyTree[Hashable]],
    *,
    axis_name: AxisName = None,
) -> Scope:
    """Measure the leaves with one label together; groups are in order of labels.

    Args:
      labels: a prefix tree of labels, or a function from the updates to one, as
        ``optax.partition`` takes them.
      axis_name: mesh axes over which leaves are sharded.
    """
    return _Groups(labels, axis_name)


def whole(*, axis_name: AxisName = None) -> Scope:
    """Measure the whole tree together.

    Args:
      axis_name: mesh axes over which leaves are sharded.
    """
    return _Whole(axis_name)
