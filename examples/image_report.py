"""What clipping did during a run: one line per epoch, a verdict and a plot."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, PercentFormatter

History = dict[str, np.ndarray]

BLUE, RED = "#1f6fb4", "#d1495b"
EPOCH_HEADER = (
    "epoch   loss  test accuracy  norm before  norm after   limit  clipped steps   time"
)


def stack(steps: Sequence[dict[str, Any]]) -> History:
    """Stack the numbers of all steps into one array per kind."""
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}


def epoch_line(epoch: int, steps: History, accuracy: float, seconds: float) -> str:
    """Summarize an epoch: mean loss, median norms and limit, share of clipped steps."""
    before, after, limit = (
        f"{np.median(steps[name]):.3g}"
        for name in ("norm_before", "norm_after", "limit")
    )
    return (
        f"{epoch:5d}  {steps['loss'].mean():5.3f}  {accuracy:13.1%}  {before:>11}  "
        f"{after:>10}  {limit:>6}  {np.mean(steps['clipped'] > 0):13.0%}  "
        f"{seconds:4.0f}s"
    )


def short(number: float) -> str:
    """Format with two significant digits."""
    return f"{float(f'{number:.2g}'):g}"


def verdict(history: History, given: float) -> str:
    """Say in plain words whether the limit was good.

    Args:
      history: the report of each step.
      given: the limit given by the user, which a strategy may scale.
    """
    before, after, limit = (history[k] for k in ("norm_before", "norm_after", "limit"))
    if not np.isfinite(before).all():
        first = int(np.argmin(np.isfinite(before))) + 1
        return f"From step {first} on the gradient was not finite: training diverged."
    if not after.any():
        return "Nothing was left of any gradient: a limit of 0 stops all learning."
    if np.isinf(limit).any():
        return (
            f"An infinite limit clips nothing: half of the norms were above "
            f"{short(np.median(before))}, a tenth above "
            f"{short(np.quantile(before, 0.9))}."
        )
    clipped = history["clipped"] > 0
    share = float(clipped.mean())
    often = "Every step was" if share == 1 else f"{100 * share:.1f}% of the steps were"
    words = [
        f"{often if share else 'No step was'} clipped: the median norm before clipping "
        f"was {short(np.median(before))}, {short(np.median(before / limit))} times the "
        f"limit of {short(np.median(limit))}."
    ]
    if share and history["clipped"][clipped].mean() < 1:
        parts = 100 * history["clipped"].mean()
        words.append(f"Each part has its own limit; {short(parts)}% were clipped.")
    elif share > 0.5:
        times = short(np.median(before[clipped] / after[clipped]))
        words.append(
            "So the limit does not guard against rare large steps: it shortens most "
            f"steps, much like a learning rate {times} times lower."
        )
    if 0.02 <= share <= 0.3:
        words.append("That guards against rare large steps, as clipping should.")
    elif (limit == limit[0]).all():  # Otherwise norms do not show a better one.
        better = short(given * float(np.quantile(before / limit, 0.9)))
        words.append(
            f"A limit near {better} would clip about 10% of the steps: "
            f"try --limit {better}."
        )
    return " ".join(words)


def draw(history: History, epochs: int, title: str, caption: str, path: Path) -> None:
    """Save a plot of the loss, the norms with the limit, and the clipped share."""
    steps = len(history["loss"])
    epoch = np.arange(1, steps + 1) * epochs / steps
    window = np.ones(max(1, steps // 20))

    def smooth(values: np.ndarray) -> np.ndarray:
        numbers = np.convolve(np.ones(steps), window, "same")
        return np.convolve(values, window, "same") / numbers

    # A figure made without pyplot uses Agg, which needs no screen.
    figure = Figure(figsize=(8, 9), dpi=120, layout="constrained")
    loss, norm, share = figure.subplots(3, sharex=True, height_ratios=(3, 4, 2))
    for axes in (loss, norm, share):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)

    loss.plot(epoch, history["loss"], color=BLUE, alpha=0.35, linewidth=0.8)
    loss.plot(epoch, smooth(history["loss"]), color=BLUE)
    loss.set(ylabel="training loss", xlim=(0, epochs))

    before, after, limit = (history[k] for k in ("norm_before", "norm_after", "limit"))
    norm.fill_between(epoch, after, before, color=RED, alpha=0.15, label="cut off")
    norm.plot(epoch, before, color=RED, linewidth=1, label="before clipping")
    norm.plot(epoch, after, color=BLUE, linewidth=1.8, label="after clipping")
    norm.plot(epoch, limit, color="black", linestyle="--", linewidth=1, label="limit")
    norm.set(ylabel="gradient norm", yscale="log")
    norm.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    norm.yaxis.set_major_formatter("{x:g}")
    norm.minorticks_off()
    norm.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))

    clipped = smooth(history["clipped"])
    share.fill_between(epoch, clipped, color=RED, alpha=0.15)
    share.plot(epoch, clipped, color=RED)
    share.set(ylabel="clipped share", xlabel="epoch", ylim=(0, 1.05))
    share.yaxis.set_major_formatter(PercentFormatter(1))

    figure.align_ylabels()
    figure.suptitle(title, fontsize="x-large")
    figure.supxlabel(fill(caption, 90), fontsize="medium")
    figure.savefig(path, format="png")
