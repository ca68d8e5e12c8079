"""The numbers that are told about scores, in plain NumPy.

A score that is not finite, or at least as high as where a run counts as failed, is
taken for the latter: how far a lost run went does not matter.
"""

import numpy as np

SIGMAS, WINDOW = 7.0, 100


def capped(scores: np.ndarray, failed: float) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    return np.where(np.isfinite(scores), np.minimum(scores, failed), failed)


def diverged(scores: np.ndarray, failed: float) -> float:
    """The share of runs that failed, at the best learning rate and above.

    The scores are those of (rates, seeds). Below the best rate, a run may fail since it
    has not got far yet.
    """
    ended = capped(scores, failed)
    best = int(np.argmin(np.median(ended, axis=1)))
    return float(np.mean(ended[best:] >= failed))


def best_trial(scores: np.ndarray, failed: float) -> int:
    """Choose a limit from the scores of (limits, rates, seeds).

    The best is the one with the lowest median at its best rate; of equal ones, the one
    with the lowest mean over rates.
    """
    medians = np.median(capped(scores, failed), axis=-1)
    return int(np.lexsort((medians.mean(-1), medians.min(-1)))[0])


def spike_share(losses: np.ndarray) -> np.ndarray:
    """The share of steps whose loss is 7 deviations above the mean of the last 100.

    Steps whose loss is not finite count, too. The last axis is the steps.
    """
    steps = losses.shape[-1]
    spikes = np.zeros(losses.shape[:-1])
    for step in range(WINDOW, steps):
        past = losses[..., step - WINDOW : step].astype(np.float64)
        with np.errstate(all="ignore"):
            bound = past.mean(-1) + SIGMAS * past.std(-1)
        spikes += ~(losses[..., step] <= bound)
    return spikes / max(1, steps - WINDOW)


def sensitivity(medians: np.ndarray) -> float:
    """How much is lost at an average learning rate (Wortsman et al., 2309.14322)."""
    return float(np.mean(medians) - np.min(medians))


def usable(medians: np.ndarray, rates: np.ndarray, good: float) -> float:
    """The ratio of the ends of the widest range of rates that are all good.

    It is 1 for a single one, and 0 if no median is at or below `good`.
    """
    widest, start = 0.0, None
    for number, fine in enumerate(medians <= good):
        if not fine:
            start = None
            continue
        start = number if start is None else start
        widest = max(widest, rates[number] / rates[start])
    return float(widest)
