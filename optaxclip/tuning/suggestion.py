"""A limit from norms that were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from optaxclip.arguments import check_decay, check_magnitude
from optaxclip.sentences import shown
from optaxclip.tuning.history import History
from optaxclip.tuning.limits import lowest_limit
from optaxclip.tuning.tracks import candidates, tracks_of


def suggest_limit(
    norms: History | ArrayLike | Sequence[Any], clipped_fraction: float = 0.1
) -> float | np.ndarray:
    r"""Return the smallest limit that at most a given share of the norms exceeds.

    $$
    c = \min \{ c : \lvert \{ t : \lVert g_t \rVert > c \} \rvert \le f \cdot n \}
    $$

    It is one of the norms, so neither a spike nor a heavy tail moves it far. NaN and
    infinity count as norms above every limit. Norms of zero, as of a layer that has no
    gradient yet, are never clipped and do not count.

    The promise is about the given norms. A limit for a tenth clips 8 to 12% of further
    norms of the same kind if there were 1000, and 6 to 17% if there were 100. And norms
    move when the limit does, and in the course of a run: measure again with the new
    limit, and look at `verdict`.

    Args:
      norms: one norm a step, or steps x groups; or a `History` with a single clipper,
        whose ``pre_norm`` is taken.
      clipped_fraction: the share f of the n norms that may exceed the limit, at least 0
        and below 1.

    Returns:
      One limit; or an array with one limit a group, infinite where all norms are zero.
      The limit is in the unit of the norms, also where the history is that of a
      strategy whose limit is a share of the parameters. Where the history tells of one
      group among many, as that of `clip_value`, it is the share of the steps in which
      any of them exceeds the limit.

    Raises:
      TypeError: if `norms` are not numbers.
      ValueError: if there are no norms above zero, more of them are not finite than may
        be clipped, a history has several clippers with norms, rows differ in
        length, or an argument is outside of its range.

    Examples:
      >>> norms = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1e6]
      >>> optaxclip.tuning.suggest_limit(norms)
      9.0
      >>> optaxclip.tuning.suggest_limit(norms, clipped_fraction=0.3)
      7.0
    """
    check_decay(clipped_fraction, "clipped_fraction")
    given = norms_of(norms)
    columns = given.reshape(len(given), -1).T
    limits = [_limit(column, clipped_fraction) for column in columns]
    if np.isinf(limits).all():
        raise ValueError(
            "norms must have one above 0; measure some steps, with an infinite limit."
        )
    return limits[0] if given.ndim == 1 else np.array(limits)


def norms_of(given: Any) -> np.ndarray:
    """Return norms as one number a step, or steps x groups."""
    if isinstance(given, History):
        tracks = tracks_of(given.columns)
        found = candidates(tracks)
        if len(found) != 1:
            raise ValueError(
                "norms must be those of one clipper, and the history has "
                f"{', '.join(found) or 'none'}; give history[name]['pre_norm']."
            )
        given = tracks[found[0]].before
        given = given[:, 0] if np.shape(given)[1:] == (1,) else given
    try:
        norms = np.asarray(given)
    except ValueError:  # NumPy's own message tells of its inner axes.
        raise ValueError(
            f"norms must be one number a step, or steps x groups, not {shown(given)} "
            "in rows of several lengths; give rows of the same length."
        ) from None
    if norms.dtype.kind not in "iuf" and norms.dtype.name != "bfloat16":
        raise TypeError(f"norms must be numbers, not {shown(given)}.")
    check_magnitude(np.min(norms, initial=0.0, where=~np.isnan(norms)), "norms")
    if norms.ndim not in (1, 2) or not norms.size:
        raise ValueError(
            f"norms must be one number a step, or steps x groups, not {shown(norms)}."
        )
    return norms.astype(np.float64)


def _limit(norms: np.ndarray, clipped_fraction: float) -> float:
    """Return the limit of one group."""
    limit = lowest_limit(norms, clipped_fraction)
    if math.isinf(limit) and norms.any():
        broken = np.mean(~np.isfinite(norms[norms != 0]))
        raise ValueError(
            f"norms are not finite in {broken:.1%} of the steps, more than "
            f"clipped_fraction={clipped_fraction:g} allows to be clipped; skip such "
            "steps with skip_nonfinite, and give the norms that are finite."
        )
    return limit
