"""What a clipper did: the numbers that users ask for, in every clipper's state."""

import functools
import importlib
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32

from optaxclip.groups import Entry, Groups, PerGroup
from optaxclip.norms import Magnitude
from optaxclip.numbers import Number
from optaxclip.sentences import shown


class ClipReport(NamedTuple):
    """What a clipper did in its last step.

    The first three are scalars for one group, and vectors with an entry a group for
    groups of leaves and for single leaves (in the order of the labels or leaves).
    Where groups are very many, elements and units, they are those of one group, which
    was the most above its limit.

    Attributes:
      pre_norm: the magnitude before clipping, in the clipper's own norm.
      post_norm: the magnitude after clipping.
      limit: the limit.
      clipped_fraction: the share of groups that were above their limit.
      clipped_steps: in how many steps so far any group was.
    """

    pre_norm: Float[Array, "..."]
    post_norm: Float[Array, "..."]
    limit: Float[Array, "..."]
    clipped_fraction: Float[Array, ""]
    clipped_steps: Int32[Array, ""]


def empty_report(shape: tuple[int, ...]) -> ClipReport:
    """Give the report before the first step, for groups reported in this shape."""
    # A buffer each: a state that is donated must not hold one twice.
    return ClipReport(
        pre_norm=jnp.zeros(shape, jnp.float32),
        post_norm=jnp.zeros(shape, jnp.float32),
        limit=jnp.zeros(shape, jnp.float32),
        clipped_fraction=jnp.zeros((), jnp.float32),
        clipped_steps=jnp.zeros((), jnp.int32),
    )


@functools.partial(jax.jit, static_argnums=0, inline=True)
def next_report(
    reach: Callable[[Number, Number], Number],
    previous: ClipReport,
    groups: Groups,
    size: Magnitude,
    limit: PerGroup,
) -> ClipReport:
    """Sum up a step from magnitudes that were measured anyway.

    Args:
      reach: tells what a magnitude becomes under a limit.
      previous: the report of the step before.
      groups: what was measured.
      size: how big each group was.
      limit: the limit of each group, or one for all.
    """
    top, bound, fraction = groups.summarize(*size, limit)
    after = reach(top, bound)
    steps = previous.clipped_steps
    return ClipReport(
        *(x.astype(jnp.float32) for x in (top, after, bound)),
        clipped_fraction=fraction,
        clipped_steps=jnp.where(fraction > 0, optax.safe_increment(steps), steps),
    )


class ClipState(NamedTuple):
    """What a clipper keeps from step to step.

    Attributes:
      threshold: what the threshold remembers.
      measure: what is remembered between measurements; most need nothing.
      report: what the last step did.
    """

    threshold: Any
    measure: Any
    report: ClipReport


def check_state(name: str, state: Any) -> None:
    """Refuse what is no state of a clipper, such as none at all."""
    if not hasattr(state, "threshold"):
        raise TypeError(
            f"{name} needs the state that its own init or update gave, not "
            f"{shown(state)}; call update(updates, state, params), or "
            "optaxclip.shrink_tree where there is no state."
        )


State = TypeVar("State", bound=tuple)


def state_type(
    name: str, kind: type[State], entries: tuple[Entry, ...] = ()
) -> type[State]:
    """Give the type of a state, which carries its name and those of what it reports.

    A state holds arrays alone, and a named tuple is the one kind of node that every
    checkpoint library knows; so the type is the place for names.

    Args:
      name: what `report` calls it.
      kind: a named tuple whose field ``report`` is a named tuple of arrays.
      entries: what the entries of vectors in the report are of.
    """
    return _named(name, kind, entries)


class _NamedType(type):
    """The type of types that are one type to JAX where they have one name.

    What their reports are of must not tell them apart: ``optax.tree.map_params`` lays a
    state beside one that was made for no parameters at all.
    """

    def __eq__(cls, other: object) -> bool:
        return isinstance(other, _NamedType) and cls._name() == other._name()

    def __hash__(cls) -> int:
        return hash(cls._name())

    def _name(cls) -> tuple[str, type | None]:
        return cls.__name__, cls.__base__


@functools.cache
def _named(name: str, kind: type, entries: tuple[Entry, ...]) -> Any:
    fields = {"__slots__": (), "__module__": __name__, "entries": entries}
    made = _NamedType(name, (kind,), fields)
    # Types are pickled by where they are found: here, by `__getattr__`.
    home = f"{kind.__module__}.{kind.__name__}({json.dumps([name, entries])})"
    made.__qualname__ = quote(home, safe="()").replace(".", _DOT)
    return made


_DOT = "%2E"  # Pickle takes a dot for the way into a class.


def __getattr__(place: str) -> Any:
    """Find the type of a state that was named by `state_type`."""
    found = re.fullmatch(r"(optaxclip\.[\w.]+)\.(\w+)\((.*)\)", unquote(place))
    if not found:
        raise AttributeError(f"module {__name__} has no attribute {place!r}.")
    module, kind, names = found.groups()
    name, entries = json.loads(names)
    entries = tuple(Entry(path, tuple(stack), own) for path, stack, own in entries)
    return _named(name, getattr(importlib.import_module(module), kind), entries)
