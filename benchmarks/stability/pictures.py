"""Draw the results: how often each strategy is near the best, and maps of scores."""

from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.stability.measures import capped
from benchmarks.stability.summary import Row, array, ratios, read
from benchmarks.stability.task import Task
from optaxclip.plotting import plot_sweep
from optaxclip.tuning import Sweep

NEAR = np.geomspace(1, 10, 100)
# The colors of Okabe and Ito, which all kinds of color vision tell apart.
COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#000000", "#999999"),
)
HIGHLIGHTED = (
    *("global", "tensor", "aggc", "zclip", "agc"),
    *("clippy", "none", "error_feedback"),
)
# Whose limits trade off with the learning rate, and whose do not.
TRADING = ("global", "spectral", "clippy", "trust_ratio")
COLUMNS, WIDTH, HEIGHT = 5, 2.4, 2.0
Panels = dict[str, tuple[np.ndarray, list[float]]]


def save(figure: Figure, path: Path) -> None:
    """Save with 128 colors, since many pictures stay in the repository."""
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    picture = Image.open(drawn).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def draw_profile(found: list[Row], tasks: dict[str, Task], path: Path) -> None:
    """The share of tasks in which each strategy is within a factor of the best."""
    whole = Figure(figsize=(7, 7), dpi=100, layout="constrained")
    panels = whole.subplots(2, 1, sharex=True)
    for axes, kind in zip(panels, ("tuned", "default"), strict=True):
        near = ratios(found, tasks, kind)
        most = max(map(len, near.values()))
        for name, ratio in near.items():
            if len(ratio) > most / 2:
                within = np.array(list(ratio.values()))[:, None] <= 1.001 * NEAR
                axes.plot(NEAR, within.mean(axis=0), **style_of(name))
        axes.set(xscale="log", xlim=(1, 10), ylabel="share of the cases")
        axes.set_title(f"{kind} limits", loc="left")
        axes.set_xticks([1, 2, 5, 10], labels=["1", "2", "5", "10"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[1].set_xlabel("within this factor of the best")
    handles, labels = panels[0].get_legend_handles_labels()
    whole.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False)
    save(whole, path)


def style_of(name: str) -> dict[str, Any]:
    """A color for what the docs speak of; all others stay in the background."""
    if name not in HIGHLIGHTED:
        return {"color": "#cccccc", "linewidth": 1, "zorder": 1}
    color = COLORS[HIGHLIGHTED.index(name)]
    return {
        "color": color,
        "linewidth": 2,
        "label": name.replace("none", "no clipping"),
    }


def compact(score: float) -> str:
    """At most four characters, which is what a cell holds."""
    if score < 0.01:
        return f"{score:.0e}".replace("e-0", "e-") if score > 1e-6 else "0"
    return f"{score:.2f}" if score < 0.1 else f"{score:.2g}"


def draw_map(axes: Axes, scores: np.ndarray, task: Task, trials: list[float]) -> None:
    """The median scores over learning rates and limits, darker where they are lower."""
    # Never so near to failure that a small gain looks like a large one.
    best = min(max(scores.min(), task.solved, 1e-9), task.failed / 2)
    norm = LogNorm(best, task.failed)
    shown = np.clip(scores, norm.vmin, norm.vmax)
    axes.imshow(shown, norm=norm, cmap="viridis", aspect="auto", origin="lower")
    axes.set_yticks(range(len(trials)), labels=[f"{x:g}" for x in trials], fontsize=7)
    rates = [f"{x:g}" for x in task.rates]
    axes.set_xticks(range(len(rates)), labels=rates, fontsize=7, rotation=90)
    for (y, x), score in np.ndenumerate(scores):
        text = "-" if score >= task.failed else compact(score)
        color = "white" if norm(shown[y, x]) < 0.6 else "black"
        axes.text(x, y, text, ha="center", va="center", fontsize=6, color=color)


def draw_maps(
    panels: Panels, task: Task, variant: str, path: Path, most: int = COLUMNS
) -> None:
    """A map for each strategy, at most so many side by side."""
    columns = min(most, len(panels))
    lines = -(-len(panels) // columns)
    title = fill(
        f"{task.title}, {variant}: {task.measured}, by limit (up) and learning rate "
        "(right); - no better than untrained",
        width=30 * columns,
    )
    head, foot = 0.4 + 0.17 * (1 + title.count("\n")), 0.65
    height = head + lines * HEIGHT + 0.15
    whole = Figure(figsize=(columns * WIDTH, height), dpi=90)
    places = np.atleast_1d(whole.subplots(lines, columns)).ravel()
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, (strategy, (scores, trials)) in zip(places, panels.items(), strict=False):
        draw_map(axes, scores, task, trials)
        axes.set_title(strategy, fontsize=9)
    whole.suptitle(title, fontsize=9)
    left, bottom, top = 0.24 / columns, foot / height, 1 - head / height
    whole.subplots_adjust(left, bottom, 0.99, top, wspace=0.3, hspace=0.6)
    save(whole, path)


def maps(folder: Path, tasks: dict[str, Task]) -> dict[tuple[str, str], Panels]:
    """The medians of the tuning scores, by task and variant, then by strategy."""
    panels: dict[tuple[str, str], Panels] = {}
    for found in read(folder):
        task, trials = tasks[found["task"]], found["trials"]
        for variant, cases in found["variants"].items():
            if trials:
                medians = np.median(capped(array(cases["tuning"]), task.failed), -1)
                here = panels.setdefault((task.name, variant), {})
                here[found["strategy"]] = medians, trials
    return panels


def draw_sweeps(folder: Path, tasks: dict[str, Task], path: Path) -> None:
    """The tuning scores of `clip_global_norm` by limit, each at its best rate."""
    panels = [
        (tasks[found["task"]], variant, found["trials"], array(cases["tuning"]))
        for found in read(folder)
        if found["strategy"] == "global"
        for variant, cases in found["variants"].items()
    ]
    lines = -(-len(panels) // 3)
    whole = Figure(figsize=(15, 3.6 * lines), dpi=60, layout="constrained")
    places = np.atleast_2d(whole.subplots(lines, 3)).ravel()
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, (task, variant, trials, scores) in zip(places, panels, strict=False):
        scores = np.where(scores < task.failed, scores, np.nan)
        best = np.argmin(np.median(capped(scores, task.failed), axis=-1), axis=1)
        chosen = scores[np.arange(len(trials)), best]
        seeds = np.arange(chosen.shape[1])
        plot_sweep(Sweep(np.array(trials), seeds, chosen), ax=axes)
        axes.set_ylabel(f"{task.name}, {variant}")
    save(whole, path)


def draw(folder: Path, found: list[Row], tasks: dict[str, Task]) -> list[Path]:
    """Draw everything into the folder of results."""
    paths = [folder / "profile.png", folder / "sweeps.png"]
    draw_profile(found, tasks, paths[0])
    draw_sweeps(folder, tasks, paths[1])
    for (task, variant), panels in maps(folder, tasks).items():
        name = f"{task}_{variant.replace(' ', '_').replace('%', '')}.png"
        paths.append(folder / name)
        draw_maps(panels, tasks[task], variant, paths[-1])
        if task == "recurrent50":
            paths.append(folder / "trade_off.png")
            few = {name: panels[name] for name in TRADING if name in panels}
            draw_maps(few, tasks[task], variant, paths[-1], most=2)
    return paths
