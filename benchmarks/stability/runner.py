"""Run what is missing: a process for each task and strategy, a file for each result.

A file appears only when it is complete, so that a run which was interrupted goes on
where it was, by the same command.

    python -m benchmarks.stability                        # everything, in some hours
    python -m benchmarks.stability --tasks recurrent20 --strategies none global
    python -m benchmarks.stability --figures              # tables and pictures
"""

import argparse
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import jax

from benchmarks.stability.pair import Size, measure
from benchmarks.stability.strategies import STRATEGIES
from benchmarks.stability.summary import rows
from benchmarks.stability.tasks import tasks

RESULTS = Path(__file__).parent / "results"
Pair = tuple[str, str]


def applies(task: str, strategy: str) -> bool:
    only = STRATEGIES[strategy].only
    return only is None or task in only


def file_of(folder: Path, pair: Pair) -> Path:
    task, strategy = pair
    return folder / task / f"{strategy}.json"


def run(folder: Path, text: Path | None, size: Size, pair: Pair) -> str:
    """Measure one pair and write its file; return a line that says so."""
    task, strategy = pair
    start = time.perf_counter()
    found = {"task": task, "strategy": strategy}
    found |= measure(tasks(text)[task], STRATEGIES[strategy], size)
    file = file_of(folder, pair)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(found, separators=(",", ":")) + "\n")
    unfinished.replace(file)
    jax.clear_caches()
    return (
        f"{task} {strategy}: {time.perf_counter() - start:.0f} s, of which "
        f"{found['compile_seconds']:.0f} s compiling"
    )


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


def write_figures(folder: Path) -> None:
    from benchmarks.stability import pictures, tables

    found = rows(folder, tasks())
    print(tables.write(folder, found, tasks()))
    print(*pictures.draw(folder, found, tasks()), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stability", description=__doc__.splitlines()[0]
    )
    add, names = parser.add_argument, list(tasks())
    add("--tasks", nargs="+", choices=names, default=names, metavar="TASK")
    add("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES),
        metavar="STRATEGY")
    add("--jobs", type=int, default=1, help="how many processes")
    add("--chunk", type=int, default=64, help="how many runs at a time in a process")
    add("--first-seed", type=int, default=0)
    add("--text", type=Path, help="what the transformers read, in UTF-8")
    add("--output", type=Path, default=RESULTS, help="the folder of the results")
    add("--figures", action="store_true", help="only write tables and pictures")
    args = parser.parse_args()
    if args.figures:
        return write_figures(args.output)
    pairs = [(t, s) for t in args.tasks for s in args.strategies if applies(t, s)]
    missing = [pair for pair in pairs if not file_of(args.output, pair).exists()]
    size = Size(first_seed=args.first_seed, chunk=args.chunk)
    function = partial(run, args.output, args.text, size)
    print(f"{len(pairs) - len(missing)} of {len(pairs)} are there.", flush=True)
    start, failed = time.perf_counter(), 0
    for number, (pair, line) in enumerate(
        outcomes(function, missing, args.jobs), start=1
    ):
        failed += line is None
        minutes = (time.perf_counter() - start) / 60
        line = line or f"{' '.join(pair)}: FAILED"
        print(f"{number}/{len(missing)}, {minutes:.1f} min: {line}", flush=True)
    if failed:
        raise SystemExit(f"{failed} failed; the same command runs them again.")
