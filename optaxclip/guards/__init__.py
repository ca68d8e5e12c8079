"""Guards: wrappers that skip a bad step as if it had never happened."""

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
