"""Choose a limit: collect reports, sum them up, and compare whole training runs."""

from optaxclip.tuning.history import History
from optaxclip.tuning.results import Sweep
from optaxclip.tuning.suggestion import suggest_limit
from optaxclip.tuning.sweeps import sweep
from optaxclip.tuning.totals import Total, Totals

__all__ = [
    "History",
    "Sweep",
    "Total",
    "Totals",
    "suggest_limit",
    "sweep",
]
