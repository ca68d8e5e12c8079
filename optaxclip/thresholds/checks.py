"""Refusing numbers that make no sense, as far as they are known now."""

from typing import Any

import jax
import numpy as np

from optaxclip.arguments import check_role, is_real, not_static
from optaxclip.thresholds.threshold import Threshold


def check_threshold(value: Any, argument: str) -> None:
    """Refuse what is no threshold, a number too where only a threshold will do."""
    check_role(value, Threshold, argument, "thresholds.Constant(1.0)")


def check_magnitude(value: Any, argument: str) -> None:
    """Refuse what is no magnitude; NaN is one, of what is broken."""
    _check(value, lambda x: ~(x < 0), argument, "must be a number of at least 0")


def check_between(value: Any, low: float, high: float, argument: str) -> None:
    """Refuse what is no number from `low` to `high`."""
    _check(
        value,
        lambda x: (low <= x) & (x <= high),
        argument,
        f"must be a number from {low} to {high}",
    )


def check_order(low: Any, high: Any) -> None:
    """Refuse a lower bound above the upper one."""
    try:
        ordered = np.all(np.asarray(low) <= np.asarray(high))
    except jax.errors.TracerArrayConversionError:
        return
    if not ordered:
        raise ValueError(f"low must be at most high, but {low} is above {high}.")


def check_decay(value: Any, argument: str = "decay") -> None:
    """Refuse a decay that does not forget, or forgets more than all."""
    _check(
        value,
        lambda x: (x >= 0) & (np.asarray(x, np.float32) < 1),
        argument,
        "must be a number of at least 0 and below 1, in float32 too",
    )


def _check(value: Any, holds: Any, argument: str, demand: str) -> None:
    if not is_real(value):
        raise TypeError(f"{argument} {demand}, not {value!r}.")
    try:
        known = np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return
    if not np.all(holds(known)):
        raise ValueError(f"{argument} {demand}, not {value}.")


def check_window(value: Any, argument: str = "window") -> None:
    """Refuse a number of steps that is not known now or not at least 1."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise not_static(argument, "int", value)
    if value < 1:
        raise ValueError(f"{argument} must be at least 1, not {value}.")
