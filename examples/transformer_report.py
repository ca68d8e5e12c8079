"""What the six runs did: a table, a sentence and a plot."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

History = dict[str, np.ndarray]

# Black, and colors of Okabe and Ito, which the color-blind can tell apart.
COLORS = ("#000000", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#d55e00")


def table(runs: Mapping[str, History], held_out: Mapping[str, float]) -> str:
    """Make a table with one line per run."""
    lines = ["strategy          held-out loss  steps clipped or skipped"]
    for name, steps in runs.items():
        share = np.mean(steps["after"] < steps["before"] * (1 - 1e-5))
        lines.append(f"{name:16}  {held_out[name]:13.3f}  {share:24.1%}")
    return "\n".join(lines)


def conclusion(
    runs: Mapping[str, History], held_out: Mapping[str, float], corrupted: np.ndarray
) -> str:
    """Say the result in plain words."""
    best = min(held_out, key=held_out.__getitem__)
    said = (
        f"{len(corrupted)} corrupted batches left the run without clipping at a "
        f"held-out loss of {held_out['no clipping']:.2f}"
    )
    if best != "no clipping":
        said += f", against {held_out[best]:.2f} with {best}"
    if "skip_spikes" in runs:
        skipped = runs["skip_spikes"]["after"] == 0
        bad = skipped[corrupted].sum()
        said += (
            f". skip_spikes skipped {bad} of the {len(corrupted)} and "
            f"{skipped.sum() - bad} good ones"
        )
    return f"{said}."


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Average over the last `width` steps."""
    totals = np.cumsum(np.r_[np.zeros(1), values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (totals[ends] - totals[starts]) / (ends - starts)


def draw(
    runs: Mapping[str, History],
    corrupted: np.ndarray,
    title: str,
    caption: str,
    path: Path,
) -> None:
    """Save a plot of all losses, and of the norms of each run."""
    steps = len(next(iter(runs.values()))["loss"])
    step = np.arange(steps)
    clean = np.setdiff1d(step, corrupted)

    # A figure made without pyplot uses Agg, which needs no screen.
    figure = Figure(figsize=(6.4, 7.6), dpi=125, layout="constrained")
    above, below = figure.subfigures(2, height_ratios=(5, 6))
    loss = above.subplots()
    norms = below.subplots(2, 3, sharex=True, sharey=True)
    for axes in (loss, *norms.flat):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        for batch in corrupted:
            axes.axvline(batch, color="black", alpha=0.35, linestyle=":", linewidth=1)

    for (name, run), color in zip(runs.items(), COLORS, strict=False):
        smoothed = smooth(run["loss"][clean], max(1, steps // 40))
        loss.plot(clean, smoothed, color=color, label=name, linewidth=1.6)
    loss.set(ylabel="training loss of good batches", xlabel="step", xlim=(0, steps))
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.minorticks_off()
    loss.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))

    for axes, (name, run), color in zip(norms.flat, runs.items(), COLORS, strict=False):
        left = np.where(run["after"] > 0, run["after"], np.nan)
        axes.plot(step, run["before"], color="#bbbbbb", linewidth=1)
        axes.plot(step, left, color=color, linewidth=1)
        axes.set_title(name, color=color, fontsize="medium")
        axes.set_yscale("log")
        axes.minorticks_off()
    for axes in norms[:, 0]:
        axes.set_ylabel("norm")
    for axes in norms[-1]:
        axes.set_xlabel("step")

    below.suptitle(
        "norm of the gradient before (gray) and after; dotted: bad batches",
        fontsize="medium",
    )
    figure.suptitle(title)
    figure.supxlabel(fill(caption, 75), fontsize="medium")
    figure.savefig(path, format="png")
