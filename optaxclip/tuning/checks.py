"""Checks of what the functions that look at results are given."""

from typing import Any

from optaxclip.sentences import shown
from optaxclip.tuning.columns import Columns, later
from optaxclip.tuning.history import History
from optaxclip.tuning.results import Sweep


def columns_from(history: Any, since: Any) -> Columns:
    """Return the columns of a history from a step on; reject anything but those."""
    if not isinstance(history, History):
        raise TypeError(
            f"history must be a History, not {shown(history)}; collect reports by its "
            "append, or by History.from_scan."
        )
    return later(history.columns, since)


def check_sweep(sweep: Any) -> None:
    """Reject anything but the result of a sweep."""
    if not isinstance(sweep, Sweep):
        raise TypeError(
            f"sweep must be a Sweep, not {shown(sweep)}; hand over what "
            "optaxclip.tuning.sweep returned."
        )
