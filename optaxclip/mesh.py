"""Mesh axes: over which of them an array varies or is sharded."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

MeshAxes = tuple[str, ...]


def varying_axes(x: Array | jax.ShapeDtypeStruct) -> frozenset[str]:
    """Return the mesh axes over which JAX tracks an array as varying in shard_map."""
    kind = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    manual = getattr(kind, "manual_axis_type", None)  # called vma before JAX 0.10
    if manual is None:
        return getattr(kind, "vma", None) or frozenset()
    return manual.varying


def spread_over(x: Array, axes: MeshAxes) -> MeshAxes:
    """Drop the axes over which an array is known to be replicated."""
    return tuple(
        axis
        for axis in axes
        if axis in varying_axes(x) or not varying_axes(_index_along(axis))
    )


def _index_along(axis: str) -> Array:
    try:
        return jax.lax.axis_index(axis)
    except NameError:
        raise ValueError(
            f"axis_name must name an axis of the jax.shard_map, jax.pmap or jax.vmap "
            f"that it is used in, not {axis!r}; under jax.jit alone leave it out."
        ) from None


def automatic_axes() -> MeshAxes:
    """Return the axes that are left to XLA where a mapped function keeps others."""
    mesh = jax.sharding.get_abstract_mesh()
    return (*mesh.auto_axes, *mesh.explicit_axes) if mesh.manual_axes else ()


def check_axes(axes: Iterable[str]) -> None:
    """Refuse axes that are not those of a mapped function around us."""
    for axis in axes:
        _index_along(axis)


def copies(x: Array, axes: MeshAxes) -> int:
    """Return the number of devices over which an array is sharded."""
    return math.prod(jax.lax.axis_size(axis) for axis in spread_over(x, axes))


def vary(x: Array, axes: frozenset[str]) -> Array:
    """Mark a constant as varying over mesh axes, as loops require of initial values."""
    missing = tuple(axes - varying_axes(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def varying(group: jax.ShapeDtypeStruct, axes: frozenset[str]) -> jax.ShapeDtypeStruct:
    """Mark the shape of an array as that of one which varies over mesh axes."""
    if not axes:
        return group
    marked = jax.eval_shape(lambda: vary(jnp.zeros(group.shape, group.dtype), axes))
    return marked.update(sharding=group.sharding)


def on_its_mesh(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Name the mesh in a shape; JAX leaves it out where some axes are left to XLA."""
    if shape.sharding is not None or not varying_axes(shape):
        return shape
    mesh = jax.sharding.get_abstract_mesh()
    return shape.update(sharding=NamedSharding(mesh, PartitionSpec()))


def sharding_along(x: Any, dims: Iterable[int]) -> NamedSharding | None:
    """Return how an array or its shape is known to be sharded along some dimensions.

    Under ``jit`` this is known of explicit axes only.
    """
    traced = isinstance(x, Tracer)
    kind = jax.typeof(x).sharding if traced else getattr(x, "sharding", None)
    if not isinstance(kind, NamedSharding) or (traced and not kind.mesh.explicit_axes):
        return None
    kept = (axes if d in dims else None for d, axes in enumerate(kind.spec))
    return NamedSharding(kind.mesh, PartitionSpec(*kept))


def on_one_device(x: Array) -> bool:
    """Return whether an array is known to lie entirely on one device."""
    mesh = jax.typeof(x).sharding.mesh
    if mesh.empty:
        return True
    others = (*mesh.auto_axes, *mesh.explicit_axes)
    return not varying_axes(x) and all(mesh.shape[axis] == 1 for axis in others)
