"""Wrappers of a whole optimizer: a bad step is skipped, as if it had not been."""

from optaxclip.guards.above import skip_above
from optaxclip.guards.nonfinite import skip_nonfinite, zero_nonfinite
from optaxclip.guards.spikes import skip_spikes
from optaxclip.guards.streaks import stop_on_streak

__all__ = [
    "skip_above",
    "skip_nonfinite",
    "skip_spikes",
    "stop_on_streak",
    "zero_nonfinite",
]
