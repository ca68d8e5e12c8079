"""Read the files of results, and summarize each case in one row."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.stability.measures import capped, diverged, sensitivity, usable
from benchmarks.stability.strategies import STRATEGIES
from benchmarks.stability.task import Task


class Row(NamedTuple):
    """One variant of a task with one strategy and the default or the tuned limit.

    Attributes:
      task: the task's name.
      variant: the variant's name.
      strategy: the strategy's name.
      kind: "default" or "tuned".
      limit: the limit, or None.
      rate: the best learning rate, which has the lowest median.
      median: the median score at the best rate; NaN if it failed.
      lower: the lower quartile there.
      upper: the upper quartile there.
      diverged: the share of runs that failed, at the best rate and above.
      solved: the largest share of seeds that learned the task, at any rate; NaN where
        the task does not say what that is.
      sensitivity: how much is lost at an average rate.
      usable: the ratio of the ends of the widest range of good rates.
      spikes: the share of steps at the best rate whose loss was a spike.
      clipped: the share of steps at the best rate that were clipped.
      norm: the median norm of the gradient at the best rate.
    """

    task: str
    variant: str
    strategy: str
    kind: str
    limit: float | None
    rate: float
    median: float
    lower: float
    upper: float
    diverged: float
    solved: float
    sensitivity: float
    usable: float
    spikes: float
    clipped: float
    norm: float


def array(numbers: Any) -> np.ndarray:
    """Read None as NaN."""
    return np.asarray(numbers, np.float64)


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what the files say, in the order of the strategies' table."""
    for name in STRATEGIES:
        for file in sorted(folder.glob(f"*/{name}.json")):
            yield json.loads(file.read_text())


def rows(folder: Path, tasks: dict[str, Task]) -> list[Row]:
    """Summarize everything that is there.

    Good is a score within twice the best that any strategy reached, or one that counts
    as solved.
    """
    there = [
        (found, variant, kind)
        for found in read(folder)
        for variant, cases in found["variants"].items()
        for kind in cases["limits"]
    ]
    best: dict[tuple[str, str], float] = {}
    for found, variant, kind in there:
        key, failed = (found["task"], variant), tasks[found["task"]].failed
        scores = array(found["variants"][variant][kind]["score"])
        lowest = float(np.median(capped(scores, failed), axis=1).min())
        best[key] = min(best.get(key, failed), lowest)
    return [
        row(tasks[found["task"]], found, variant, kind, best[found["task"], variant])
        for found, variant, kind in there
    ]


def row(
    task: Task, found: dict[str, Any], variant: str, kind: str, lowest: float
) -> Row:
    """Summarize one case; `lowest` is the best score of all strategies."""
    cases = found["variants"][variant]
    case, rates = cases[kind], array(found["rates"])
    scores = array(case["score"])
    medians = np.median(capped(scores, task.failed), axis=1)
    best, learned = int(np.argmin(medians)), medians < task.failed
    good = max(2 * lowest, task.solved)
    lower, median, upper = np.quantile(
        capped(scores[best], task.failed), (0.25, 0.5, 0.75)
    )
    return Row(
        task=task.name,
        variant=variant,
        strategy=found["strategy"],
        kind=kind,
        limit=cases["limits"][kind],
        rate=float(rates[best]),
        median=float(median),
        lower=float(lower),
        upper=float(upper),
        diverged=diverged(scores, task.failed),
        solved=float((scores <= task.solved).mean(1).max()) if task.solved else np.nan,
        sensitivity=sensitivity(medians),
        usable=usable(np.where(learned, medians, np.inf), rates, good),
        spikes=array(case["spikes"])[best],
        clipped=array(case["clipped"])[best],
        norm=array(case["norm"])[best],
    )


def shared(found: list[Row]) -> set[tuple[str, str]]:
    """The cases, tasks and variants, that most of the strategies were run on."""
    names: dict[tuple[str, str], set[str]] = {}
    for row in found:
        names.setdefault((row.task, row.variant), set()).add(row.strategy)
    return {case for case, there in names.items() if len(there) > len(STRATEGIES) / 2}


def ratios(
    found: list[Row], tasks: dict[str, Task], kind: str
) -> dict[str, dict[tuple[str, str], float]]:
    """Each strategy's score over the best of all, for every case that they share.

    Scores below what counts as solved are equally good, and one that failed is
    infinitely far off. A strategy without a limit counts as tuned, too.
    """
    scores: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    cases = shared(found)
    for row in found:
        if (row.task, row.variant) not in cases:
            continue
        task = tasks[row.task]
        score = np.inf if row.median >= task.failed else row.median
        here = scores.setdefault((row.task, row.variant), {})
        here[row.strategy, row.kind] = max(score, task.solved)
        if row.limit is None:
            here[row.strategy, "tuned"] = here[row.strategy, row.kind]
    return {
        name: {
            place: here[name, kind] / min(here.values())
            for place, here in scores.items()
            if (name, kind) in here
        }
        for name in dict.fromkeys(row.strategy for row in found)
    }
