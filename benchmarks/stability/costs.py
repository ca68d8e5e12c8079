"""The cost of a step: the time with each strategy over the time without clipping.

Strategies take turns, and a ratio is that of two runs of the same turn, so that a load
from elsewhere hits both alike. What is measured is the processor time of all threads.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.stability.pair import rounded, where_and_how
from benchmarks.stability.strategies import STRATEGIES
from benchmarks.stability.task import Task
from benchmarks.stability.training import Program, Runs

STEPS, TURNS = 50, 31


def program_of(task: Task, name: str) -> tuple[Program, Runs]:
    """Compile one run of some steps, without the score at its end."""
    short = replace(task, steps=STEPS, score=lambda params, key: jnp.zeros(()))
    strategy = STRATEGIES[name]
    limit = strategy.default if strategy.default is not None else 1.0
    run = Runs(*np.array([[0.0], [limit], [min(task.rates)], [0.0]]))
    return Program(short, strategy, chunk=1), run


def seconds(programs: dict[str, tuple[Program, Runs]]) -> dict[str, np.ndarray]:
    """Processor time of each program, one number for each turn."""
    took: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(TURNS + 1):
        for name, (program, run) in programs.items():
            start = time.process_time()
            program(run)
            took[name].append(time.process_time() - start)
    return {name: np.array(times[1:]) for name, times in took.items()}


def measure(task: Task, names: Sequence[str]) -> dict[str, Any]:
    """Return the quartiles of the ratios, and what else belongs into the file."""
    every = dict.fromkeys(("none", *names))
    took = seconds({name: program_of(task, name) for name in every})
    return {
        "task": task.name,
        "steps": STEPS,
        "turns": TURNS,
        "step_microseconds": rounded(1e6 * np.median(took["none"]) / STEPS),
        **where_and_how(),
        "ratios": {
            name: rounded(np.quantile(times / took["none"], (0.25, 0.5, 0.75)))
            for name, times in took.items()
        },
    }


def write(folder: Path, task: Task, names: Sequence[str]) -> Path:
    """Measure, and write the file."""
    file = folder / f"costs_{task.name}.json"
    file.write_text(json.dumps(measure(task, names), separators=(",", ":")) + "\n")
    return file
