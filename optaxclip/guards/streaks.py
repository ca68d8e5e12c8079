"""Count bad steps, in total and in a row, and stop after too many in a row."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, PyTree

from optaxclip.arguments import check_nonnegative
from optaxclip.reading import report

Report = TypeVar("Report", bound=Any)


def tally(previous: Report, happened: Bool[Array, ""]) -> Report:
    """Update a report's fields `consecutive` and `total` with this step."""
    longer = optax.safe_increment(previous.consecutive)
    more = optax.safe_increment(previous.total)
    return previous._replace(
        consecutive=jnp.where(happened, longer, jnp.zeros_like(longer)),
        total=jnp.where(happened, more, previous.total),
    )


def stop_on_streak(opt_state: PyTree, max_consecutive: int) -> None:
    """Raise an error if a guard has acted in too many steps in a row.

    A guard never gives up: it skips bad steps no matter how many it has skipped before.
    Use this to stop a run that has only bad steps left. Call it between steps; since it
    waits for the device, every few steps is enough: the next call notices any streak
    that is still going.

    Args:
      opt_state: the state of an optimizer with a guard anywhere in it.
      max_consecutive: the longest run of bad steps that is allowed.

    Raises:
      RuntimeError: if any guard's ``consecutive`` is larger; the message names it.
      ValueError: if the state contains no guard, or `max_consecutive` is negative.
      TypeError: if `max_consecutive` is no number, or it is called inside a
        transformation such as ``jax.jit``.

    Examples:
      >>> optimizer = optaxclip.skip_nonfinite(optax.sgd(0.1))
      >>> params = jnp.zeros(2)
      >>> state = optimizer.init(params)
      >>> for _ in range(3):
      ...     _, state = optimizer.update(jnp.array([jnp.nan, 0.0]), state)
      ...     optaxclip.stop_on_streak(state, max_consecutive=2)
      Traceback (most recent call last):
      RuntimeError: skip_nonfinite has acted in each of the last 3 steps, more than 2.
    """
    check_nonnegative(max_consecutive, "max_consecutive")
    found = report(opt_state)
    streaks = {
        key.removesuffix("/consecutive"): streak
        for key, streak in found.items()
        if key.endswith("/consecutive")
    }
    if not streaks:
        raise ValueError("opt_state holds no guard; wrap the optimizer in one.")
    if any(isinstance(streak, Tracer) for streak in streaks.values()):
        raise TypeError(
            "stop_on_streak needs concrete numbers, which are not available under jit; "
            "call it outside jit, between steps."
        )
    for name, streak in jax.device_get(streaks).items():
        longest = int(np.max(streak))
        if longest > max_consecutive:
            raise RuntimeError(
                f"{name} has acted in each of the last {longest} steps, more than "
                f"{max_consecutive}."
            )
