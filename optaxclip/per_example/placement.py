"""Examples on a mesh: what explicit axes cannot tell is left to the compiler."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from optaxclip.per_example.batches import examples_of
from optaxclip.per_example.sums import Examples

Result = TypeVar("Result")


def on_any_mesh(
    function: Callable[[Examples], Result],
    examples: Examples,
    results: Callable[[Any, PyTree], Any],
) -> Result:
    """Call a function of all examples, on whatever mesh they are.

    A product that sums over the examples has a sharding that no rule for explicit axes
    can tell. The loss and all around it see them as automatic ones.

    Args:
      function: what is called.
      examples: the batch, with its examples in front.
      results: says how what the function gives is sharded, as a prefix tree of it: by
        the sharding of what has the examples in front, and those of the parameters.
    """
    first = examples_of(examples.in_axes, examples.batch)
    kinds = [jax.typeof(x).sharding for x in jax.tree.leaves((first, examples.params))]
    mesh = next((kind.mesh for kind in kinds if kind.mesh.explicit_axes), None)
    if mesh is None:
        return function(examples)
    rows = (kind.spec[0] for kind in kinds[: len(first)])
    each = NamedSharding(mesh, PartitionSpec(next(filter(None, rows), None)))
    shared = jax.tree.map(
        lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec), examples.params
    )
    leaves, tree = jax.tree.flatten(examples)

    def call(arrays: list[Any]) -> Result:
        given = iter(arrays)
        parts = (next(given) if hasattr(x, "dtype") else x for x in leaves)
        return function(tree.unflatten(parts))

    automatic: Any = jax.sharding.auto_axes(
        call, axes=mesh.explicit_axes, out_sharding=results(each, shared)
    )
    return automatic([x for x in leaves if hasattr(x, "dtype")])
