"""How big is too big? Thresholds, one file for each kind of memory."""

from optaxclip.thresholds.constant import (
    Constant,
    Scheduled,
    TwoSided,
    as_interval,
    as_threshold,
    check_limit,
)
from optaxclip.thresholds.relative import PerRootSize, Share
from optaxclip.thresholds.threshold import Observation, Threshold

__all__ = [
    "Constant",
    "Observation",
    "PerRootSize",
    "Scheduled",
    "Share",
    "Threshold",
    "TwoSided",
    "as_interval",
    "as_threshold",
    "check_limit",
]
