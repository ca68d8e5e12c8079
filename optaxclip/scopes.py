"""Scopes: which numbers are measured together.

Only nonempty floating-point leaves, real or complex, count. Under ``jit``, meshes need
no extra argument. Inside ``jax.shard_map`` and ``jax.pmap``, ``axis_name`` names the
mesh axes over which the numbers of a group are sharded: one axis, a tuple of axes, or a
prefix tree of these with one entry per leaf (None for a replicated leaf). An entry may
also be the leaf's PartitionSpec, which tells whether an axis shards a unit, or a stack
of whole ones. Where JAX tracks varying axes (``check_vma=True``), replicated leaves are
recognized, and every axis over which a leaf varies must be named. With ``()``, each
device clips, decides and reports on its own.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import PyTree

from optaxclip.arguments import check_fits, check_label, check_labels
from optaxclip.axis_names import axes_apart, mesh_axes
from optaxclip.groups import (
    Elements,
    Groups,
    Labeled,
    PerGroup,
    PerLeaf,
    Tensors,
    Whole,
)
from optaxclip.leaves import (
    AxisName,
    counted,
    dimensions,
    is_axes,
    is_one_leaf,
    of_leaves,
    shapes_of,
    structure_of,
    trailing_dimensions,
)
from optaxclip.numbers import Number, as_number

__all__ = ["Scope", "element", "groups", "tensor", "unit", "whole"]


@runtime_checkable
class Scope(Protocol):
    """Arranges the numbers of a tree in groups."""

    def arrange(self, tree: PyTree) -> Groups:
        """Arrange the numbers of a tree in groups."""
        ...

    def limits(self, spec: PyTree[ArrayLike], tree: PyTree) -> PerGroup:
        """Arrange a tree of limits like the groups."""
        ...


class _Printed:
    """A scope that prints as the call that makes it."""

    def __repr__(self) -> str:
        given = [f"{k}={v!r}" for k, v in vars(self).items() if v is not None]
        return f"scopes.{type(self).__name__[1:].lower()}({', '.join(given)})"


class _LeafScope(_Printed):
    """A scope whose groups lie within leaves."""

    arrange: Callable[[PyTree], PerLeaf]

    def limits(self, spec: PyTree[ArrayLike], tree: PyTree) -> PerGroup:
        """Accept a prefix tree, with one limit per leaf or per group of the leaf."""
        given, groups = of_leaves("the limit", spec, tree), self.arrange(tree)
        shapes = [group.shape for group in jax.tree.leaves(groups.struct())]
        return groups.tree.unflatten(map(_fitted, map(as_number, given), shapes))


def _fitted(limit: Number, shape: tuple[int, ...]) -> Number:
    shape = () if limit.size == 1 else shape
    if limit.size == math.prod(shape):
        return limit.reshape(shape)
    check_fits(limit.shape, shape)
    return limit


@dataclass(frozen=True, repr=False)
class _Element(_LeafScope):
    axis_name: AxisName = None

    def arrange(self, tree: PyTree) -> Elements:
        dims = ((),) * len(shapes_of(tree))
        axes = mesh_axes(self.axis_name, tree)
        return Elements(counted(tree), dims, axes, structure_of(tree), axes)


@dataclass(frozen=True, repr=False)
class _Unit(_LeafScope):
    axis_name: AxisName = None
    axis: Any = None

    def arrange(self, tree: PyTree) -> PerLeaf:
        axes = of_leaves("axis", self.axis, tree, is_axes)
        dims = tuple(map(_unit_dims, shapes_of(tree), axes))
        axes = mesh_axes(self.axis_name, tree, dims)
        apart = axes_apart(self.axis_name, tree, dims)
        return PerLeaf(counted(tree), dims, axes, structure_of(tree), apart)


def _unit_dims(shape: tuple[int, ...], axis: Any) -> tuple[int, ...]:
    if len(shape) <= 1:
        return tuple(range(len(shape)))
    if axis is None:
        return tuple(range(len(shape) - 1))
    return dimensions(axis, shape)


@dataclass(frozen=True, repr=False)
class _Tensor(_LeafScope):
    leading_axes: Any = None
    axis_name: AxisName = None

    def arrange(self, tree: PyTree) -> Tensors:
        given = 0 if self.leading_axes is None else self.leading_axes
        leading = of_leaves("leading_axes", given, tree)
        dims = tuple(map(trailing_dimensions, shapes_of(tree), leading))
        axes = mesh_axes(self.axis_name, tree, dims)
        apart = axes_apart(self.axis_name, tree, dims)
        return Tensors(counted(tree), dims, axes, structure_of(tree), apart)


@dataclass(frozen=True, repr=False)
class _Groups(_Printed):
    labels: PyTree[Hashable] | Callable[[PyTree], PyTree[Hashable]]
    axis_name: AxisName = None

    def _given(self, tree: PyTree) -> PyTree[Hashable]:
        return self.labels(tree) if callable(self.labels) else self.labels

    def _labels_of(self, tree: PyTree) -> list[Hashable]:
        found = of_leaves("labels", self._given(tree), tree)
        for label in found:
            check_label(label)
        return found

    def arrange(self, tree: PyTree) -> Labeled:
        labels = self._labels_of(tree)
        names = _sorted(labels)
        members = tuple(
            tuple(i for i, label in enumerate(labels) if label == name)
            for name in names
        )
        axes = mesh_axes(self.axis_name, tree)
        called = tuple(map(str, names))
        return Labeled(counted(tree), _all_dims(tree), axes, members, called)

    def limits(self, spec: PyTree[ArrayLike], tree: PyTree) -> PerGroup:
        if is_one_leaf(spec):
            return _fitted(as_number(spec), self.arrange(tree).report_shape)
        names = _sorted(self._labels_of(tree))
        check_labels(spec, names, jax.tree.leaves(self._given(tree)))
        limits = [as_number(spec[name]) for name in names]
        with jax.numpy_dtype_promotion("standard"):
            return jnp.stack(limits) if limits else jnp.zeros(0, jnp.float32)


def _all_dims(tree: PyTree) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(len(shape))) for shape in shapes_of(tree))


def _sorted(labels: list[Hashable]) -> list[Hashable]:
    return sorted(dict.fromkeys(labels), key=str)


@dataclass(frozen=True, repr=False)
class _Whole(_Printed):
    axis_name: AxisName = None

    def arrange(self, tree: PyTree) -> Whole:
        axes = mesh_axes(self.axis_name, tree)
        return Whole(counted(tree), _all_dims(tree), axes)

    def limits(self, spec: PyTree[ArrayLike], tree: PyTree) -> PerGroup:
        if is_one_leaf(spec):
            return _fitted(as_number(spec), ())
        raise ValueError(
            "the limit of the whole tree must be one number, not a tree; use the "
            "scope `tensor` or `groups` for several limits."
        )


def element(*, axis_name: AxisName = None) -> _Element:
    """Measure every number on its own; any norm of one number is its modulus.

    Args:
      axis_name: mesh axes over which leaves are sharded; only the report needs it.
    """
    return _Element(axis_name)


def unit(*, axis: Any = None, axis_name: AxisName = None) -> Scope:
    """Measure the numbers that feed one output unit together.

    JAX stores kernels as ``(..., inputs, outputs)``: there is one unit per index of the
    last dimension. Scalars and vectors are one group.

    Args:
      axis: the dimensions that are measured together, by default all but the last: an
        int, a tuple, or a prefix tree of these. A kernel of attention heads
        ``(inputs, heads, features)`` needs ``axis=0``; a stack of scanned layers
        ``(layers, inputs, outputs)`` needs ``axis=1``.
      axis_name: mesh axes over which the dimensions of a unit are sharded.
    """
    return _Unit(axis_name, axis)


def tensor(*, leading_axes: Any = None, axis_name: AxisName = None) -> Scope:
    """Measure every leaf on its own.

    Args:
      leading_axes: the number of leading dimensions that stack separate tensors, such
        as layers under ``jax.lax.scan`` or a batch of experts; each is measured on its
        own. An int or a prefix tree of ints; 0 by default.
      axis_name: mesh axes over which leaves are sharded.
    """
    return _Tensor(leading_axes, axis_name)


def groups(
    labels: PyTree[Hashable] | Callable[[PyTree], PyTree[Hashable]],
    *,
    axis_name: AxisName = None,
) -> Scope:
    """Measure leaves with the same label together; groups are sorted by label.

    Args:
      labels: a prefix tree of labels, or a function from the updates to one, as in
        ``optax.partition``.
      axis_name: mesh axes over which leaves are sharded.
    """
    return _Groups(labels, axis_name)


def whole(*, axis_name: AxisName = None) -> Scope:
    """Measure the whole tree as one group; for `axis_name` see `tensor`."""
    return _Whole(axis_name)
