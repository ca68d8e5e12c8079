"""Axes to draw on, with a title and a legend that lie off the data."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogFormatterMathtext,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

# The colors of Okabe and Ito, which all kinds of color vision tell apart.
BLACK, GRAY = "#000000", "#777777"
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"

_TEXT, _LINE = 9, 13  # points: the size of small text, and a line of it
_LETTERS, _ENTRY = 13, 1.3  # letters of a title in an inch; inches of a legend's entry


def axes_for(ax: Axes | None) -> Axes:
    """Return the given axes, or those of a new figure that pyplot does not know."""
    if ax is None:
        ax = Figure(figsize=(5.5, 3.8), dpi=160, layout="constrained").subplots()
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def head(ax: Axes, title: str) -> None:
    """Put a title above the axes, and the legend between both."""
    inches = ax.get_window_extent().width / ax.figure.dpi
    _, labels = ax.get_legend_handles_labels()
    columns = max(1, min(int(inches / _ENTRY), 3))
    columns = 2 if columns == 3 and len(labels) == 4 else columns
    if labels:
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=columns,
            frameon=False,
            fontsize=_TEXT,
            borderaxespad=0.2,
            borderpad=0.2,
            columnspacing=1.2,
            labelspacing=0.3,
            handlelength=1.6,
        )
    width = max(20, int(_LETTERS * inches))
    lines = [textwrap.fill(line, width) for line in title.splitlines()]
    pad = 6 + _LINE * -(-len(labels) // columns)
    ax.set_title("\n".join(lines), loc="left", fontsize=10, pad=pad)


def count_steps(ax: Axes) -> None:
    """Label the steps, which are whole numbers."""
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))


def spans_decades(values: np.ndarray) -> bool:
    """Tell whether the values above 0 that are finite span more than a factor of 10."""
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    return bool(positive.size) and bool(positive.max() > 10 * positive.min())


def make_room(ax: Axes, bottom: float = 0.0, top: float = 0.0) -> None:
    """Keep shares of the height of the axes free of data."""
    logarithmic = ax.get_yscale() == "log"
    low, high = np.log(ax.get_ylim()) if logarithmic else ax.get_ylim()
    height = (high - low) / (1 - bottom - top)
    ends = low - bottom * height, high + top * height
    ax.set_ylim(*(float(np.exp(end)) if logarithmic else float(end) for end in ends))


def mark_decades(axis: Axis) -> None:
    """Label a logarithmic axis at 1, 10, 100, and between where decades are few."""
    low, high = axis.get_view_interval()
    few = np.log10(high / low) < 2
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=7))
    plain = low > 1e-4 and high < 1e5  # Numbers beyond are too long, except as powers.
    axis.set_major_formatter("{x:g}" if plain else LogFormatterMathtext())
    axis.set_minor_formatter(NullFormatter())
