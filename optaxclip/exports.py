"""Register the types of a state with `jax.export`, to save a compiled step."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.export import register_namedtuple_serialization
from jaxtyping import PyTree


def register_for_export(tree: PyTree) -> None:
    """Register the named tuples of a tree, so that `jax.export` can serialize them.

    An exported step identifies its arguments by the names of their types, and JAX must
    be told these names. This covers the states of this library, of Optax, and of any
    other transformation that keeps its state in named tuples. Call it before
    ``Exported.serialize``, and before ``jax.export.deserialize`` in the process that
    runs the step. Types that are already registered stay as they are.

    Args:
      tree: the state of any Optax transformation, or its shapes from
        ``jax.eval_shape(optimizer.init, params)``; or any other tree that the step
        takes or returns.

    Examples:
      >>> optimizer = optax.chain(optaxclip.zclip(), optax.sgd(0.1, momentum=0.9))
      >>> params = jnp.zeros(2)
      >>> state = optimizer.init(params)
      >>> optaxclip.register_for_export(state)
      >>> step = jax.export.export(jax.jit(optimizer.update))(params, state, params)
      >>> kept = step.serialize()
      >>> updates, state = jax.export.deserialize(kept).call(params, state, params)
      >>> updates
      Array([0., 0.], dtype=float32)

    Note:
      For other kinds of modules and containers, use
      ``jax.export.register_pytree_node_serialization``.
    """
    for kind in set(_kinds(jax.tree.structure(tree))):
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            with contextlib.suppress(ValueError):  # It is already registered.
                register_namedtuple_serialization(kind, serialized_name=_name_of(kind))


def _name_of(kind: type) -> str:
    """Name a type by what JAX compares: not by the leaves that a report is about."""
    named = kind.__base__
    if named is None or named is tuple:
        return f"{kind.__module__}.{kind.__qualname__}"
    return f"{named.__module__}.{named.__qualname__}({kind.__name__})"


def _kinds(structure: Any) -> Iterator[type]:
    """Yield the types of all nodes of a tree."""
    node = structure.node_data()
    if node is not None:
        yield node[0]
    for child in structure.children():
        yield from _kinds(child)
