"""Holding a state while an optimizer works on it, without a second copy of it.

To choose between the old state and the new one in the end, XLA has to keep both, and
copies what was donated. So each array of the state is chosen as soon as it is known,
and what follows from it is computed from the chosen one. Where the new one is taken
that is the same, bit for bit; where the old one is held the rest is of no use anyway.
"""

from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array, Bool, PyTree


def held_if(
    hold: Bool[Array, ""], update: Callable[[Any], tuple[Any, Any]], state: Any
) -> tuple[PyTree, Any]:
    """Call ``update(state)``, but hold the state under a condition.

    Args:
      hold: whether the state shall stay as it is.
      update: gives a result, and a new state.
      state: the state.

    Returns:
      The result, which means nothing where the state is held, and the state.
    """
    if not isinstance(hold, Tracer):
        # Outside of a compiled program, where an optimizer may look at its numbers.
        result, new = update(state)
        return result, keep_if(hold, state, new)
    given: list[Any] = []

    def staged(state: Any) -> tuple[list[Any], Any]:
        result, new = update(state)
        given[:] = leaves, _ = jax.tree.flatten(result)
        # What is no array of JAX's, such as float0, is handed on beside the program.
        return [x for x in leaves if isinstance(x, jax.Array)], new

    closed, (computed, new) = jax.make_jaxpr(staged, return_shape=True)(state)
    program: Any = getattr(closed, "jaxpr", closed)  # one class since JAX 0.12
    results = program.outvars[: len(computed)]
    before, after = jax.tree.leaves(state), program.outvars[len(computed) :]
    old = {id(atom): was for atom, was in zip(after, before, strict=True)}
    known = dict(zip(program.invars, before, strict=True))
    known |= zip(program.constvars, getattr(closed, "consts", ()), strict=True)
    chosen: dict[int, Array] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for part in _parts(program, old.keys()):
        found = jaxpr_as_fun(ClosedJaxpr(part, ()))(*map(read, part.invars))
        for atom, value in zip(part.outvars, found, strict=True):
            was = old.get(id(atom))
            choice = value if was is None else jnp.where(hold, was, value)
            # In the end only, if it changes the type, as of what a mesh varies over.
            fits = jax.typeof(choice) == jax.typeof(value)
            known[atom] = choice if fits else value
            if was is not None and fits:
                chosen[id(atom)] = was

    kept = [
        read(atom) if chosen.get(id(atom)) is was else jnp.where(hold, was, read(atom))
        for was, atom in zip(before, after, strict=True)
    ]
    values = iter([read(atom) for atom in results])
    leaves, structure = given
    return (
        structure.unflatten(
            next(values) if isinstance(x, jax.Array) else x for x in leaves
        ),
        jax.tree.unflatten(jax.tree.structure(new), kept),
    )


def keep_if(hold: Bool[Array, ""], before: PyTree, after: PyTree) -> PyTree:
    """Choose between the old arrays and the new ones."""
    return jax.tree.map(lambda old, new: jnp.where(hold, old, new), before, after)


def _variables(atoms: Iterable[Any]) -> list[Any]:
    return [x for x in atoms if not isinstance(x, Literal)]


def _parts(program: Jaxpr, after: Set[int]) -> Iterator[Jaxpr]:
    """Cut a program behind every equation that gives an array of the new state."""
    used = {*_variables(program.outvars)}
    used.update(x for eqn in program.eqns for x in _variables(eqn.invars))
    debug_info, eqns = program.debug_info.with_unknown_names(), []
    for position, eqn in enumerate(program.eqns, start=1):
        eqns.append(eqn)
        if position < len(program.eqns) and not after & set(map(id, eqn.outvars)):
            continue
        outvars = [x for each in eqns for x in each.outvars if x in used]
        read = (x for each in eqns for x in _variables(each.invars))
        made = {*outvars}
        invars = [x for x in dict.fromkeys(read) if x not in made]
        effects = frozenset().union(*(each.effects for each in eqns))
        yield program.replace(
            constvars=[],
            invars=invars,
            outvars=outvars,
            eqns=eqns,
            effects=effects,
            debug_info=debug_info,
        )
        eqns = []
