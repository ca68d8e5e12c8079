"""What happened to one clipper or guard, whatever its report calls it."""

import math
from typing import NamedTuple

import numpy as np

from optaxclip.tuning.columns import MARKS, Columns, fields_of, groups_of, names_in


class Track(NamedTuple):
    """The steps of one clipper or guard; None where its report does not say.

    Attributes:
      groups: the names of the groups.
      before: the norms before clipping, steps x groups.
      after: the norms after clipping.
      limit: the limits.
      clipped: the share of groups above their limit, one number a step.
      skipped: whether the step was skipped.
      broken: whether the step was not finite.
      mark: what its report is about, one of `MARKS`; "" for limits of updates.
    """

    groups: tuple[str, ...]
    before: np.ndarray | None
    after: np.ndarray | None
    limit: np.ndarray | None
    clipped: np.ndarray | None
    skipped: np.ndarray | None
    broken: np.ndarray
    mark: str


def tracks_of(columns: Columns) -> dict[str, Track]:
    """Return the track of every clipper and guard."""
    return {name: _track(columns, name) for name in names_in(columns)}


def above(norms: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Tell which norms are clipped, NaN among them, as reports do."""
    return ~(norms <= limits) & np.isfinite(limits)


def left_out(tracks: dict[str, Track]) -> np.ndarray:
    """Tell which steps any guard skipped."""
    skipped = [
        np.zeros_like(track.broken) if track.skipped is None else track.skipped
        for track in tracks.values()
    ]
    return np.asarray(np.any(skipped, axis=0))


def candidates(tracks: dict[str, Track]) -> list[str]:
    """Return the names that have norms: those with limits, or else the others."""
    normed = [name for name, track in tracks.items() if track.before is not None]
    return [name for name in normed if tracks[name].limit is not None] or normed


def the_track(columns: Columns, name: str | None) -> tuple[str, Track]:
    """Return the track of that name, or the only one there is to choose."""
    tracks = tracks_of(columns)
    found = candidates(tracks)
    if name is None and len(found) == 1:
        name = found[0]
    if name is None or name not in tracks or tracks[name].before is None:
        raise ValueError(
            "name must be one in the history that has norms "
            f"({', '.join(found) or 'there is none'}), not {name!r}."
        )
    return name, tracks[name]


def _track(columns: Columns, name: str) -> Track:
    fields = fields_of(columns, name)
    steps = len(next(iter(fields.values())))

    def side_by_side(*several: str) -> np.ndarray | None:
        found = [fields[field] for field in several if field in fields]
        if not found:
            return None
        width = math.prod(found[0].shape[1:])
        return found[0].reshape(steps, width).astype(np.float64)

    def by_step(field: str) -> np.ndarray | None:
        found = side_by_side(field)
        return None if found is None else found.mean(axis=1)

    before = side_by_side("pre_norm", "norm", "update_norm")
    after, skipped = side_by_side("post_norm"), by_step("skipped")
    if after is None and before is not None and skipped is not None:
        after = np.where(skipped[:, None] > 0, 0, before)
    if before is not None:
        broken = np.any(~np.isfinite(before), axis=1)
    else:  # A guard against what is not finite.
        counts = by_step("zeroed") if skipped is None else skipped
        broken = np.zeros(steps, bool) if counts is None else counts > 0
    width = 1 if before is None else before.shape[1]
    groups = groups_of(columns, name) if width > 1 else ("",)
    if len(groups) != width:  # Several states at once, as under vmap.
        groups = tuple(map(str, range(width)))
    return Track(
        groups,
        before,
        after,
        side_by_side("limit"),
        by_step("clipped_fraction"),
        None if skipped is None else skipped > 0,
        np.asarray(broken),
        next((mark for mark in MARKS if mark in fields), ""),
    )
