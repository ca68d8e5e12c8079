"""Many training runs as one program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optaxclip.arguments import check_window
from optaxclip.sentences import shown

Train = Callable[..., Any]


def keys_of(seeds: int | Any) -> tuple[np.ndarray, jax.Array]:
    """Return the seeds and their keys, from the seeds or their number."""
    if isinstance(seeds, int):
        check_window(seeds, "seeds")
        seeds = range(seeds)
    numbers = np.asarray(seeds)
    if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "iu":
        raise TypeError(
            "seeds must be a number of seeds or a sequence of ints, not "
            f"{shown(seeds)}."
        )
    return numbers, jax.vmap(jax.random.key)(jnp.asarray(numbers))


def scores_of(
    train: Train, arguments: tuple[Any, ...], chunk: int | None, progress: bool
) -> np.ndarray:
    """Run `train` on every row of its arguments, in one program that is used again.

    Args:
      train: takes one row of each argument, and returns a number.
      arguments: arrays with a leading axis of runs.
      chunk: the number of runs at a time; all if None.
      progress: whether to show a bar over the chunks, if tqdm is there.
    """
    if not callable(train):
        raise TypeError(f"train must be a function, not {shown(train)}.")
    runs = len(arguments[0])
    if chunk is None:
        chunk = runs
    check_window(chunk, "chunk")
    program = jax.jit(jax.vmap(train))
    _check_score(jax.eval_shape(program, *arguments))
    scores = [np.zeros(0)]
    for first in _shown(range(0, runs, chunk), progress):
        # The last chunk is filled up, since another shape would be another program.
        rows = np.minimum(np.arange(first, first + min(chunk, runs)), runs - 1)
        scores.append(np.asarray(program(*(x[rows] for x in arguments)), np.float64))
    return np.concatenate(scores)[:runs]


def _check_score(scores: Any) -> None:
    if not hasattr(scores, "shape"):
        what = shown(scores)
    else:
        shape, dtype = scores.shape[1:], scores.dtype
        kinds = jnp.floating, jnp.integer
        if not shape and any(jnp.issubdtype(dtype, kind) for kind in kinds):
            return
        what = f"an array of shape {shape} and type {dtype}"
    raise TypeError(f"train must return one real number, the score, not {what}.")


def _shown(chunks: range, progress: bool) -> Iterator[int]:
    """Show a bar, if it is wanted and tqdm is installed."""
    if progress and len(chunks) > 1:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return iter(chunks)
        return iter(tqdm(chunks, desc="sweep", unit="chunk"))
    return iter(chunks)
