"""Write the tables of results, one page of Markdown."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.stability.measures import capped
from benchmarks.stability.strategies import STRATEGIES
from benchmarks.stability.summary import Row, array, ratios, read, shared
from benchmarks.stability.task import Task

HEAD = """# Results

Written by `python -m benchmarks.stability --figures` from the files beside this one.
Every strategy had the same budget: five limits, each at every learning rate, on three
seeds of their own, or as many as `--tuning-seeds` says below. The scores are of ten
other seeds at the best rate, as the median and the quartiles; the lower, the better.
*Learned* is the share of seeds that reached what counts as solved, at the rate where
most did. *Diverged* is the share of runs that ended no better than untrained, at the
best rate and above. *Range* is the ratio of the ends of the widest range of learning
rates within twice the best score of all strategies, 1 for a single rate and 0 for none;
*sensitivity* is what is lost on average over all rates. *Spikes* and *clipped* are
shares of the steps at the best rate, and *norm* is the median norm of the gradient
there.
"""


STANDING = """## How often each strategy is near the best

In how many cases the score is within 1.1 and within 2 times the best of all, with the
tuned limits and with the defaults; scores below what counts as solved are equally good.
A case is a variant of a task, and counts if most strategies were run on it. The last
columns compare a strategy's default with its tuned limit, and its ranges of learning
rates with those without clipping.

![profile](profile.png)

The score of `clip_global_norm` by its limit, on the seeds that chose it:

![sweeps](sweeps.png)"""


STEPS = """## What a step costs

Processor time of a step with the default limit, or 1, over that of one without
clipping, as the median and the quartiles of runs that took turns."""


def short(number: float) -> str:
    """Three digits, and 0 for what is only rounding."""
    return f"{number:.3g}" if number > 1e-6 else "0"


def spread(row: Row) -> str:
    """The median and the quartiles."""
    return f"{short(row.median)} ({short(row.lower)} to {short(row.upper)})"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "strategy": lambda row: f"[{row.strategy}]({row.task}/{row.strategy}.json)",
    "limit": lambda row: "" if row.limit is None else f"{row.limit:g} ({row.kind})",
    "rate": lambda row: f"{row.rate:g}",
    "score": spread,
    "learned": lambda row: "" if np.isnan(row.solved) else f"{row.solved:.0%}",
    "diverged": lambda row: f"{row.diverged:.0%}",
    "range": lambda row: f"{row.usable:.3g}",
    "sensitivity": lambda row: f"{row.sensitivity:.3g}",
    "spikes": lambda row: f"{row.spikes:.2%}",
    "clipped": lambda row: f"{row.clipped:.1%}",
    "norm": lambda row: "" if np.isnan(row.norm) else f"{row.norm:.3g}",
}


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def overview(found: list[Row], cell: Callable[[Row], str], kind: str) -> str:
    """A line for each strategy and a column for each variant of each task."""
    columns = list(dict.fromkeys((row.task, row.variant) for row in found))
    names = list(dict.fromkeys(row.strategy for row in found))
    cells = {
        (row.strategy, row.task, row.variant): cell(row)
        for row in found
        if row.kind == kind or (kind == "tuned" and row.limit is None)
    }
    body = [[name, *(cells.get((name, *c), "") for c in columns)] for name in names]
    return markdown(["strategy", *(title(*case) for case in columns)], body)


def title(task: str, variant: str) -> str:
    return task if variant == "clean" else f"{task}, {variant}"


def standing(found: list[Row], tasks: dict[str, Task]) -> str:
    """A line for each strategy: how often it is near the best."""
    tuned, default = (ratios(found, tasks, kind) for kind in ("tuned", "default"))
    body = []
    for name in tuned:
        if not default[name] and not tuned[name]:
            continue
        near = [np.array(list(r[name].values())) for r in (tuned, default)]
        both = [p for p in tuned[name] if p in default[name]]
        same = sum(default[name][p] <= 1.1 * tuned[name][p] for p in both)
        cells = [f"{np.sum(r <= x)} of {len(r)}" for x in (1.1, 2.0) for r in near]
        cells.append(f"{same} of {len(both)}" if STRATEGIES[name].trials else "")
        cells = ["" if cell == "0 of 0" else cell for cell in cells]
        body.append([name, *cells, widths(found, name)])
    head = ["strategy", "tuned, within 1.1", "default", "tuned, within 2", "default"]
    head += ["default within 1.1 of tuned", "range wider, narrower than none's"]
    return markdown(head, body)


def widths(found: list[Row], name: str) -> str:
    """Say how often the range of learning rates grew or shrank with tuned limits."""
    tuned = [row for row in found if row.kind == "tuned" or row.limit is None]
    there = {(row.strategy, row.task, row.variant): row.usable for row in tuned}
    changes = [
        np.log10((there[name, *case] + 0.1) / (there["none", *case] + 0.1))
        for case in shared(found)
        if (name, *case) in there
    ]
    wider, narrower = np.sum(np.array(changes) > 0.1), np.sum(np.array(changes) < -0.1)
    return f"{wider}, {narrower} of {len(changes)}"


def searched() -> str:
    """What the limit of each strategy is, its default, and what was tried."""
    body = [
        [
            name,
            strategy.limit,
            "" if strategy.default is None else f"{strategy.default:g}",
            ", ".join(f"{x:g}" for x in strategy.trials),
        ]
        for name, strategy in STRATEGIES.items()
        if strategy.limit != "none"
    ]
    return markdown(["strategy", "the limit", "default", "tried"], body)


def limits(found: list[Row]) -> str:
    """What share of steps the best limit of `clip_global_norm` clipped in each case."""
    there = {(r.strategy, r.task, r.variant): r for r in found if r.kind == "tuned"}
    none = {(r.task, r.variant): r for r in found if r.strategy == "none"}
    body = [
        [
            title(*case),
            f"{row.limit:g}",
            f"{row.limit / row.norm:.3g}",
            f"{row.clipped:.1%}",
            *(spread(here) for here in (row, none[tuple(case)])),
        ]
        for (strategy, *case), row in there.items()
        if strategy == "global" and tuple(case) in none
    ]
    head = ["case", "best limit", "over the median norm", "steps clipped", "score"]
    return markdown([*head, "no clipping"], body)


def by_rate(folder: Path, task: Task) -> str:
    """A line for each strategy with nothing to tune, a column for each rate."""
    body = []
    for found in read(folder):
        if found["task"] == task.name and not found["trials"]:
            scores = array(found["variants"]["clean"]["default"]["score"])
            told = np.quantile(capped(scores, task.failed), (0.25, 0.5, 0.75), axis=1)
            cells = [f"{y:.3g} ({x:.3g} to {z:.3g})" for x, y, z in told.T]
            body.append([found["strategy"], *cells])
    return markdown(["strategy", *(f"rate {rate:g}" for rate in task.rates)], body)


def step_costs(folder: Path) -> str:
    """A line for each strategy and a column for each task whose steps were timed."""
    timed = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    names = [name for name in STRATEGIES if any(name in t["ratios"] for t in timed)]
    body = [[name, *(ratio(t["ratios"].get(name)) for t in timed)] for name in names]
    head = [f"{t['task']}, {t['step_microseconds']:g} µs without" for t in timed]
    return markdown(["strategy", *head], body)


def ratio(quartiles: list[float] | None) -> str:
    if quartiles is None:
        return ""
    lower, median, upper = quartiles
    return f"{median:.2f} ({lower:.2f} to {upper:.2f})"


def details(found: list[Row], tasks: dict[str, Task]) -> str:
    """A table for each variant of each task."""
    parts = []
    for task, variant in dict.fromkeys((row.task, row.variant) for row in found):
        here = [row for row in found if (row.task, row.variant) == (task, variant)]
        here.sort(key=lambda row: (row.median, row.sensitivity))
        body = [[cell(row) for cell in COLUMNS.values()] for row in here]
        title = f"## {task}: {variant}\n\n{tasks[task].title[0].upper()}"
        title += f"{tasks[task].title[1:]}; the score is the {tasks[task].measured}."
        parts.append(f"{title}\n\n{markdown(list(COLUMNS), body)}")
    return "\n\n".join(parts)


def provenance(folder: Path) -> str:
    """Say with what and where the files were made."""
    made: dict[str, int] = {}
    for found in read(folder):
        versions, machine = found["versions"], found["machine"]
        said = ", ".join(f"{name} {number}" for name, number in versions.items())
        line = f"{machine['device']}, {machine['cores']} cores, {said}: "
        line += f"`{found['command']}`"
        made[line] = made.get(line, 0) + 1
    return "\n".join(f"- {number} files: {line}" for line, number in made.items())


def page(folder: Path, found: list[Row], tasks: dict[str, Task]) -> str:
    """All tables."""
    score = overview(found, lambda row: short(row.median), "tuned")
    default = overview(found, lambda row: short(row.median), "default")
    width = overview(found, lambda row: f"{row.usable:.3g}", "tuned")
    clipped = overview(found, lambda row: f"{row.clipped:.1%}", "tuned")
    some = {
        STEPS: step_costs(folder),
        "## CIFAR-10 by learning rate": by_rate(folder, tasks["cifar10"]),
    }
    parts = [
        HEAD,
        provenance(folder),
        STANDING,
        standing(found, tasks),
        f"## The limits that were tried\n\n{searched()}",
        f"## What the best limit of `clip_global_norm` clips\n\n{limits(found)}",
        f"## Scores with the tuned limits\n\n{score}",
        f"## Scores with the defaults\n\n{default}",
        f"## Ranges of learning rates with the tuned limits\n\n{width}",
        f"## Shares of steps clipped at the tuned limits\n\n{clipped}",
        *(f"{head}\n\n{body}" for head, body in some.items() if body.count("\n") > 1),
        details(found, tasks),
    ]
    return "\n\n".join(parts) + "\n"
