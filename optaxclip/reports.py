"""What a clipper did: the numbers that users ask for, in every clipper's state."""

import functools
import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32, PyTree

from optaxclip.groups import Groups, PerGroup
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
            f"{shown(state)}; call update(updates, state, params)."
        )


State = TypeVar("State", bound=tuple)


def state_type(name: str, kind: type[State]) -> type[State]:
    """Give the type of a strategy's or guard's state, which carries its name.

    A state holds arrays alone, and a named tuple is the one kind of node that every
    checkpoint library knows; so the name of the type is the place for it.

    Args:
      name: what `report` calls it.
      kind: a named tuple whose field ``report`` is a named tuple of arrays.
    """
    return _named(name, kind)


@functools.cache
def _named(name: str, kind: type) -> Any:
    made = type(name, (kind,), {"__slots__": (), "__module__": __name__})
    # Types are pickled by where they are found: here, by `__getattr__`.
    home = f"{kind.__module__}.{kind.__name__}({name})"
    made.__qualname__ = quote(home, safe="()").replace(".", _DOT)
    return made


_DOT = "%2E"  # Pickle takes a dot for the way into a class.


def __getattr__(place: str) -> Any:
    """Find the type of a state that was named by `state_type`."""
    found = re.fullmatch(r"(optaxclip\..+)\.(\w+)\((.*)\)", unquote(place), re.DOTALL)
    if not found:
        raise AttributeError(f"module {__name__} has no attribute {place!r}.")
    module, kind, name = found.groups()
    return _named(name, getattr(importlib.import_module(module), kind))


def _tells(node: Any) -> bool:
    return isinstance(node, tuple) and isinstance(getattr(node, "report", None), tuple)


def _telling(tree: PyTree) -> Iterator[Any]:
    """Find every state that has a report, those of wrappers before what they wrap."""
    for node in jax.tree.leaves(tree, is_leaf=_tells):
        if _tells(node):
            yield node
            yield from _telling(tuple(node))


def report(opt_state: PyTree) -> dict[str, Array]:
    """Collect what the clippers and guards in an optimizer's state did last.

    The state may nest as it likes: chains, masks, partitions, wrappers.

    Args:
      opt_state: the state of any optax transformation.

    Returns:
      A flat dict for any logger, without synchronizing with the device. The keys
      are ``"clip/pre_norm"``, ``"clip/post_norm"``, ``"clip/limit"``,
      ``"clip/clipped_fraction"`` and ``"clip/clipped_steps"``, the fields of
      `ClipReport`. Where there are several clippers the strategy's name takes the
      place of ``clip``, numbered from the second of a name on. A guard always goes
      by its name, as in ``"skip_nonfinite/skipped"``. Where there is neither the
      dict is empty.

    Examples:
      >>> optimizer = optax.chain(optaxclip.clip_global_norm(1.0), optax.sgd(0.01))
      >>> state = optimizer.init({"w": jnp.zeros(2)})
      >>> _, state = optimizer.update({"w": jnp.array([3.0, 4.0])}, state)
      >>> float(optaxclip.report(state)["clip/pre_norm"])
      5.0
    """
    states = list(_telling(opt_state))
    clips = [state for state in states if isinstance(state.report, ClipReport)]
    seen: Counter[str] = Counter()
    found = {}
    for state in states:
        alone = len(clips) == 1 and clips[0] is state
        name = "clip" if alone else type(state).__name__
        seen[name] += 1
        key = name if seen[name] == 1 else f"{name}_{seen[name]}"
        for field, value in state.report._asdict().items():
            # Flax NNX keeps each array of an optimizer's state in a variable.
            (found[f"{key}/{field}"],) = jax.tree.leaves(value)
    return found
