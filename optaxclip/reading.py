"""Read from an optimizer's state what its clippers and guards did."""

from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from optaxclip.groups import Entry, paths_of


def _tells(node: Any) -> bool:
    return isinstance(node, tuple) and isinstance(getattr(node, "report", None), tuple)


def _telling(tree: PyTree) -> Iterator[Any]:
    """Yield every state that has a report, wrappers before what they wrap."""
    for node in jax.tree.leaves(tree, is_leaf=_tells):
        if _tells(node):
            yield node
            yield from _telling(tuple(node))


def report(opt_state: PyTree, names: PyTree = None) -> dict[str, Any]:
    """Collect the latest reports of all clippers and guards in an optimizer's state.

    The state may be nested in any way: chains, masks, partitions, wrappers.

    Args:
      opt_state: the state of any optax transformation.
      names: the parameters, or any tree whose leaves have the same paths. If given,
        vectors are split into scalars, as loggers expect.

    Returns:
      A flat dict of arrays, without synchronizing with the device. The keys are
      ``<name>/<field>``, as in ``"clip_global_norm/pre_norm"``. The name is that of the
      strategy or guard, or its ``name=``; the fields of clippers are those of
      `ClipReport`. Some have one more, which is always 1: ``of_params`` if they are
      about parameters rather than updates, ``on_spheres`` if these are kept on spheres,
      ``sets_length`` if every update is given a length, and ``carries_over`` if what
      was cut off before is in the updates again. Repeated names are numbered from the
      second on: ``"clip_global_norm_2/pre_norm"``. With `names`, the key of a vector's
      entry ends in the path of its leaf, ``"clip_tensor_norm/pre_norm/body/kernel"``,
      with an index if the leaf stacks tensors, ``".../body/kernel/3"``, or in the label
      of its group. Without clippers or guards, the dict is empty.

    Raises:
      TypeError: if `opt_state` is a transformation, a function or a class.
      ValueError: if `names` lacks a leaf that the state has.

    Examples:
      >>> optimizer = optax.chain(optaxclip.clip_tensor_norm(1.0), optax.sgd(0.01))
      >>> params = {"w": jnp.zeros(2), "b": jnp.zeros(1)}
      >>> state = optimizer.init(params)
      >>> grads = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([2.0])}
      >>> _, state = optimizer.update(grads, state)
      >>> optaxclip.report(state)["clip_tensor_norm/pre_norm"]
      Array([2., 5.], dtype=float32)
      >>> float(optaxclip.report(state, names=params)["clip_tensor_norm/pre_norm/w"])
      5.0
    """
    is_transformation = hasattr(opt_state, "init") and hasattr(opt_state, "update")
    if is_transformation or callable(opt_state):
        raise TypeError(
            "opt_state must be the state of an optimizer, not a "
            f"{type(opt_state).__name__}; pass the state that init and update return."
        )
    paths = None if names is None else frozenset(paths_of(names))
    taken: set[str] = set()
    found = {}
    for state in _telling(opt_state):
        name = _free(type(state).__name__, taken)
        taken.add(name)
        for field, value in _fields(state, paths):
            found[_free(f"{name}/{field}", found)] = value
    return found


def _free(key: str, taken: Collection[str]) -> str:
    """Number a key that is already taken."""
    number, free = 1, key
    while free in taken:
        number += 1
        free = f"{key}_{number}"
    return free


def _fields(state: Any, paths: Collection[str] | None) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a report; vectors are split if the paths are known."""
    # Every report has a count: one number, or one per state if states are mapped.
    rank = min(map(jnp.ndim, jax.tree.leaves(state.report)))
    for field, value in state.report._asdict().items():
        parts = jax.tree.leaves(value)  # Flax NNX wraps each one in a variable.
        for part in parts:
            if part.ndim == rank:
                yield field, part
            elif paths is None:
                yield (field if len(parts) == 1 else f"{field}/each"), part
            else:
                entries = _entry_names(state, part.shape[-1], paths)
                for name, number in zip(entries, _unstacked(part), strict=True):
                    yield "/".join(filter(None, [field, name])), number
    if mark := getattr(type(state), "mark", None):
        (count,) = jax.tree.leaves(state.report.clipped_steps)
        yield mark, np.ones(jnp.shape(count), np.int32)


def _unstacked(vector: Any) -> Iterator[Any]:
    """Split a vector where it is, in the memory of the host or of a device."""
    if isinstance(vector, np.ndarray):
        return iter(np.moveaxis(vector, -1, 0))
    return iter(jnp.unstack(vector, axis=-1))


def _entry_names(state: Any, size: int, paths: Collection[str]) -> list[str]:
    """Return the names of a vector's entries; a custom scope may have only indices."""
    entries = type(state).entries or (Entry("", (size,)),)
    for entry in entries:
        if entry.is_path and entry.name and entry.name not in paths:
            raise ValueError(
                f"names must have the leaves of the params that {type(state).__name__} "
                f"was initialized with, and has none at {entry.name}; pass the params."
            )
    found = [name for entry in entries for name in entry.names()]
    if len(found) != size:
        raise ValueError(
            f"the report of {type(state).__name__} has {size} entries for "
            f"{len(found)} names; give the state of the whole mesh, unsharded."
        )
    return found
