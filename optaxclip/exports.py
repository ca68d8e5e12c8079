"""The types of a state, named for `jax.export`, so that a compiled step can be kept."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.export import register_namedtuple_serialization
from jaxtyping import PyTree


def register_for_export(tree: PyTree) -> None:
    """Register the named tuples of a tree, so that `jax.export` can serialize them.

    A step that was exported knows its arguments by the names of their types, and JAX
    has to be told these names: those of the states of this library, of Optax and of
    any other transformation that keeps its state in a named tuple. Call it before
    ``Exported.serialize``, and before ``jax.export.deserialize`` in the process that
    is to run the step. Types that are registered already stay as they are.

    Args:
      tree: the state of any optax transformation, or its shapes as
        ``jax.eval_shape(optimizer.init, params)`` gives them; or a tree of anything
        else that the step takes or returns.

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
      A module or container of another kind is named by
      ``jax.export.register_pytree_node_serialization``.
    """
    for kind in set(_kinds(jax.tree.structure(tree))):
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            with contextlib.suppress(ValueError):  # Someone has registered it already.
                name = f"{kind.__module__}.{kind.__qualname__}"
                register_namedtuple_serialization(kind, serialized_name=name)


def _kinds(structure: Any) -> Iterator[type]:
    """List the types of the nodes of a tree."""
    node = structure.node_data()
    if node is not None:
        yield node[0]
    for child in structure.children():
        yield from _kinds(child)
