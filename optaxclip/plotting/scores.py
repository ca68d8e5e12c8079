"""The scores of a sweep over limits."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from optaxclip.plotting.canvas import (
    BLUE,
    GRAY,
    GREEN,
    VERMILION,
    axes_for,
    head,
    make_room,
    mark_decades,
    spans_decades,
)
from optaxclip.tuning import Sweep
from optaxclip.tuning.checks import check_sweep
from optaxclip.tuning.tables import number


def plot_sweep(sweep: Sweep, *, ax: Axes | None = None) -> Axes:
    """Draw the score against the limit: each run, the median, and the best limit.

    The band holds the middle half of the runs. Where runs diverged, their share is
    written at the top. Zero and infinity stand at the ends.

    Args:
      sweep: what `optaxclip.tuning.sweep` returned.
      ax: where to draw; a new figure by default.

    Returns:
      The axes; ``ax.figure.savefig("sweep.png")`` saves a new figure.

    Raises:
      TypeError: if `sweep` is not a `Sweep`.

    Examples:
      >>> import optaxclip.plotting
      >>> train = lambda limit, key: jnp.log(limit) ** 2 + jax.random.uniform(key)
      >>> sweep = optaxclip.tuning.sweep(train, [0.1, 1.0, 10.0], seeds=3)
      >>> ax = optaxclip.plotting.plot_sweep(sweep)
      >>> print(ax.get_title(loc="left"))
      Best limit 1: median score 0.641 of 3 runs
    """
    check_sweep(sweep)
    ax = axes_for(ax)
    places = _place_limits(ax, sweep.limits)
    if np.isfinite(sweep.scores).any():
        _draw_scores(ax, sweep, places)
    _write_diverged(ax, sweep, places)
    ax.set(xlabel="limit", ylabel="score (lower is better)")
    head(ax, _title(sweep))
    return ax


def _place_limits(ax: Axes, limits: np.ndarray) -> np.ndarray:
    """Return where to draw each limit; zero and infinity have no place of their own."""
    inside = limits[(limits > 0) & np.isfinite(limits)]
    inside = inside if inside.size else np.array([1.0])
    gap = (inside[-1] / inside[0]) ** (1 / max(1, len(inside) - 1))
    gap = max(gap, 2.0)
    places = np.where(np.isinf(limits), inside[-1] * gap, limits)
    places = np.where(limits == 0, inside[0] / gap, places)
    ax.set_xscale("log")
    decades = 10.0 ** np.arange(
        np.ceil(np.log10(inside[0])), np.log10(inside[-1]) + 1e-9
    )
    ticks = np.unique(inside) if len(inside) < 6 or len(decades) < 2 else decades
    ticks = ticks[:: 1 + len(ticks) // 8]
    labels = [f"{tick:.3g}" for tick in ticks]
    for end, label in ((0, "0"), (np.inf, "∞")):
        if (limits == end).any():
            ticks = np.append(ticks, places[limits == end][0])
            labels.append(label)
    ax.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    ax.xaxis.set_major_formatter(FixedFormatter(labels))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(places.min() / gap**0.4, places.max() * gap**0.4)
    return places


def _draw_scores(ax: Axes, sweep: Sweep, places: np.ndarray) -> None:
    scores = np.where(np.isfinite(sweep.scores), sweep.scores, np.nan)
    medians = np.where(np.isfinite(sweep.medians), sweep.medians, np.nan)
    each = np.repeat(places, scores.shape[1])
    ax.plot(
        each, scores.ravel(), ".", color=GRAY, alpha=0.5, markersize=4, label="runs"
    )
    ax.plot(places, medians, "o-", color=BLUE, markersize=4, label="median")
    if np.nanmin(scores) > 0 and spans_decades(scores):
        ax.set_yscale("log")
        mark_decades(ax.yaxis)
    low, _, high = np.minimum(sweep.quartiles.T, np.nanmax(scores))
    ax.fill_between(
        places, low, high, color=BLUE, alpha=0.2, linewidth=0, label="middle half"
    )
    if np.isfinite(sweep.medians).any():
        best = places[sweep.limits == sweep.best][0]
        ax.axvline(best, color=GREEN, linestyle="--", linewidth=1.2, label="best limit")


def _write_diverged(ax: Axes, sweep: Sweep, places: np.ndarray) -> None:
    """Write the share of runs that diverged over each limit."""
    if not sweep.diverged.any():
        return
    make_room(ax, top=0.1)
    for place, share in zip(places, sweep.diverged, strict=True):
        if share:
            ax.text(
                place,
                0.95,
                f"{100 * share:.0f}%",
                transform=ax.get_xaxis_transform(),
                color=VERMILION,
                fontsize=8,
                ha="center",
                va="center",
            )
    ax.plot([], [], "s", color=VERMILION, markersize=5, label="% diverged")


def _title(sweep: Sweep) -> str:
    if not np.isfinite(sweep.medians).any():
        return "\n".join(sweep.warnings)
    median = number(sweep.medians.min())
    several = f"median score {median} of {len(sweep.seeds)} runs"
    score = several if len(sweep.seeds) > 1 else f"score {median}"
    told = f"Best limit {number(sweep.best)}: {score}"
    return "\n".join([told, *sweep.warnings])
