"""The protocol for one task with one strategy: tune the limit, then report.

Every strategy with a limit has the same budget: five limits, each at every learning
rate, on seeds of their own. The limit whose best rate has the lowest median score is
the tuned one. What is reported comes from other seeds, at every rate, with the tuned
limit and with the default one. Tuning is `optaxclip.tuning.sweep` at every rate, which
a test holds; but a sweep is a program for one rate, and here all rates and variants
share one, since compiling takes longer than most runs.
"""

import os
import platform
import sys
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.stability.measures import best_trial, spike_share
from benchmarks.stability.strategies import Strategy
from benchmarks.stability.task import Task
from benchmarks.stability.training import Program, Results, Runs

FIRST_TUNING_SEED = 1_000_000


@dataclass(frozen=True)
class Size:
    """How many seeds, which, how many runs at a time, and what part of the steps."""

    seeds: int = 10
    tuning_seeds: int = 3
    first_seed: int = 0
    chunk: int = 64
    part: float = 1.0


REDUCED = Size(seeds=3, tuning_seeds=1, part=0.1)


def measure(task: Task, strategy: Strategy, size: Size) -> dict[str, Any]:
    """Run the whole protocol; return what goes into the file."""
    task = replace(task, steps=max(1, int(size.part * task.steps)))
    program = Program(task, strategy, min(size.chunk, most_runs(task, strategy, size)))
    tuning = tune(program, task, strategy, size)
    limits = [limits_of(task, strategy, scores) for scores in tuning]
    cases = [(n, x) for n, kinds in enumerate(limits) for x in set(kinds.values())]
    reports = dict(zip(cases, reported(program, task, cases, size), strict=True))
    variants = {
        name: {
            "limits": limits[number],
            "tuning": rounded(tuning[number]),
            **{kind: reports[number, x] for kind, x in limits[number].items()},
        }
        for number, name in enumerate(task.variants)
    }
    step = program.run_seconds / program.trained / task.steps
    return {
        "rates": task.rates,
        "trials": strategy.trials,
        "steps": task.steps,
        "size": asdict(size),
        "compile_seconds": rounded(program.compile_seconds),
        "run_seconds": rounded(program.run_seconds),
        "step_microseconds": rounded(1e6 * step),
        **where_and_how(),
        "variants": variants,
    }


def most_runs(task: Task, strategy: Strategy, size: Size) -> int:
    """How many runs there are to tune or to report, whichever are more."""
    tuning = len(strategy.trials) * size.tuning_seeds
    kinds = bool(strategy.trials) + (
        strategy.default is not None or not strategy.trials
    )
    return len(task.variants) * len(task.rates) * max(tuning, kinds * size.seeds)


def tune(program: Program, task: Task, strategy: Strategy, size: Size) -> np.ndarray:
    """Return the scores of (variants, limits, rates, seeds)."""
    first = FIRST_TUNING_SEED + size.first_seed
    axes = (
        range(len(task.variants)),
        strategy.trials,
        task.rates,
        range(first, first + size.tuning_seeds),
    )
    return (
        of_grid(program, axes).score if strategy.trials else np.zeros((len(axes[0]), 0))
    )


def limits_of(
    task: Task, strategy: Strategy, scores: np.ndarray
) -> dict[str, float | None]:
    """The limits to report: the default one, and the best of the trials."""
    limits: dict[str, float | None] = {}
    if strategy.default is not None or not strategy.trials:
        limits["default"] = strategy.default
    if strategy.trials:
        limits["tuned"] = strategy.trials[best_trial(scores, task.failed)]
    return limits


def reported(
    program: Program, task: Task, cases: list[tuple[int, float | None]], size: Size
) -> list[dict[str, Any]]:
    """Train every variant and limit at every rate with the seeds that are reported."""
    seeds = range(size.first_seed, size.first_seed + size.seeds)
    results = of_grid(program, (cases, task.rates, seeds))
    return [
        {
            "score": rounded(results.score[case]),
            "spikes": rounded(spike_share(results.loss[case]).mean(-1)),
            "clipped": rounded(results.clipped[case].mean((-2, -1))),
            "norm": rounded(np.median(results.norm[case], (-2, -1))),
        }
        for case in range(len(cases))
    ]


def of_grid(program: Program, axes: tuple[Any, ...]) -> Results:
    """Train all combinations; the results have one axis for each of `axes`."""
    rows = [flat(row) for row in product(*axes)]
    columns = Runs(*np.asarray(rows, np.float64).T)
    shape = tuple(len(axis) for axis in axes)
    return Results(*(x.reshape(*shape, *x.shape[1:]) for x in program(columns)))


def flat(row: tuple[Any, ...]) -> list[float]:
    """Write a case's two numbers side by side; 0 stands for no limit."""
    first = row[0] if isinstance(row[0], tuple) else row[:1]
    rest = row[1:]
    return [0.0 if x is None else float(x) for x in (*first, *rest)]


def rounded(numbers: Any) -> Any:
    """Four significant digits, and None for what is not finite."""
    if np.ndim(numbers):
        return [rounded(x) for x in numbers]
    return float(f"{numbers:.4g}") if np.isfinite(numbers) else None


def where_and_how() -> dict[str, Any]:
    device = jax.devices()[0]
    names = ("jax", "jaxlib", "numpy", "optax", "optaxclip")
    arguments = sys.argv[1:]
    if "--output" in arguments:  # where the files went does not matter
        place = arguments.index("--output")
        arguments = arguments[:place] + arguments[place + 2 :]
    if "--data" in arguments:  # nor where the data were
        place = arguments.index("--data") + 1
        arguments[place] = Path(arguments[place]).name
    return {
        "versions": {name: version(name) for name in names}
        | {"python": platform.python_version()},
        "machine": {
            "device": device.device_kind,
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
        "command": " ".join(["python", "-m", "benchmarks.stability", *arguments]),
    }
