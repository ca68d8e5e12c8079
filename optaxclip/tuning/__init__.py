"""Choose a limit: collect reports, sum them up, and compare whole training runs."""

from optaxclip.tuning.folds import cross_validate
from optaxclip.tuning.history import History
from optaxclip.tuning.results import Sweep
from optaxclip.tuning.suggestion import suggest_limit
from optaxclip.tuning.sweeps import sweep
from optaxclip.tuning.totals import Total, Totals
from optaxclip.tuning.verdicts import Verdicts, verdict

__all__ = [
    "History",
    "Sweep",
    "Total",
    "Totals",
    "Verdicts",
    "cross_validate",
    "suggest_limit",
    "sweep",
    "verdict",
]
