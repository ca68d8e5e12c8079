"""Whole training runs over a grid of limits, on folds of small data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from optaxclip.arguments import check_window
from optaxclip.tuning.results import Sweep
from optaxclip.tuning.runs import keys_of, scores_of
from optaxclip.tuning.sweeps import grid_of


def cross_validate(
    train: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], Any],
    limits: ArrayLike | Sequence[float],
    rows: int,
    seeds: int | Sequence[int],
    *,
    folds: int = 5,
    chunk: int | None = None,
    progress: bool = True,
) -> Sweep:
    """Train with every limit on every fold of the data, and find the best limit.

    Where data are few, a held-out set is too small to tell limits apart. So each seed
    shuffles the rows and cuts them into folds of the same size; each fold is held out
    once, and the score of a seed is the mean over its folds. As in `sweep`, all runs
    are one program.

    Args:
      train: a whole training run that JAX can trace,
        ``train(limit, key, train_rows, test_rows) -> score``. Both sets of rows are
        arrays of indices, of the same sizes in every run. The score is one number, the
        lower the better, such as the loss on the test rows; a seed with a score that is
        not finite counts as diverged.
      limits: the limits, at least 0; infinity trains without clipping.
      rows: the number of examples.
      seeds: the number of shuffles, or the seeds of their keys; the same ones for every
        limit.
      folds: the number of folds k, at least 2 and at most `rows`. If k does not divide
        the rows, the rest of ``rows % k`` is trained on in every run of that seed, and
        tested in none.
      chunk: the number of runs, of limits x seeds x folds, at a time, if memory is
        short; all by default.
      progress: whether to show the progress over several chunks, if tqdm is installed.

    Returns:
      A `Sweep`, whose scores are those of limits x seeds.

    Raises:
      TypeError: if `train` does not return one number, or an argument has the wrong
        type.
      ValueError: if a limit is negative or NaN, or there are none; if there are fewer
        than 2 folds or fewer rows than folds; if another number is below 1.

    Examples:
      >>> inputs = jax.random.normal(jax.random.key(0), (30,))
      >>> targets = 4 * inputs + jax.random.cauchy(jax.random.key(1), (30,))
      >>> def train(limit, key, train_rows, test_rows):
      ...     clipped_sgd = optax.chain(optaxclip.clip_value(limit), optax.sgd(0.1))
      ...     def step(carry, row):
      ...         w, state = carry
      ...         grad = (w * inputs[row] - targets[row]) * inputs[row]
      ...         updates, state = clipped_sgd.update(grad, state)
      ...         return (w + updates, state), None
      ...     start = jnp.zeros(())
      ...     order = jnp.tile(train_rows, 10)
      ...     (w, _), _ = jax.lax.scan(step, (start, clipped_sgd.init(start)), order)
      ...     return jnp.abs(w * inputs[test_rows] - targets[test_rows]).mean()
      >>> limits = [0.01, 0.1, 1.0, 10.0]
      >>> print(optaxclip.tuning.cross_validate(train, limits, rows=30, seeds=3))
      limit  median     quartiles  diverged
      0.01     4.93  4.93 to 4.93      0.0%
      0.1      3.93  3.91 to 3.94      0.0%
      1        2.44  2.43 to 2.47      0.0%  <- best
      10        2.8  2.66 to 2.99      0.0%
    """
    grid, (numbers, keys) = grid_of(limits), keys_of(seeds)
    check_window(rows, "rows")
    check_window(folds, "folds")
    if not 2 <= folds <= rows:
        raise ValueError(
            f"folds must be at least 2 and at most the number of rows, {rows}, not "
            f"{folds}."
        )
    kept, held_out = _splits(keys, rows, folds)
    shape = len(grid), len(numbers), folds
    limit, seed, fold = (x.ravel() for x in np.indices(shape))
    split = seed * folds + fold
    arguments = (
        jnp.asarray(grid[limit], float),
        keys[seed],
        kept[split],
        held_out[split],
    )
    scores = scores_of(train, arguments, chunk, progress)
    return Sweep(grid, numbers, scores.reshape(shape).mean(axis=-1))


def _splits(keys: jax.Array, rows: int, folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train and to test on, seeds * folds x rows."""

    def shuffled(key: jax.Array) -> jax.Array:
        return jax.random.permutation(jax.random.fold_in(key, folds), rows)

    size = rows // folds
    kept, held_out = [], []
    for order in np.asarray(jax.vmap(shuffled)(keys)):
        for first in range(0, size * folds, size):
            held_out.append(order[first : first + size])
            kept.append(np.delete(order, slice(first, first + size)))
    return np.stack(kept), np.stack(held_out)
