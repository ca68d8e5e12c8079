"""Reading an optimizer's state: what its clippers and guards did, for any logger."""

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
    """Find every state that has a report, those of wrappers before what they wrap."""
    for node in jax.tree.leaves(tree, is_leaf=_tells):
        if _tells(node):
            yield node
            yield from _telling(tuple(node))


def report(opt_state: PyTree, names: PyTree = None) -> dict[str, Any]:
    """Collect what the clippers and guards in an optimizer's state did last.

    The state may nest as it likes: chains, masks, partitions, wrappers.

    Args:
      opt_state: the state of any optax transformation.
      names: the parameters, or any tree whose leaves have their paths. Vectors are
        then taken apart, so that there are scalars alone, as loggers want them.

    Returns:
      A flat dict of arrays, without synchronizing with the device. The keys are
      ``<name>/<field>``, the name being that of the strategy or guard or its
      ``name=``, as in ``"clip_global_norm/pre_norm"``, and the fields of clippers those
      of `ClipReport`. From the second of a name on names are numbered:
      ``"clip_global_norm_2/pre_norm"``. With `names` an entry of a vector has the path
      of its leaf, ``"clip_tensor_norm/pre_norm/body/kernel"``, the index in a leaf that
      stacks tensors, ``".../body/kernel/3"``, or the label of its group. Where there is
      no clipper or guard the dict is empty.

    Raises:
      TypeError: if `opt_state` is a transformation, a function or a class.
      ValueError: if `names` has no leaf where the state has one.

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
    """Number a key that is taken."""
    number, free = 1, key
    while free in taken:
        number += 1
        free = f"{key}_{number}"
    return free


def _fields(state: Any, paths: Collection[str] | None) -> Iterator[tuple[str, Any]]:
    """Give all numbers of a report with their keys; taken apart if paths are known."""
    # Every report has a count that is one number, or one for each of mapped states.
    rank = min(map(jnp.ndim, jax.tree.leaves(state.report)))
    for field, value in state.report._asdict().items():
        parts = jax.tree.leaves(value)  # Flax NNX keeps each in a variable.
        for part in parts:
            if part.ndim == rank:
                yield field, part
            elif paths is None:
                yield (field if len(parts) == 1 else f"{field}/each"), part
            else:
                entries = _entry_names(state, part.shape[-1], paths)
                for name, number in zip(entries, _unstacked(part), strict=True):
                    yield "/".join(filter(None, [field, name])), number


def _unstacked(vector: Any) -> Iterator[Any]:
    """Take a vector apart, where it is: in the memory of the host or of a device."""
    if isinstance(vector, np.ndarray):
        return iter(np.moveaxis(vector, -1, 0))
    return iter(jnp.unstack(vector, axis=-1))


def _entry_names(state: Any, size: int, paths: Collection[str]) -> list[str]:
    """Name the entries of a vector; a scope of one's own may have but numbers."""
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
