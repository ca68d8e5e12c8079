"""Shares and typical norms in words, and what guards and watches did."""

from __future__ import annotations

import numpy as np

from optaxclip.tuning.tables import number
from optaxclip.tuning.tracks import Track

GUARD = 0.3  # the largest share of the steps that counts as rare


def share_of(share: float, whole: str = "the steps") -> str:
    """Write a share as in ``12% of the steps``, or ``all the steps``."""
    if share in (0, 1):
        return f"all {whole}" if share else f"none of {whole}"
    return f"{100 * share:.3g}% of {whole}"


def watch_words(track: Track) -> list[str]:
    """Say what was measured where nothing is limited."""
    if track.before is None:
        return [] if track.broken.any() else ["Every step was finite."]
    return [f"It limits nothing: {typical(track.before)}."]


def guard_words(track: Track) -> list[str]:
    """Say how often a guard skipped a step that was finite."""
    assert track.skipped is not None
    if track.before is None:
        return (
            [] if track.broken.any() else ["Every step was finite, and none skipped."]
        )
    share = float(np.mean(track.skipped & ~track.broken))
    if not share:
        return ["It skipped no step that was finite."]
    said = f"It skipped {share_of(share)}"
    if share <= GUARD:
        return [f"{said}: it guards against rare large ones."]
    return [f"{said}, so what they would have taught is lost: raise its threshold."]


def typical(norms: np.ndarray) -> str:
    """Say what norms are typical, and which are rare."""
    finite = norms[np.isfinite(norms)]
    if not finite.size:
        return "no norm was finite"
    half, tenth = (number(float(x)) for x in np.quantile(finite, (0.5, 0.9)))
    return f"half of the norms were above {half}, and a tenth above {tenth}"
