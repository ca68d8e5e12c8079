"""Keep the old state of an optimizer under a condition, without a second copy of it.

To choose between the old and the new state at the end, XLA has to keep both, and copies
donated buffers. So each array of the state is chosen as soon as it is computed, and
everything after it uses the chosen one. If the step is taken, the result is the same,
bit for bit; if it is not, the rest is discarded anyway. Where JAX does not let us split
the program, the copy remains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import Literal, jaxpr_as_fun
from jaxtyping import Array, Bool, PyTree

from optaxclip.jaxprs import TracedProgram, cut, opened


def held_if(
    hold: Bool[Array, ""], update: Callable[[Any], tuple[Any, Any]], state: Any
) -> tuple[PyTree, Any]:
    """Call ``update(state)``, but keep the old state under a condition.

    Args:
      hold: whether to keep the old state.
      update: returns a result and a new state.
      state: the old state.

    Returns:
      The result, which is meaningless if `hold` is true, and the state.
    """
    if not isinstance(hold, Tracer):
        # Outside jit, where an optimizer may inspect concrete values.
        result, new = update(state)
        return result, keep_if(hold, state, new)
    given: list[Any] = []

    def staged(state: Any) -> tuple[list[Any], Any]:
        result, new = update(state)
        leaves, structure = jax.tree.flatten(result)
        # Leaves that are not JAX arrays, such as float0, bypass the program.
        given[:] = [None if isinstance(x, jax.Array) else x for x in leaves], structure
        return [x for x in leaves if isinstance(x, jax.Array)], new

    traced, (computed, new) = jax.make_jaxpr(staged, return_shape=True)(state)
    before = jax.tree.leaves(state)
    after = opened(traced)[0].outvars[len(computed) :]
    parts = cut(traced, set(map(id, after)))
    if parts is None:
        found = jaxpr_as_fun(traced)(*before)
        kept = keep_if(hold, before, found[len(computed) :])
    else:
        found, kept = _held_on_the_way(hold, traced, parts, before)
    values = iter(found)
    leaves, structure = given
    return (
        structure.unflatten(next(values) if x is None else x for x in leaves),
        jax.tree.unflatten(jax.tree.structure(new), kept),
    )


def keep_if(hold: Bool[Array, ""], before: PyTree, after: PyTree) -> PyTree:
    """Choose the old arrays if `hold` is true, and the new ones otherwise."""
    return jax.tree.map(lambda old, new: jnp.where(hold, old, new), before, after)


def _held_on_the_way(
    hold: Bool[Array, ""],
    traced: TracedProgram,
    parts: list[TracedProgram],
    before: list[Any],
) -> tuple[list[Any], list[Any]]:
    """Evaluate a program part by part, choosing each array of the state on the way.

    Returns:
      The results other than the state, and the state.
    """
    program, consts = opened(traced)
    first = len(program.outvars) - len(before)
    results, after = program.outvars[:first], program.outvars[first:]
    old = {id(atom): was for atom, was in zip(after, before, strict=True)}
    known: dict[Any, Any] = dict(zip(program.invars, before, strict=True))
    known |= zip(program.constvars, consts, strict=True)
    chosen: dict[int, Array] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for part in parts:
        inside, _ = opened(part)
        found = jaxpr_as_fun(part)(*map(read, inside.invars))
        for atom, value in zip(inside.outvars, found, strict=True):
            was = old.get(id(atom))
            choice = value if was is None else jnp.where(hold, was, value)
            # Choose at the end if that would change the type, such as varying axes.
            fits = jax.typeof(choice) == jax.typeof(value)
            known[atom] = choice if fits else value
            if was is not None and fits:
                chosen[id(atom)] = was

    kept = [
        read(atom) if chosen.get(id(atom)) is was else jnp.where(hold, was, read(atom))
        for was, atom in zip(before, after, strict=True)
    ]
    return [read(atom) for atom in results], kept
