"""Reports of what clippers did, kept in their states."""

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


class ClipReport(NamedTuple):
    """What a clipper did in its last step.

    The first three are scalars if there is one group. If the groups are leaves or
    labeled sets of leaves, they are vectors with one entry per group, in the order of
    the leaves or labels. For elements and units, which are many, they are those of the
    one group that exceeded its limit the most.

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
      measure: the memory of the measurement, mostly empty.
      report: the report of the last step.
    """

    threshold: Any
    measure: Any
    report: ClipReport


def check_state(name: str, state: Any) -> None:
    """Reject anything but the state of a clipper, such as None."""
    if not hasattr(state, "threshold"):
        raise TypeError(
            f"{name} needs the state that its own init or update gave, not {state!r}."
        )


State = TypeVar("State", bound=tuple)


def state_type(name: str, kind: type[State]) -> type[State]:
    """Return a state type that carries the name of its strategy or guard.

    States hold only arrays, and named tuples are the only nodes that every checkpoint
    library supports, so the name is stored in the name of the type.

    Args:
      name: the name used in `report`.
      kind: a named tuple whose field ``report`` is a named tuple of arrays.
    """
    return _named(name, kind)


@functools.cache
def _named(name: str, kind: type) -> Any:
    made = type(name, (kind,), {"__slots__": (), "__module__": __name__})
    # Types are pickled by the path to them; here `__getattr__` resolves it.
    home = f"{kind.__module__}.{kind.__name__}({name})"
    made.__qualname__ = quote(home, safe="()").replace(".", _DOT)
    return made


_DOT = "%2E"  # To pickle, a dot means an attribute of a class.


def __getattr__(place: str) -> Any:
    """Resolve a state type that was made by `state_type`."""
    found = re.fullmatch(r"(optaxclip\..+)\.(\w+)\((.*)\)", unquote(place), re.DOTALL)
    if not found:
        raise AttributeError(f"module {__name__} has no attribute {place!r}.")
    module, kind, name = found.groups()
    return _named(name, getattr(importlib.import_module(module), kind))


def _tells(node: Any) -> bool:
    return isinstance(node, tuple) and isinstance(getattr(node, "report", None), tuple)


def _telling(tree: PyTree) -> Iterator[Any]:
    """Yield every state that has a report, wrappers before what they wrap."""
    for node in jax.tree.leaves(tree, is_leaf=_tells):
        if _tells(node):
            yield node
            yield from _telling(tuple(node))


def report(opt_state: PyTree) -> dict[str, Array]:
    """Collect the reports of all clippers and guards in an optimizer's state.

    The state may be nested in any way: chains, masks, partitions, wrappers.

    Args:
      opt_state: the state of any Optax transformation.

    Returns:
      A flat dict for any logger, without synchronizing with the device. The keys
      are ``"clip/pre_norm"``, ``"clip/post_norm"``, ``"clip/limit"``,
      ``"clip/clipped_fraction"`` and ``"clip/clipped_steps"``, the fields of
      `ClipReport`. If there are several clippers, the strategy's name replaces
      ``clip``, numbered from its second occurrence. A guard is always reported under
      its own name, as in ``"skip_nonfinite/skipped"``. Without clippers and guards the
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
