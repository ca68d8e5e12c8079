"""How norms are distributed, and what limits would clip of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes

from optaxclip.plotting.canvas import (
    BLACK,
    BLUE,
    GREEN,
    VERMILION,
    axes_for,
    head,
    mark_decades,
    spans_decades,
)
from optaxclip.sentences import shown
from optaxclip.tuning import History, suggest_limit
from optaxclip.tuning.suggestion import norms_of
from optaxclip.tuning.tables import number

_SHARES = 0.01, 0.1, 0.3
_STYLES = (VERMILION, "-"), (BLACK, "--"), (GREEN, "-."), (BLUE, ":")


def plot_norms(
    norms: History | ArrayLike | Sequence[Any],
    limits: Sequence[float] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw a histogram of norms, with limits and the share that each would clip.

    Args:
      norms: one norm a step; or a `History` with a single clipper, whose ``pre_norm``
        is taken.
      limits: the limits; by default those that `suggest_limit` gives for 1%, 10% and
        30%, as far as it gives them.
      ax: where to draw; a new figure by default.

    Returns:
      The axes; ``ax.figure.savefig("norms.png")`` saves a new figure.

    Raises:
      TypeError: if `norms` are not numbers.
      ValueError: if the norms are those of several groups, or none is above 0 and
        finite.

    Examples:
      >>> import optaxclip.plotting
      >>> ax = optaxclip.plotting.plot_norms([1.0, 2.0, 3.0, jnp.inf], limits=[2.0])
      >>> print(ax.get_title(loc="left"))
      4 norms: half above 2, the largest 3, 1 not finite
      >>> print(ax.get_legend().get_texts()[0].get_text())
      2: clips 50%
    """
    given = norms_of(norms)
    if given.ndim != 1:
        raise ValueError(
            f"norms must be one number a step, not {shown(given)}; give those of one "
            "group, such as norms[:, 0]."
        )
    drawn = given[np.isfinite(given) & (given > 0)]
    if not drawn.size:
        raise ValueError(
            "norms must have one above 0 that is finite; train some steps."
        )
    ax = axes_for(ax)
    lines = _suggested(given) if limits is None else list(limits)
    lines = [limit for limit in lines if 0 < limit < np.inf]
    logarithmic = spans_decades(np.append(drawn, lines))
    ends = min(drawn.min(), *lines, np.inf), max(drawn.max(), *lines, 0)
    space = np.geomspace if logarithmic else np.linspace
    bins = space(*ends, 41) if ends[0] < ends[1] else 10
    ax.hist(drawn, bins=bins, color="#56B4E9", edgecolor="white", linewidth=0.3)
    for i, limit in enumerate(lines):
        color, style = _STYLES[i % len(_STYLES)]
        share = float(np.mean(~(given <= limit)))
        label = f"{number(limit)}: clips {number(100 * share)}%"
        ax.axvline(limit, color=color, linestyle=style, linewidth=1.5, label=label)
    if logarithmic:
        ax.set_xscale("log")
        mark_decades(ax.xaxis)
    ax.set(xlabel="norm", ylabel="steps")
    head(ax, _title(given, drawn))
    return ax


def _suggested(norms: np.ndarray) -> list[float]:
    """Return limits for some shares, where steps that are not finite leave room."""
    broken = np.mean(~np.isfinite(norms[norms != 0]))
    limits = [suggest_limit(norms, share) for share in _SHARES if share > broken]
    return [float(limit) for limit in dict.fromkeys(limits)]


def _title(norms: np.ndarray, drawn: np.ndarray) -> str:
    told = f"{len(norms)} norms: half above {number(float(np.median(drawn)))}"
    told += f", the largest {number(float(drawn.max()))}"
    if zeros := int(np.sum(norms == 0)):
        told += f", {zeros} zero"
    if broken := int(np.sum(~np.isfinite(norms))):
        told += f", {broken} not finite"
    return told
