"""Sentences about a clipper, from its track."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from optaxclip.reports import BoundState, CarryState
from optaxclip.tuning.limits import told_limit
from optaxclip.tuning.tables import number, share_of, typical
from optaxclip.tuning.tracks import Track, above

GUARD = 0.3  # the largest share of the steps that counts as rare
_TENTH = 0.1  # the share that a better limit may clip
_RULE = 0.5  # the share from which on a limit is the rule, not an exception
_SAME = 1e-3  # a relative difference that does not count
_LOOK_AGAIN = "Norms move when the limit does, so look again after a change."


class _Acting(NamedTuple):
    """The steps in which a clipper had a limit, steps x groups, and what it did."""

    before: np.ndarray
    after: np.ndarray
    limit: np.ndarray
    clipped: np.ndarray
    of_params: bool
    carries_over: bool


def clipper_words(track: Track, kept: np.ndarray) -> list[str]:
    """Say whether the limit of a clipper suits, by those of its steps that are kept."""
    told = track.before, track.after, track.limit, track.clipped
    before, after, limit, clipped = told
    if before is None or after is None or limit is None or clipped is None:
        return ["Its report lacks norms to judge by."]
    if not kept.any():
        return ["There is no step to judge by: all were skipped, or not finite."]
    limited = np.asarray(np.isfinite(limit).any(axis=1))
    if not (kept & limited).any():
        return _unlimited(before[kept])
    free = int(np.argmax(limited))
    if not limited[free:].all():  # Not a warm-up: ZClip limits nothing but spikes.
        free = 0
    acts = kept & (np.arange(len(kept)) >= free)
    first = "step" if free == 1 else f"{free} steps"
    said = [f"It had no limit in the first {first}."] if free else []
    acting = _Acting(
        *(x[acts] for x in (before, after, limit, clipped)),
        of_params=track.mark == BoundState.mark,
        carries_over=track.mark == CarryState.mark,
    )
    if at_once := _plain_case(acting):
        return [*said, at_once]
    several = before.shape[1] > 1
    said += _several(acting, track.groups) if several else _single(acting)
    said += _otherwise(acting) + _moved(acting)
    return sorted(said, key=lambda words: words.endswith(_LOOK_AGAIN))


def _plain_case(acting: _Acting) -> str:
    """Say what needs one sentence, if anything."""
    if not acting.after.any() and acting.before.any():
        if acting.limit.any():
            return "Nothing is left of any update: all were above its limit."
        if acting.of_params:
            return "Nothing is left of the parameters: a limit of 0 makes them all 0."
        return "Nothing is left of any update: a limit of 0 stops all learning."
    if _sets_every_norm(acting):
        said = "It brings small norms up to its limit as well as large ones down: "
        if acting.of_params:
            return f"{said}the parameters stay on spheres."
        return f"{said}the limit is the length of every step, like a learning rate."
    if not acting.clipped.any():
        largest = number(float(np.nanmax(_excess(acting), initial=0)))
        return f"It never acts: no norm was above {largest} times its limit."
    return ""


def _excess(acting: _Acting) -> np.ndarray:
    """Return how many times as high as its limit each norm was."""
    return acting.before / np.where(acting.limit > 0, acting.limit, np.nan)


def _unlimited(norms: np.ndarray) -> list[str]:
    if norms.shape[1] > 1:
        return ["Its limits are infinite: it never acts. suggest_limit gives others."]
    said = f"Its limit is infinite: it never acts. Here {typical(norms)}."
    limit, share = told_limit(norms, _TENTH)
    if not share:
        return [said]
    return [f"{said} A limit of {limit} would clip {share_of(share)}. {_LOOK_AGAIN}"]


def _changes(acting: _Acting) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tell which norms were brought to their limit, changed at all, and raised."""
    before, after, limit = acting[:3]
    counted = (before > 0) & np.isfinite(limit)
    there = np.abs(after - limit) <= _SAME * limit
    changed = np.abs(after - before) > _SAME * before
    raised = after > (1 + _SAME) * before
    return there[counted], counted & changed, counted & raised


def _sets_every_norm(acting: _Acting) -> bool:
    """Tell whether norms are brought to the limit from below, too."""
    there, changed, raised = _changes(acting)
    most = there.size and there.mean() > 0.9 and changed.sum() > _RULE * there.size
    return bool(most and raised.any())


def _single(acting: _Acting) -> list[str]:
    """Judge one group, or the one that stands for many."""
    share, steps = float(acting.clipped.mean()), float(np.mean(acting.clipped > 0))
    steady = _steady(acting.limit)
    if steps == share:
        words = [f"It clipped {share_of(share)}: {_role(share, acting, steady)}."]
        words += _lately(acting.clipped, "the steps")
        limit, fewer = told_limit(acting.before, _TENTH)
        better = f"A limit of {limit} would have clipped {share_of(fewer)}"
    else:
        whole = "the numbers or units"
        role = _role(max(share, min(steps, _RULE)), acting, steady)
        words = [
            f"It clipped {share_of(share, whole)}, and some of them in "
            f"{share_of(steps)}: {role}."
        ]
        words += _lately(acting.clipped, whole)
        times, fewer = told_limit(np.nan_to_num(_excess(acting)), _TENTH)
        better = f"A limit {times} times as high would have clipped something in "
        better += share_of(fewer)
    if steps > GUARD and fewer and _better_is_known(acting):
        words.append(f"{better}. {_LOOK_AGAIN}")
    return words


def _role(share: float, acting: _Acting, steady: bool) -> str:
    """Say what a limit does that this share of the norms exceeds."""
    if acting.of_params:
        held = "it holds the parameters there"
        return held if share > _RULE else "it stops what grows beyond it"
    if share <= GUARD:
        return "it guards against rare large ones"
    if acting.carries_over:
        return "what it cuts off goes into the carry, for later steps"
    if share <= _RULE:
        return "it does more than guard against rare large ones"
    left = (acting.after > 0).any(axis=1) & (acting.clipped > 0)
    if not left.any():
        return "it leaves nothing of them"
    times = acting.before[left].max(axis=1) / acting.after[left].max(axis=1)
    lower = number(float(np.median(times)))
    said = f"it acts like a learning rate {lower} times lower"
    adam = (
        "before Adam, which divides by the size of gradients, its value hardly matters"
    )
    return f"{said}; {adam}" if steady else said


def _several(acting: _Acting, groups: tuple[str, ...]) -> list[str]:
    """Judge each group by itself."""
    over = above(acting.before, acting.limit)
    shares = over.mean(axis=0)
    steady = _steady(acting.limit)
    stories = np.array([_story(share) for share in shares])
    counts = np.bincount(np.minimum(stories, 2), minlength=3).tolist()
    kinds = ("never clipped {}", "clipped {} now and then", "clipped {} often")
    told = [kind.format(n) for n, kind in zip(counts, kinds, strict=True) if n]
    worst = int(shares.argmax())
    one = _Acting(
        before=acting.before[:, [worst]],
        after=acting.after[:, [worst]],
        limit=acting.limit[:, [worst]],
        clipped=over[:, worst].astype(float),
        of_params=acting.of_params,
        carries_over=acting.carries_over,
    )
    share = float(shares[worst])
    role = _role(share, one, steady)
    words = [
        f"Of its {len(groups)} groups, it {', '.join(told)}; most of all "
        f"{groups[worst]}, in {share_of(share)}: {role}."
    ]
    words += _lately(over.mean(axis=1), "the groups")
    if counts[2] and _better_is_known(acting):
        words.append(f"suggest_limit gives a limit for each. {_LOOK_AGAIN}")
    return words


def _otherwise(acting: _Acting) -> list[str]:
    """Say what happened to norms that were within their limits."""
    _, changed, raised = _changes(acting)
    within = acting.before <= acting.limit
    if raised.any():
        raised_share = share_of(float(raised.mean()), "the norms")
        return [f"It raised {raised_share}, which were too small."]
    if (changed & within).sum() > within.sum() / 2:
        return ["It shortens norms within its limit, too, by a soft curve."]
    return []


def _steady(limit: np.ndarray) -> bool:
    highest = np.where(np.isfinite(limit), limit, -np.inf).max(axis=0)
    return bool(np.all(limit.min(axis=0) >= (1 - _SAME) * highest))


def _better_is_known(acting: _Acting) -> bool:
    """Tell whether norms are not those of a limit that moves, nor of a carry."""
    return _steady(acting.limit) and not (acting.of_params or acting.carries_over)


def _moved(acting: _Acting) -> list[str]:
    if _steady(acting.limit):
        return []
    words = "Its limits move"
    if acting.limit.shape[1] == 1:
        limits = acting.limit[np.isfinite(acting.limit)]
        low, high = (number(float(f(limits))) for f in (np.min, np.max))
        words = f"Its limit moves, here from {low} to {high}"
    if acting.clipped.mean() > GUARD:
        words += ": one that follows the norms clips such a share by design"
    return [f"{words}."]


def _lately(clipped: np.ndarray, whole: str) -> list[str]:
    """Say so if the last quarter of the steps tells another story."""
    last = float(clipped[3 * len(clipped) // 4 :].mean())
    if _story(float(clipped.mean())) == _story(last):
        return []
    return [f"In the last quarter it clipped {share_of(last, whole)}."]


def _story(share: float) -> int:
    """Number what a share tells: nothing, a guard, more than that, or a rule."""
    return int(share > 0) + int(share > GUARD) + int(share > _RULE)
