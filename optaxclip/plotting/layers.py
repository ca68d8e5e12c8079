"""Which groups were clipped, and when."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from optaxclip.plotting.canvas import axes_for, count_steps, head
from optaxclip.tuning import History
from optaxclip.tuning.checks import columns_from
from optaxclip.tuning.tables import number
from optaxclip.tuning.tracks import Track, the_track

_COLUMNS, _LABELS, _LETTERS = 200, 16, 24


def plot_groups(
    history: History,
    name: str | None = None,
    *,
    since: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw a heat map of groups by steps: how much of each norm was cut off.

    The color is the share of the norm that clipping took, 1 - after / before: 0 where a
    group was within its limit. Where steps are many, it is the mean over some. White is
    where norms were not finite. Names come from reports with ``names=params``.

    Args:
      history: the reports of the steps.
      name: that of a clipper with a limit for each group, such as `clip_tensor_norm`;
        not needed if a single one has limits.
      since: the number of steps to leave out.
      ax: where to draw; a new figure by default.

    Returns:
      The axes; ``ax.figure.savefig("groups.png")`` saves a new figure.

    Raises:
      TypeError: if `history` is not a `History`, or `since` not an int.
      ValueError: if the history has no norms before and after clipping under that name,
        or has several names and none is given.

    Examples:
      >>> import optaxclip.plotting
      >>> clip = optaxclip.clip_tensor_norm(1.0)
      >>> params = {"a": jnp.ones(1), "b": jnp.ones(1)}
      >>> state, history = clip.init(params), optaxclip.tuning.History()
      >>> for size in 0.1, 2.0:
      ...     _, state = clip.update({"a": params["a"], "b": size * params["b"]}, state)
      ...     history.append(optaxclip.report(state, names=params))
      >>> ax = optaxclip.plotting.plot_groups(history)
      >>> print(ax.get_title(loc="left"))
      clip_tensor_norm: b is clipped most, in 50% of 2 steps
    """
    name, track = the_track(columns_from(history, since), name)
    cut = _cut(name, track)
    steps, groups = cut.shape
    ax = axes_for(ax)
    ax.grid(visible=False)
    image = ax.imshow(
        _in_columns(cut).T,
        cmap=colormaps["viridis"],
        vmin=0,
        vmax=1,
        aspect="auto",
        interpolation="nearest",
        extent=(since - 0.5, since + steps - 0.5, groups - 0.5, -0.5),
    )
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
    bar.set_label("share of the norm cut off", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    _label_groups(ax, track.groups)
    count_steps(ax)
    head(ax, _title(name, track, cut))
    return ax


def _cut(name: str, track: Track) -> np.ndarray:
    """Return the share of each norm that was cut off; NaN where it was not finite."""
    before, after = track.before, track.after
    if before is None or after is None:
        raise ValueError(
            f"name must be that of a clipper, whose norms change, not {name!r}."
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(before > 0, after / before, 1)
    cut = np.clip(1 - left, 0, 1)
    return np.where(np.isfinite(before), cut, np.nan)


def _in_columns(cut: np.ndarray) -> np.ndarray:
    """Average over neighboring steps until they fit the picture."""
    starts = np.linspace(
        0, len(cut), min(len(cut), _COLUMNS), endpoint=False, dtype=int
    )
    known = np.isfinite(cut)
    totals = np.add.reduceat(np.where(known, cut, 0), starts, axis=0)
    counts = np.add.reduceat(known, starts, axis=0, dtype=float)
    return totals / np.where(counts > 0, counts, np.nan)


def _label_groups(ax: Axes, groups: tuple[str, ...]) -> None:
    """Name as many groups as there is room for, by the ends of their names."""
    shown = range(0, len(groups), 1 + (len(groups) - 1) // _LABELS)
    ax.set_yticks(list(shown), [_short(groups[i]) for i in shown], fontsize="small")


def _short(group: str) -> str:
    """Keep the end of a long path; name what has only a number."""
    if group.isdecimal():
        return f"group {group}"
    return group if len(group) <= _LETTERS else "…" + group[1 - _LETTERS :]


def _title(name: str, track: Track, cut: np.ndarray) -> str:
    shares = np.mean(cut > 1e-6, axis=0)
    worst = int(shares.argmax())
    if not shares[worst]:
        return f"{name}: nothing was clipped in {len(cut)} steps"
    told = f"{number(100 * shares[worst])}% of {len(cut)} steps"
    if len(track.groups) == 1:
        return f"{name}: clipped in {told}"
    return f"{name}: {_short(track.groups[worst])} is clipped most, in {told}"
