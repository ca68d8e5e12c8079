"""What clipping did during a run: one line per epoch, and a picture."""

from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure

from optaxclip.plotting import plot_history
from optaxclip.tuning import History

EPOCH_HEADER = "epoch   loss  test accuracy  steps clipped   time"
BLUE = "#0072b2"


def epoch_line(history: History, steps: int, accuracy: float, seconds: float) -> str:
    """Sum up the last steps, which are those of an epoch."""
    (name,) = history.names
    first = len(history) - steps
    loss = history.columns["loss"][first:].mean()
    clipped = history.summary(since=first)[name].clipped
    epoch = len(history) // steps
    return f"{epoch:5}  {loss:5.3f}  {accuracy:13.1%}  {clipped:13.0%}  {seconds:4.0f}s"


def draw(history: History, title: str, caption: str, path: Path) -> None:
    """Draw the loss above, and what clipping did below."""
    # A figure made without pyplot uses Agg, which needs no screen.
    figure = Figure(figsize=(6.4, 6.8), dpi=125, layout="constrained")
    loss, norms = figure.subplots(2, sharex=True, height_ratios=(2, 3))
    losses = history.columns["loss"]
    loss.plot(losses, color=BLUE, alpha=0.35, linewidth=0.8)
    loss.plot(smooth(losses), color=BLUE)
    loss.set(ylabel="training loss", xlim=(0, len(losses)))
    loss.grid(alpha=0.25)
    loss.spines[["top", "right"]].set_visible(False)
    plot_history(history, ax=norms)
    figure.suptitle(title)
    figure.supxlabel(fill(caption, 75), fontsize="medium")
    figure.savefig(path)


def smooth(values: np.ndarray) -> np.ndarray:
    """Average over a twentieth of the steps around each."""
    window = np.ones(max(1, len(values) // 20))
    counts = np.convolve(np.ones(len(values)), window, "same")
    return np.convolve(values, window, "same") / counts
