"""The command: what to run, with how many processes, and where results go.

python -m benchmarks.stability                        # everything, in some hours
python -m benchmarks.stability --tasks recurrent20 --strategies none global
python -m benchmarks.stability --reduced --output reduced
python -m benchmarks.stability --data cifar-10-batches-py   # and CIFAR-10
python -m benchmarks.stability --costs transformer    # what a step takes with each
python -m benchmarks.stability --figures              # tables and pictures
"""

import argparse
import time
from pathlib import Path

from benchmarks.stability import costs, pictures, tables
from benchmarks.stability.pair import REDUCED, Size
from benchmarks.stability.runner import Runner, outcomes, pairs_of
from benchmarks.stability.strategies import STRATEGIES
from benchmarks.stability.summary import rows
from benchmarks.stability.tasks import ready, tasks

RESULTS = Path(__file__).parent / "results"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, names, known = parser.add_argument, list(tasks()), list(STRATEGIES)
    add("--tasks", nargs="+", choices=names, metavar="TASK", help="all by default")
    add("--strategies", nargs="+", choices=known, default=known, metavar="STRATEGY")
    add("--jobs", type=int, default=1, help="how many processes")
    add("--chunk", type=int, default=64, help="how many runs at a time in each")
    add("--first-seed", type=int, default=0, help="other seeds, a second opinion")
    add("--seeds", type=int, default=Size.seeds, help="how many seeds are reported")
    add("--tuning-seeds", type=int, default=Size.tuning_seeds, help="and how many tune")
    add("--reduced", action="store_true", help="few seeds, a tenth of the steps")
    add("--data", type=Path, help="a text in UTF-8, or CIFAR-10's folder")
    add("--output", type=Path, default=RESULTS, help="the folder of the results")
    add("--costs", choices=names, metavar="TASK", help="only time its steps")
    add("--figures", action="store_true", help="only write tables and pictures")
    return parser.parse_args()


def write_figures(folder: Path) -> None:
    found, all_tasks = rows(folder, tasks()), tasks()
    if not found:
        raise SystemExit(f"{folder} holds no results; run without --figures first.")
    page = folder / "README.md"
    page.write_text(tables.page(folder, found, all_tasks))
    print(page, *pictures.draw(folder, found, all_tasks), sep="\n")


def run(args: argparse.Namespace) -> None:
    """Run what is missing, and tell after each pair how far it is."""
    size = Size(args.seeds, args.tuning_seeds, args.first_seed, args.chunk)
    runner = Runner(args.output, args.data, REDUCED if args.reduced else size)
    pairs = pairs_of(args.tasks or ready(args.data), args.strategies)
    missing = runner.missing(pairs)
    print(f"{len(pairs) - len(missing)} of {len(pairs)} are there.", flush=True)
    start, failed = time.perf_counter(), 0
    done = outcomes(runner, missing, args.jobs)
    for number, (pair, line) in enumerate(done, start=1):
        failed += line is None
        minutes = (time.perf_counter() - start) / 60
        told = line or f"{' '.join(pair)}: FAILED"
        print(f"{number} of {len(missing)}, {minutes:.1f} min: {told}", flush=True)
    if failed:
        raise SystemExit(f"{failed} failed; the same command runs them again.")


def main() -> None:
    args = arguments()
    if args.figures:
        write_figures(args.output)
    elif args.costs:
        names = [name for _, name in pairs_of([args.costs], args.strategies)]
        print(costs.write(args.output, tasks()[args.costs], names))
    else:
        run(args)
