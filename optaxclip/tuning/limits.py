"""Limits that a given share of measured norms exceeds, and what is said of them."""

import math

import numpy as np


def lowest_limit(norms: np.ndarray, share: float) -> float:
    """Return the smallest norm that at most a share of those above 0 exceeds.

    Norms that are not finite exceed every limit. Where that is too many, and where no
    norm is above 0, the limit is infinite.
    """
    counted = norms[norms != 0]
    if not counted.size:
        return math.inf
    ascending = np.sort(np.where(np.isfinite(counted), counted, np.inf))
    # A product such as 0.29 * 100 may lie just below the number that it stands for.
    above = math.floor(share * len(counted) + 1e-9)
    return float(ascending[len(ascending) - 1 - above])


def told_limit(norms: np.ndarray, share: float) -> tuple[str, float]:
    """Write that limit, and return the share of all norms that really exceeds it.

    It has three digits, or as many as keep what is said of it true.
    """
    with np.errstate(over="ignore"):
        norms = norms.astype(np.float32)  # In 64 bits, 0.1 would take 17 digits.
    limit = lowest_limit(norms, share)

    def exceeds(given: float) -> float:
        return float(np.mean(norms > np.float32(given)))

    texts = (f"{limit:.{digits}g}" for digits in range(3, 9))
    true = exceeds(limit)
    short = (text for text in texts if exceeds(float(text)) == true)
    return next(short, f"{limit:.9g}"), true
