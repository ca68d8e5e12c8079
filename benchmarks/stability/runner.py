"""Run what is missing, in several processes, with a file for each result.

A file appears only when it is complete, so that a run which was interrupted goes on
where it was, by the same command.
"""

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import jax

from benchmarks.stability.pair import Size, measure
from benchmarks.stability.strategies import STRATEGIES
from benchmarks.stability.tasks import tasks

Pair = tuple[str, str]


@dataclass(frozen=True)
class Runner:
    """Measures one pair of a task and a strategy, and writes its file.

    Attributes:
      folder: the folder of all results.
      data: a text for the transformers to read, or the folder of CIFAR-10.
      size: how many seeds, and how many steps.
    """

    folder: Path
    data: Path | None
    size: Size

    def __call__(self, pair: Pair) -> str:
        """Return a line about it."""
        task, strategy = pair
        start = time.perf_counter()
        found = measure(tasks(self.data)[task], STRATEGIES[strategy], self.size)
        self._write(pair, {"task": task, "strategy": strategy, **found})
        jax.clear_caches()
        return (
            f"{task} {strategy}: {time.perf_counter() - start:.0f} s, of which "
            f"{found['compile_seconds']:.0f} s compiling"
        )

    def _file(self, pair: Pair) -> Path:
        task, strategy = pair
        return self.folder / task / f"{strategy}.json"

    def _write(self, pair: Pair, found: dict[str, object]) -> None:
        """Write all of it or nothing."""
        file = self._file(pair)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(found, separators=(",", ":")) + "\n")
        unfinished.replace(file)

    def missing(self, pairs: list[Pair]) -> list[Pair]:
        """The pairs that have no file yet."""
        return [pair for pair in pairs if not self._file(pair).exists()]


def pairs_of(names: list[str], strategies: list[str]) -> list[Pair]:
    """Each task with each strategy that is for it."""
    return [
        (task, strategy)
        for task in names
        for strategy in strategies
        if task in (STRATEGIES[strategy].only or names)
        and task not in STRATEGIES[strategy].never
    ]


def outcomes(
    function: Callable[[Pair], str], pairs: list[Pair], jobs: int
) -> Iterator[tuple[Pair, str | None]]:
    """Run all pairs; yield a line about each, or None after one that failed."""
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        waiting = {pool.submit(function, pair): pair for pair in pairs}
        for done in as_completed(waiting):
            try:
                yield waiting[done], done.result()
            except Exception:
                traceback.print_exc()
                yield waiting[done], None
