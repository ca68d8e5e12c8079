"""What a history says about a limit, in words."""

from __future__ import annotations

import textwrap

import numpy as np

from optaxclip.reports import LengthState, SphereState
from optaxclip.tuning.checks import columns_from
from optaxclip.tuning.history import History
from optaxclip.tuning.judging import GUARD, clipper_words
from optaxclip.tuning.tables import share_of, typical
from optaxclip.tuning.tracks import Track, left_out, tracks_of

_BY_DESIGN = {
    SphereState.mark: "It holds the parameters on their spheres, by design.",
    LengthState.mark: (
        "It sets the length of every step, by design: it is a learning rate."
    ),
}


class Verdicts(dict[str, str]):
    """What is said of each name; `print` shows one paragraph each."""

    def __str__(self) -> str:
        said = (f"{name}: {words}" for name, words in self.items())
        return "\n".join(textwrap.fill(x, 80, subsequent_indent="  ") for x in said)


def verdict(history: History, since: int = 0) -> Verdicts:
    """Say in words whether each limit suits: never acts, guards, or rules every step.

    A limit that up to 30% of the steps exceed guards against rare large steps, and one
    that more than half exceed acts like a lower learning rate. Where there are several
    groups, each is judged by itself; of single numbers and units, of which a report
    shows the largest alone, the share that is clipped counts. The steps of a warm-up,
    before there is a limit, are left out, as are steps that are not finite or that a
    guard skipped. Where limits come and go, as those of `zclip`, a step without one
    counts as not clipped. Of a limit that moves, no better value is told, nor under
    `error_feedback`, whose carry changes the norms with the limit, nor where steps are
    so few or so alike that what clips at most a tenth of them clips none. Of singular
    values, all is said of the largest alone.

    Norms move when the limit does. So after a change, train again and look again.

    Args:
      history: the reports of the steps.
      since: the number of steps to leave out at the start.

    Returns:
      A dict from the name of each clipper and guard to some sentences. Whether it
      bounds parameters, or sets the length of each step, is told by its report.

    Raises:
      TypeError: if `history` is not a `History`, or `since` not an int.
      ValueError: if there is no step from `since` on.

    Examples:
      >>> reports = {
      ...     "clip/pre_norm": jnp.linspace(1.0, 3.0, 100),
      ...     "clip/post_norm": jnp.full(100, 0.5),
      ...     "clip/limit": jnp.full(100, 0.5),
      ...     "clip/clipped_fraction": jnp.ones(100),
      ... }
      >>> history = optaxclip.tuning.History.from_scan(reports)
      >>> print(optaxclip.tuning.verdict(history))
      clip: It clipped all the steps: it acts like a learning rate 4 times lower;
        before Adam, which divides by the size of gradients, its value hardly
        matters. A limit of 2.8 would have clipped 10% of the steps. Norms move when
        the limit does, so look again after a change.
    """
    columns = columns_from(history, since)
    tracks = tracks_of(columns)
    skipped = left_out(tracks)
    words = {
        name: " ".join(_words(name, track, skipped, since))
        for name, track in tracks.items()
    }
    return Verdicts(words)


def _words(name: str, track: Track, skipped: np.ndarray, since: int) -> list[str]:
    if not track.broken.size:
        return ["It has taken no step."]
    broken = np.flatnonzero(track.broken)
    said = []
    if broken.size:
        first = since + int(broken[0])
        if track.broken[broken[0] :].all():
            return [f"From step {first} on no step was finite: training diverged."]
        share = share_of(broken.size / len(track.broken))
        alone = track.before is None or skipped[broken].all()
        remedy = "they were left out"
        if not alone:
            remedy = "no limit mends these, so skip them with skip_nonfinite"
        said.append(f"{share} were not finite, from step {first} on; {remedy}.")
    if track.skipped is not None:
        return said + _guard_words(track)
    if track.limit is None:
        return said + _watch_words(track)
    if track.mark in _BY_DESIGN:
        return [*said, _BY_DESIGN[track.mark]]
    return said + clipper_words(track, ~skipped & ~track.broken)


def _watch_words(track: Track) -> list[str]:
    """Say what was measured where nothing is limited."""
    if track.before is None:
        return [] if track.broken.any() else ["Every step was finite."]
    return [f"It limits nothing: {typical(track.before)}."]


def _guard_words(track: Track) -> list[str]:
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
