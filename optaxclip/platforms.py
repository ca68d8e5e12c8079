"""Functions computed in one way on CPUs and in another on accelerators.

An accelerator has fast memory, but waits for the host at every branch. On a CPU
branches are free, and the simplest sums are fast.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree

Function = Callable[[PyTree], PyTree]

# ``jax.lax.platform_dependent`` leaves a conditional in the lowered program, and
# differentiates each branch separately.
_by_platform = Primitive("by_platform")
_by_platform.multiple_results = True


def by_platform(
    default: Function,
    cpu: Function,
    slope: Callable[[PyTree, PyTree], PyTree],
    *,
    stacked: bool = False,
) -> Function:
    """Make a function that is computed differently on CPUs.

    Args:
      default: the function, of a tree of arrays; hashable.
      cpu: the same function for CPUs; hashable.
      slope: takes the tree and the function's result, and recomputes the result in a
        way whose derivative is that of the function; hashable.
      stacked: whether the first dimension of every array is a stack of independent
        inputs, so that ``vmap`` can simply make the stack longer.

    Returns:
      The function. Under ``vmap``, unless `stacked`, it is computed by `default`.
    """
    ways = {"default": default, "cpu": cpu, "slope": slope, "stacked": stacked}

    def function(tree: PyTree) -> PyTree:
        arrays, structure = jax.tree.flatten(tree)
        found, _ = _results(default, structure, *map(jax.typeof, arrays))
        return found.unflatten(_by_platform.bind(*arrays, tree=structure, **ways))

    return function


@functools.lru_cache  # Otherwise each use would trace the function twice.
def _results(
    function: Function, tree: Any, *arrays: ShapedArray
) -> tuple[Any, Sequence[Any]]:
    """Return the structure of a function's result, and what is known of its arrays.

    Unlike plain shapes and dtypes, that includes the mesh axes over which they vary.
    """
    trace = jax.make_jaxpr(
        lambda *given: function(tree.unflatten(given)), return_shape=True
    )
    jaxpr, shapes = trace(*arrays)
    return jax.tree.structure(shapes), jaxpr.out_avals


def _listed(function: Function, tree: Any) -> Callable[..., list[Array]]:
    """Make a function of a tree take arrays and return a list of arrays."""
    return lambda *arrays: jax.tree.leaves(function(tree.unflatten(arrays)))


@_by_platform.def_impl
def _(*arrays: Array, **ways: Any) -> list[Array]:
    return jax.jit(functools.partial(_by_platform.bind, **ways))(*arrays)


@_by_platform.def_abstract_eval
def _(*arrays: ShapedArray, tree: Any, default: Function, **_: Any) -> list:
    return list(_results(default, tree, *arrays)[1])


def _lowered(way: str) -> Any:
    def function(*arrays: Array, tree: Any, **ways: Any) -> list[Array]:
        return _listed(ways[way], tree)(*arrays)

    return mlir.lower_fun(function, multiple_results=True)


mlir.register_lowering(_by_platform, _lowered("default"))
mlir.register_lowering(_by_platform, _lowered("cpu"), platform="cpu")


def _batched(
    arrays: Sequence[Array], dims: Sequence[Any], *, tree: Any, **ways: Any
) -> tuple[list[Array], list[int]]:
    if ways["stacked"]:
        return _longer(arrays, dims, tree=tree, **ways)
    found = jax.vmap(_listed(ways["default"], tree), tuple(dims))(*arrays)
    return found, [0] * len(found)


def _longer(
    arrays: Sequence[Array], dims: Sequence[Any], **ways: Any
) -> tuple[list[Array], list[int]]:
    """Concatenate the stacks that are mapped over into one longer stack."""
    sizes = [x.shape[d] for x, d in zip(arrays, dims, strict=True) if d is not None]

    def joined(x: Array, dim: int | None) -> Array:
        if dim is None:
            stacks = jnp.broadcast_to(x, (sizes[0], *x.shape))
        else:
            stacks = jnp.moveaxis(x, dim, 0)
        return stacks.reshape(-1, *stacks.shape[2:])

    found = _by_platform.bind(*map(joined, arrays, dims), **ways)
    apart = [x.reshape(sizes[0], -1, *x.shape[1:]) for x in found]
    return apart, [0] * len(apart)


def _derived(
    primals: Sequence[Array], tangents: Sequence[Any], *, tree: Any, **ways: Any
) -> tuple[list[Array], list[Array]]:
    found = _by_platform.bind(*primals, tree=tree, **ways)
    structure, _ = _results(ways["default"], tree, *map(jax.typeof, primals))
    result = structure.unflatten(map(jax.lax.stop_gradient, found))

    def again(*arrays: Array) -> list[Array]:
        return jax.tree.leaves(ways["slope"](tree.unflatten(arrays), result))

    given = tuple(
        jnp.zeros_like(x) if type(t) is ad.Zero else t
        for x, t in zip(primals, tangents, strict=True)
    )
    return found, jax.jvp(again, tuple(primals), given)[1]


batching.primitive_batchers[_by_platform] = _batched
ad.primitive_jvps[_by_platform] = _derived
