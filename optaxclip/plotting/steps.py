"""What a clipper did, step by step."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from optaxclip.plotting.canvas import (
    BLACK,
    BLUE,
    VERMILION,
    axes_for,
    count_steps,
    head,
    make_room,
    mark_decades,
    spans_decades,
)
from optaxclip.tuning import History
from optaxclip.tuning.checks import columns_from
from optaxclip.tuning.tables import number
from optaxclip.tuning.tracks import Track, left_out, the_track, tracks_of

_NO_LIMIT = 1e30  # in place of infinity, for the group that is closest to its limit


def plot_history(
    history: History,
    name: str | None = None,
    *,
    since: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw the norms before and after clipping, the limit, and what happened when.

    Marks at the bottom show the steps that were clipped, skipped by any guard, or not
    finite. Where a clipper has several groups, each step shows the one that exceeded
    its limit the most. An infinite limit is not drawn, and named in the legend.

    Args:
      history: the reports of the steps.
      name: that of the clipper or guard; not needed if a single one has limits.
      since: the number of steps to leave out.
      ax: where to draw; a new figure by default.

    Returns:
      The axes; ``ax.figure.savefig("history.png")`` saves a new figure.

    Raises:
      TypeError: if `history` is not a `History`, or `since` not an int.
      ValueError: if the history has no norms under that name, or has several names and
        none is given.

    Examples:
      >>> import optaxclip.plotting
      >>> clip = optaxclip.clip_global_norm(1.0)
      >>> state, history = clip.init(jnp.zeros(1)), optaxclip.tuning.History()
      >>> for size in 0.5, 0.7, 3.0, 0.6:
      ...     _, state = clip.update(jnp.array([size]), state)
      ...     history.append(optaxclip.report(state))
      >>> ax = optaxclip.plotting.plot_history(history)
      >>> print(ax.get_title(loc="left"))
      clip_global_norm: 25% of 4 steps clipped
    """
    columns = columns_from(history, since)
    name, track = the_track(columns, name)
    ax = axes_for(ax)
    steps = since + np.arange(len(track.broken))
    _draw_norms(ax, steps, _worst(track))
    skipped = left_out(tracks_of(columns))
    clipped = np.zeros(len(steps), bool) if track.clipped is None else track.clipped > 0
    _draw_marks(ax, steps, clipped, skipped, track.broken)
    ax.set_ylabel("norm")
    count_steps(ax)
    head(ax, _title(name, track, clipped, skipped))
    return ax


def _worst(track: Track) -> Track:
    """Keep of each step the group that was the most above its limit."""
    before = track.before
    assert before is not None
    if before.shape[1] == 1:
        return track
    limit = 1.0 if track.limit is None else np.minimum(track.limit, _NO_LIMIT)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(before == 0, 0, before / limit)
    worst = np.argmax(np.nan_to_num(excess, nan=-1, posinf=np.inf), axis=1)[:, None]
    before, after, limit = (
        None if norms is None else np.take_along_axis(norms, worst, axis=1)
        for norms in (before, track.after, track.limit)
    )
    return track._replace(before=before, after=after, limit=limit)


def _draw_norms(ax: Axes, steps: np.ndarray, track: Track) -> None:
    bounded = track.limit is not None and np.isfinite(track.limit).any()
    lines = [
        ("before", track.before, VERMILION, "-"),
        ("after", track.after, BLUE, "-"),
        ("limit" if bounded else "limit (infinite)", track.limit, BLACK, "--"),
    ]
    known = [
        (*line[:1], line[1][:, 0], *line[2:]) for line in lines if line[1] is not None
    ]
    logarithmic = spans_decades(np.concatenate([norms for _, norms, *_ in known]))
    for label, norms, color, style in known:
        drawn = np.isfinite(norms) & ((norms > 0) | (not logarithmic))
        ax.plot(
            steps,
            np.where(drawn, norms, np.nan),
            style,
            color=color,
            linewidth=1,
            marker="o" if len(steps) == 1 else None,
            label=label,
        )
    if logarithmic:
        ax.set_yscale("log")
        mark_decades(ax.yaxis)


def _draw_marks(
    ax: Axes,
    steps: np.ndarray,
    clipped: np.ndarray,
    skipped: np.ndarray,
    broken: np.ndarray,
) -> None:
    """Mark steps in rows below the norms."""
    kinds = [
        ("clipped", clipped, VERMILION, "|"),
        ("skipped", skipped, BLACK, "|"),
        ("not finite", broken, BLACK, "x"),
    ]
    shown = [kind for kind in kinds if kind[1].any()]
    row = 0.06
    make_room(ax, bottom=row * len(shown))
    for place, (label, happened, color, marker) in enumerate(shown):
        ax.plot(
            steps[happened],
            np.full(happened.sum(), row * (place + 0.5)),
            marker,
            color=color,
            markersize=5,
            markeredgewidth=0.8,
            transform=ax.get_xaxis_transform(),
            label=label,
        )


def _title(name: str, track: Track, clipped: np.ndarray, skipped: np.ndarray) -> str:
    steps = len(clipped)
    told = []
    if track.limit is not None and np.isinf(track.limit).all():
        told.append(f"{steps} steps, none clipped by an infinite limit")
    elif track.clipped is not None:
        told.append(f"{number(100 * clipped.mean())}% of {steps} steps clipped")
    else:
        told.append(f"{steps} steps")
    if skipped.any():
        told.append(f"{skipped.sum()} skipped")
    if track.broken.any():
        told.append(f"{track.broken.sum()} not finite")
    return f"{name}: {', '.join(told)}"
