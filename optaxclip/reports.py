"""Reports of what clippers did, kept in their states."""

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
from jaxtyping import Array, Float, Int32, PyTree

from optaxclip.groups import Entry, Groups, PerGroup
from optaxclip.norms import Magnitude
from optaxclip.numbers import Number
from optaxclip.sentences import shown


class ClipReport(NamedTuple):
    """What a clipper did in its last step.

    The first three are scalars if there is one group. If the groups are leaves or
    labeled sets of leaves, they are vectors with one entry per group, in the order of
    the leaves or labels. For elements and units, which are many, they
    describe only the group that exceeded its limit the most.

    Attributes:
      pre_norm: the magnitude before clipping, in the clipper's norm.
      post_norm: the magnitude after clipping.
      limit: the limit.
      clipped_fraction: the fraction of groups above their limit.
      clipped_steps: the number of steps so far in which any group was above its limit.
    """

    pre_norm: Float[Array, "..."]
    post_norm: Float[Array, "..."]
    limit: Float[Array, "..."]
    clipped_fraction: Float[Array, ""]
    clipped_steps: Int32[Array, ""]


def empty_report(shape: tuple[int, ...]) -> ClipReport:
    """Return the report before the first step; `shape` is that of its vectors."""
    # One buffer each: a donated state must not hold the same buffer twice.
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
    """Report a step, from the magnitudes that the clipper has already measured.

    Args:
      reach: maps a magnitude and a limit to the magnitude after clipping.
      previous: the previous report.
      groups: the groups that were measured.
      size: the magnitude of each group.
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
    """State of a clipper.

    Attributes:
      threshold: the memory of the threshold.
      measure: the memory of the measurement, usually empty.
      report: the report of the last step.
    """

    threshold: Any
    measure: Any
    report: ClipReport


class BoundState(ClipState):
    """State of a clipper of parameters; its report is about them, not about updates."""

    __slots__ = ()
    mark = "of_params"


class SphereState(ClipState):
    """State of a clipper that keeps parameters on spheres; its report is about them."""

    __slots__ = ()
    mark = "on_spheres"


class LengthState(ClipState):
    """State of a clipper that gives every group a length, whatever it had before."""

    __slots__ = ()
    mark = "sets_length"


class CarryState(ClipState):
    """State of a clipper whose updates hold what it cut off in earlier steps."""

    __slots__ = ()
    mark = "carries_over"


def marked(
    clip: optax.GradientTransformation, kind: type[ClipState]
) -> optax.GradientTransformationExtraArgs:
    """Let a report tell what kind of clipper it is about.

    Args:
      clip: a clipper, or a chain of them.
      kind: the type of their states, whose ``mark`` becomes a field of the report.
    """
    inner = optax.with_extra_args_support(clip)

    def mark(node: Any) -> Any:
        if not isinstance(node, ClipState):
            return node
        entries = getattr(type(node), "entries", ())
        return state_type(type(node).__name__, kind, entries)(*node)

    def init(params: PyTree) -> Any:
        state = inner.init(params)
        return jax.tree.map(mark, state, is_leaf=lambda x: isinstance(x, ClipState))

    return optax.GradientTransformationExtraArgs(init, inner.update)


def check_state(name: str, state: Any, kind: type = ClipState) -> None:
    """Reject anything but a state of the given kind, such as None."""
    if not isinstance(state, kind):
        without = ", or optaxclip.shrink_tree where there is no state"
        raise TypeError(
            f"{name} needs the state that its own init or update gave, not "
            f"{shown(state)}; call update(updates, state, params)"
            f"{without if kind is ClipState else ''}."
        )


def check_shapes(name: str, state: Any, wanted: list[Any]) -> None:
    """Reject a state whose arrays do not have these shapes."""
    given = [jnp.shape(x) for x in jax.tree.leaves(state)]
    if given != wanted:
        raise ValueError(
            f"{name} was given a state {_difference(given, wanted)}; init it with "
            "params whose floating-point leaves are those of the updates, and with the "
            "same options."
        )


def _difference(given: list[Any], wanted: list[Any]) -> str:
    """Tell how two states differ, in few words however many arrays they have."""
    if len(given) != len(wanted):
        arrays = "array" if len(given) == 1 else "arrays"
        return f"of {len(given)} {arrays}, but the updates need {len(wanted)}"
    first, other = next(p for p in zip(given, wanted, strict=True) if p[0] != p[1])
    return f"with shapes {first} where the updates need {other}"


State = TypeVar("State", bound=tuple)


def state_type(
    name: str, kind: type[State], entries: tuple[Entry, ...] = ()
) -> type[State]:
    """Return a type of state that carries its name and those of its report's entries.

    A state holds only arrays, and named tuples are the only kind of node that every
    checkpoint library knows. The names are therefore kept in the type.

    Args:
      name: the name used in `report`.
      kind: a named tuple whose field ``report`` is a named tuple of arrays.
      entries: the names of the entries of vectors in the report.
    """
    return _named(name, kind, entries)


class _NamedType(type):
    """The metaclass of types that JAX treats as equal if they have the same name.

    Different entries must not make them unequal: ``optax.tree.map_params`` compares a
    state with one that was made for no parameters at all.
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
    # Pickle looks types up by name: here, through `__getattr__`.
    home = f"{kind.__module__}.{kind.__name__}({json.dumps([name, entries])})"
    made.__qualname__ = quote(home, safe="()").replace(".", _DOT)
    return made


_DOT = "%2E"  # Pickle reads a dot as an attribute of a class.


def __getattr__(place: str) -> Any:
    """Return the type of a state that `state_type` named, for pickle."""
    found = re.fullmatch(r"(optaxclip\.[\w.]+)\.(\w+)\((.*)\)", unquote(place))
    if not found:
        raise AttributeError(f"module {__name__} has no attribute {place!r}.")
    module, kind, names = found.groups()
    name, entries = json.loads(names)
    entries = tuple(Entry(path, tuple(stack), own) for path, stack, own in entries)
    return _named(name, getattr(importlib.import_module(module), kind), entries)
