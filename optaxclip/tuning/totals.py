"""What happened in many steps, in a small table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from optaxclip.tuning.columns import Columns
from optaxclip.tuning.tables import number, percent, table
from optaxclip.tuning.tracks import Track, above, tracks_of

_GROUPS_SHOWN = 10


class Total(NamedTuple):
    """What a clipper, or one of its groups, did in all steps.

    Attributes:
      steps: the number of steps.
      clipped: the share of steps in which a group, or this one, was above its limit;
        NaN for guards.
      skipped: the share of skipped steps; NaN for clippers.
      not_finite: the number of steps that were infinite or NaN.
      p50: the median of the norms before clipping that are finite; NaN where there are
        none, or several groups.
      p90: the norm that a tenth of them exceeds.
      p99: the norm that a hundredth of them exceeds.
      limit: the median limit.
    """

    steps: int
    clipped: float
    skipped: float
    not_finite: int
    p50: float
    p90: float
    p99: float
    limit: float


class Totals(dict[str, Total]):
    """A `Total` for each name, such as ``summary["clip_global_norm"].clipped``.

    Where a clipper has several groups, there is one for each of them, too:
    ``summary["clip_tensor_norm/body/kernel"].p90``. `print` shows a table, with the ten
    groups that were clipped most often.
    """

    def __init__(self, tracks: dict[str, Track]):
        super().__init__()
        self._shown: list[tuple[str, str]] = []
        for name, track in tracks.items():
            self[name] = _total(track)
            self._shown.append((name, name))
            if len(track.groups) > 1:
                self._add_groups(name, track)

    def _add_groups(self, name: str, track: Track) -> None:
        keys = {f"{name}/{group}": group for group in track.groups}
        for column, key in enumerate(keys):
            self[key] = _total(_only(track, column))
        often = sorted(keys, key=lambda key: -np.nan_to_num(self[key].clipped))
        kept = set(often[:_GROUPS_SHOWN])
        self._shown += [(k, f"  {group}") for k, group in keys.items() if k in kept]
        if len(keys) > len(kept):
            self._shown.append(("", f"  and {len(keys) - len(kept)} clipped less"))

    def __str__(self) -> str:
        head = ["name", "steps", "clipped", "skipped", "not finite"]
        head += ["P50", "P90", "P99", "limit"]
        rows = [head]
        for key, label in self._shown:
            rows.append([label, *(_cells(self[key]) if key else [""] * 8)])
        return table(rows)


def _cells(row: Total) -> list[str]:
    shares = [percent(row.clipped), percent(row.skipped)]
    norms = [number(x) for x in (row.p50, row.p90, row.p99, row.limit)]
    return [str(row.steps), *shares, str(row.not_finite), *norms]


def summarize(columns: Columns) -> Totals:
    """Sum up all columns."""
    return Totals(tracks_of(columns))


def _only(track: Track, column: int) -> Track:
    """Return the track of one group."""
    before, after, limit = (
        None if x is None else x[:, [column]]
        for x in (track.before, track.after, track.limit)
    )
    clipped, broken = track.clipped, track.broken
    if before is not None:
        broken = ~np.isfinite(before[:, 0])
        if limit is not None and clipped is not None:
            clipped = above(before, limit)[:, 0].astype(float)
    return track._replace(
        groups=track.groups[column : column + 1],
        before=before,
        after=after,
        limit=limit,
        clipped=clipped,
        broken=broken,
    )


def _total(track: Track) -> Total:
    def share(steps: np.ndarray | None) -> float:
        if steps is None or not steps.size:
            return float("nan")
        return float(np.mean(steps > 0))

    one = len(track.groups) == 1
    finite = np.array([])
    if one and track.before is not None:
        finite = track.before[np.isfinite(track.before)]
    norms = np.quantile(finite, (0.5, 0.9, 0.99)) if finite.size else [np.nan] * 3
    limit = track.limit if one else None
    limits = np.array([]) if limit is None else limit
    return Total(
        len(track.broken),
        share(track.clipped),
        share(track.skipped),
        int(track.broken.sum()),
        *map(float, norms),
        limit=float(np.median(limits)) if limits.size else float("nan"),
    )
