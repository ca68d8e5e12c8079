"""Thresholds: how big is too big."""

from optaxclip.thresholds.band import Band
from optaxclip.thresholds.combined import IgnoringZeros, Maximum, Minimum, Warmup
from optaxclip.thresholds.constant import (
    Constant,
    Limit,
    Scheduled,
    TwoSided,
    as_threshold,
)
from optaxclip.thresholds.ema import Ema
from optaxclip.thresholds.greedy import Greedy
from optaxclip.thresholds.memory import Remembering
from optaxclip.thresholds.relative import OwnShare, PerRootSize, Share
from optaxclip.thresholds.threshold import Observation, Threshold
from optaxclip.thresholds.tracked import TrackedQuantile
from optaxclip.thresholds.window import HistoricalSigma, RollingPercentile
from optaxclip.thresholds.z_score import (
    Spike,
    ZScore,
    adaptive_scaling,
    to_mean,
    to_percentile,
)

__all__ = [
    "Band",
    "Constant",
    "Ema",
    "Greedy",
    "HistoricalSigma",
    "IgnoringZeros",
    "Limit",
    "Maximum",
    "Minimum",
    "Observation",
    "OwnShare",
    "PerRootSize",
    "Remembering",
    "RollingPercentile",
    "Scheduled",
    "Share",
    "Spike",
    "Threshold",
    "TrackedQuantile",
    "TwoSided",
    "Warmup",
    "ZScore",
    "adaptive_scaling",
    "as_threshold",
    "to_mean",
    "to_percentile",
]
