"""Whole training runs over a grid of limits and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from optaxclip.arguments import check_limit
from optaxclip.sentences import shown
from optaxclip.tuning.results import Sweep
from optaxclip.tuning.runs import keys_of, scores_of


def sweep(
    train: Callable[[jax.Array, jax.Array], Any],
    limits: ArrayLike | Sequence[float],
    seeds: int | Sequence[int],
    *,
    chunk: int | None = None,
    progress: bool = True,
) -> Sweep:
    """Train with every limit and every seed, all at once, and find the best limit.

    A limit may be a traced number, so all runs are one program, mapped by ``jax.vmap``
    and compiled once. A geometric grid with a factor of about 3 is a good start.

    Args:
      train: a whole training run, ``train(limit, key) -> score``, which JAX can trace.
        The score is one real number, the lower the better, such as a loss on held-out
        data; a run whose score is not finite counts as diverged.
      limits: the limits, at least 0; infinity trains without clipping.
      seeds: the number of runs for each limit, or the seeds of their keys; the same
        ones for every limit.
      chunk: the number of runs at a time, if memory is short; all by default.
      progress: whether to show the progress over several chunks, if tqdm is installed.

    Returns:
      A `Sweep`, which has all scores and the best limit, and prints as a table.

    Raises:
      TypeError: if `train` does not return one real number, or an argument has the
        wrong type.
      ValueError: if a limit is negative or NaN, or there are none; if the number of
        seeds or `chunk` is below 1.

    Examples:
      Steps that are clipped too much do not arrive, and those that are clipped too
      little are led astray by outliers:

      >>> def train(limit, key):
      ...     clipped_sgd = optax.chain(
      ...         optaxclip.clip_global_norm(limit), optax.sgd(0.1)
      ...     )
      ...     def step(carry, noise):
      ...         w, state = carry
      ...         updates, state = clipped_sgd.update(w - 3 + noise, state)
      ...         return (w + updates, state), None
      ...     noise = jax.random.cauchy(key, (200,))
      ...     start = jnp.zeros(())
      ...     (w, _), _ = jax.lax.scan(step, (start, clipped_sgd.init(start)), noise)
      ...     return (w - 3) ** 2
      >>> print(optaxclip.tuning.sweep(train, [0.01, 0.1, 1.0, 10.0], seeds=20))
      limit  median         quartiles  diverged
      0.01     8.08      8.05 to 8.11      0.0%
      0.1      2.47      2.26 to 2.57      0.0%
      1      0.0294  0.0162 to 0.0846      0.0%  <- best
      10      0.275     0.142 to 1.04      0.0%
    """
    grid, (numbers, keys) = grid_of(limits), keys_of(seeds)
    each = np.repeat(np.arange(len(grid)), len(numbers))
    every = np.tile(np.arange(len(numbers)), len(grid))
    arguments = jnp.asarray(grid[each], float), keys[every]
    scores = scores_of(train, arguments, chunk, progress)
    return Sweep(grid, numbers, scores.reshape(len(grid), len(numbers)))


def grid_of(limits: Any) -> np.ndarray:
    """Return the limits in ascending order, each once."""
    grid = np.asarray(limits)
    if grid.ndim != 1 or not grid.size:
        raise ValueError(
            f"limits must be a sequence of numbers, not {shown(limits)}; give such as "
            "[0.1, 0.3, 1.0]."
        )
    check_limit(grid, "limits")
    return np.unique(grid.astype(np.float64))
