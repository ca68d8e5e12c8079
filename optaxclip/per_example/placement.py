"""Examples on a mesh: the compiler handles what explicit axes cannot express."""

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
    """Call a function of all examples, on any mesh.

    For a product that sums over the examples, explicit axes have no sharding rule.
    Inside the function, which contains the loss, these axes are therefore automatic.

    Args:
      function: the function to call.
      examples: the batch, with the examples along axis 0.
      results: returns the shardings of the function's result, as a prefix tree, given
        the sharding of arrays with examples along axis 0 and the shardings of the
        parameters.
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
