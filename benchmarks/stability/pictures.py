"""Draw the results: how often each strategy is near the best, and maps of scores."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from benchmarks.stability.measures import capped
from benchmarks.stability.summary import Row, array, read
from benchmarks.stability.task import Task

NEAR = np.geomspace(1, 10, 100)
COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#000000", "#999999"),
)


def figure(width: float, height: float) -> Figure:
    """A figure made without pyplot uses Agg, which needs no screen."""
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def ratios(
    found: list[Row], tasks: dict[str, Task], kind: str
) -> dict[str, np.ndarray]:
    """Each strategy's score over the best one's, for every variant of every task.

    Scores below what counts as solved are equally good. A strategy that does not apply
    to a task is left out there; one that failed is infinitely far off.
    """
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for row in found:
        if row.kind == kind or row.limit is None:
            task = tasks[row.task]
            score = np.inf if row.median >= task.failed else row.median
            here = scores.setdefault((row.task, row.variant), {})
            here[row.strategy] = max(score, task.solved)
    names = dict.fromkeys(row.strategy for row in found)
    return {
        name: np.array(
            [s[name] / min(s.values()) for s in scores.values() if name in s]
        )
        for name in names
    }


def draw_profile(found: list[Row], tasks: dict[str, Task], path: Path) -> None:
    """The share of tasks in which each strategy is within a factor of the best."""
    whole = figure(11, 5.5)
    for axes, kind in zip(
        whole.subplots(1, 2, sharey=True), ("tuned", "default"), strict=True
    ):
        curves = {
            name: np.mean(r[:, None] <= NEAR * (1 + 1e-9), axis=0)
            for name, r in ratios(found, tasks, kind).items()
            if len(r)
        }
        order = sorted(curves, key=lambda name: -curves[name].mean())
        for number, name in enumerate(order):
            style = ("-", "--", ":")[number // len(COLORS) % 3]
            color = COLORS[number % len(COLORS)]
            axes.plot(NEAR, curves[name], style, color=color, label=name, linewidth=1.5)
        axes.set(xscale="log", xlabel="within this factor of the best", xlim=(1, 10))
        axes.set_title(f"{kind} limits", loc="left")
        axes.set_xticks([1, 2, 5, 10], labels=["1", "2", "5", "10"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, frameon=False, ncols=2, loc="lower right")
    whole.get_axes()[0].set_ylabel("share of the tasks")
    whole.savefig(path)


def draw_map(axes: Axes, scores: np.ndarray, task: Task, trials: list[float]) -> None:
    """The median scores over learning rates and limits, darker where they are lower."""
    best = max(scores.min(), task.solved, 1e-9)
    norm = LogNorm(best, max(task.failed, 1.01 * best))
    axes.imshow(
        np.maximum(scores, best),
        norm=norm,
        cmap="viridis",
        aspect="auto",
        origin="lower",
    )
    axes.set_yticks(range(len(trials)), labels=[f"{x:g}" for x in trials], fontsize=6)
    axes.set_xticks(
        range(len(task.rates)),
        labels=[f"{x:g}" for x in task.rates],
        fontsize=6,
        rotation=90,
    )
    for (y, x), score in np.ndenumerate(scores):
        text = "-" if score >= task.failed else f"{score:.2g}"
        light = norm(score) < 0.6
        axes.text(
            x,
            y,
            text,
            ha="center",
            va="center",
            fontsize=5,
            color="white" if light else "black",
        )


def draw_maps(folder: Path, tasks: dict[str, Task]) -> list[Path]:
    """One picture for each variant of each task, with a map for each strategy."""
    maps: dict[tuple[str, str], dict[str, tuple[np.ndarray, list[float]]]] = {}
    for found in read(folder):
        task = tasks[found["task"]]
        for variant, cases in found["variants"].items():
            if found["trials"]:
                medians = np.median(
                    capped(array(cases["tuning"]), task.failed), axis=-1
                )
                here = maps.setdefault((task.name, variant), {})
                here[found["strategy"]] = medians, found["trials"]
    paths = []
    for (name, variant), panels in maps.items():
        rows = -(-len(panels) // 5)
        whole = figure(12, 0.4 + 2.1 * rows)
        places = np.atleast_2d(whole.subplots(rows, 5)).ravel()
        for axes in places[len(panels) :]:
            axes.set_axis_off()
        for axes, (strategy, (scores, trials)) in zip(
            places, panels.items(), strict=False
        ):
            draw_map(axes, scores, tasks[name], trials)
            axes.set_title(strategy, fontsize=8)
        whole.suptitle(
            f"{tasks[name].title}, {variant}: {tasks[name].measured}, by limit (up) "
            "and learning rate (right); - diverged",
            fontsize=9,
        )
        paths.append(
            folder / f"{name}_{variant.replace(' ', '_').replace('%', '')}.png"
        )
        whole.savefig(paths[-1])
    return paths


def draw(folder: Path, found: list[Row], tasks: dict[str, Task]) -> list[Path]:
    """Draw everything into the folder of results."""
    profile = folder / "profile.png"
    draw_profile(found, tasks, profile)
    return [profile, *draw_maps(folder, tasks)]
