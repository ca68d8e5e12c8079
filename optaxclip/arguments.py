"""Checks of numbers: reject bad arguments early, with a one-sentence error."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optaxclip.sentences import shown


def check_named_axis(argument: str, spec: Any) -> None:
    """Reject anything but the name of a mesh axis or a tuple of names."""
    names = spec if isinstance(spec, tuple) else () if spec is None else (spec,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{argument} must be the name of a mesh axis, a tuple of names or a "
            f"prefix tree of these, not {shown(spec)}; give names as strings."
        )


def check_shared(argument: str, varying: Iterable[str]) -> None:
    """Reject what differs between the devices of a mapped function."""
    if varying:
        raise ValueError(
            f"{argument} must be the same on all devices, and varies over "
            f"{sorted(varying)}; hand over its jax.lax.pmean."
        )


def is_real(given: Any) -> bool:
    """Return whether the argument is a real number or array that JAX can hold."""
    if isinstance(given, np.generic | np.ndarray | jax.Array):
        kinds = (jnp.floating, jnp.integer)
        is_number = any(jnp.issubdtype(given.dtype, kind) for kind in kinds)
        return is_number and given.dtype.itemsize <= 8
    return isinstance(given, int | float) and not isinstance(given, bool)


def is_static_int(given: Any) -> bool:
    """Return whether the argument is an int that is known now, and no flag."""
    return isinstance(given, int | np.integer) and not isinstance(given, bool)


def not_static(argument: str, kind: str, given: Any) -> TypeError:
    """Return the error for a traced argument that has to be static."""
    return TypeError(
        f"{argument} must be a Python {kind}, not {type(given).__name__}; name it in "
        "static_args where a wrapper such as optax.inject_hyperparams traces it."
    )


def _known(value: Any, argument: str, demand: str) -> np.ndarray | None:
    """Return the concrete values, or None if traced; reject what is no real number."""
    if not is_real(value):
        raise TypeError(f"{argument} must be {demand}, not {shown(value)}.")
    try:
        return np.asarray(float(value) if isinstance(value, int) else value)
    except OverflowError:
        raise ValueError(
            f"{argument} must be a number that a float holds, not an int beyond all "
            "of them; use infinity or a smaller one."
        ) from None
    except jax.errors.TracerArrayConversionError:
        return None  # Traced: responses treat a negative limit as 0.


def _given(value: Any, known: np.ndarray) -> str:
    return str(value) if known.ndim == 0 else shown(known)


def check_limit(value: Any, argument: str) -> None:
    """Reject anything but numbers >= 0; traced values are not checked."""
    known = _known(value, argument, "a number or an array")
    if known is not None and not np.all(known >= 0):
        raise ValueError(
            f"{argument} must be at least 0, not {_given(value, known)}; use infinity "
            "for no limit."
        )


def check_lower(value: Any, argument: str) -> None:
    """Reject anything but numbers <= 0; traced values are not checked."""
    known = _known(value, argument, "a number, an array or a schedule")
    if known is not None and not np.all(known <= 0):
        raise ValueError(
            f"{argument} must be at most 0, not {_given(value, known)}; use -infinity "
            "for no limit."
        )


def check_fits(limit: tuple[int, ...], groups: tuple[int, ...]) -> None:
    """Reject limits of a shape that does not broadcast to that of the groups."""
    ends = zip(reversed(limit), reversed(groups), strict=False)
    if len(limit) > len(groups) or not all(own in (1, wanted) for own, wanted in ends):
        raise ValueError(
            f"a limit of shape {limit} does not fit groups of shape {groups}; give one "
            "number, or one per group."
        )


def check_magnitude(value: Any, argument: str) -> None:
    """Reject negative numbers; NaN is allowed: it is the magnitude of broken groups."""
    _check(value, lambda x: ~(x < 0), argument, "a number of at least 0")


def check_nonnegative(value: Any, argument: str) -> None:
    """Reject anything but one number of at least 0; traced values are not checked."""
    _check(value, lambda x: x >= 0, argument, "a number of at least 0")


def check_between(value: Any, low: float, high: float, argument: str) -> None:
    """Reject anything but one number from `low` to `high`."""
    _check(
        value,
        lambda x: (low <= x) & (x <= high),
        argument,
        f"a number from {low} to {high}",
    )


def check_steps(value: Any, least: int, argument: str) -> None:
    """Reject anything but a number of steps that an int32 can count."""
    check_between(value, least, 2**31 - 1, argument)


def check_percentile(value: Any, argument: str = "percentile") -> None:
    """Reject anything but a percentile, such as a quantile between 0 and 1."""
    check_between(value, 0, 100, argument)
    try:
        known = np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return
    if np.any((known > 0) & (known < 1)):
        raise ValueError(
            f"{argument} must be 0 or a number from 1 to 100, not "
            f"{_given(value, known)}; give {100 * known.max():g} for the quantile "
            f"{known.max():g}."
        )


def check_order(low: Any, high: Any, names: tuple[str, str] = ("low", "high")) -> None:
    """Reject a lower bound above the upper one."""
    try:
        ordered = np.all(np.asarray(low) <= np.asarray(high))
    except jax.errors.TracerArrayConversionError:
        return
    if not ordered:
        first, second = names
        raise ValueError(
            f"{first} must be at most {second}, but "
            f"{_given(low, np.asarray(low))} is above {_given(high, np.asarray(high))}."
        )


def check_decay(value: Any, argument: str = "decay") -> None:
    """Reject decays that are not at least 0 and below 1, in float32 too."""
    _check(
        value,
        lambda x: (x >= 0) & (np.asarray(x, np.float32) < 1),
        argument,
        "a number of at least 0 and below 1, in float32 too",
    )


def _check(value: Any, holds: Any, argument: str, demand: str) -> None:
    known = _known(value, argument, demand)
    if known is not None and not (known.ndim == 0 and holds(known)):
        raise ValueError(f"{argument} must be {demand}, not {_given(value, known)}.")
    if jnp.ndim(value) > 0:
        raise ValueError(f"{argument} must be {demand}, not {shown(value)}.")


def check_window(value: Any, argument: str = "window") -> None:
    """Reject windows that are not static ints of at least 1."""
    if not is_static_int(value):
        raise not_static(argument, "int", value)
    if not 1 <= value < 2**31:
        raise ValueError(
            f"{argument} must be at least 1, not {shown(value)}, and below 2**31."
        )


def check_denominator(value: Any) -> None:
    """Reject a divisor that is not above 0, if one is given and its value is known."""
    if value is not None:
        _check(value, lambda x: x > 0, "denominator", "a number above 0")


def check_dtype(value: Any) -> None:
    """Reject anything but None and the dtype of real numbers with a fraction."""
    try:
        known = value is None or jnp.issubdtype(value, jnp.floating)
    except TypeError:
        known = False
    if not known:
        raise TypeError(
            "dtype must be a floating-point type such as jnp.float32, not "
            f"{shown(value)}."
        )


def check_loss(loss: Any) -> None:
    """Reject anything but a function, such as the value of one."""
    if not callable(loss):
        raise TypeError(
            f"loss must be a function of params and one example, not {shown(loss)}; "
            "hand over the function itself."
        )


def check_transform(given: Any) -> None:
    """Reject anything but None and a function of a gradient."""
    if not (given is None or callable(given)):
        raise TypeError(
            f"pre_clipping_transform must be a function, not {shown(given)}."
        )


def check_label(label: Any) -> None:
    """Reject a label that a dict cannot find, such as a list, an array or NaN."""
    try:
        known = label in {label: None} and bool(label == label)
    except (TypeError, ValueError):
        known = False
    if not known:
        raise TypeError(f"labels must be hashable, as strings are, not {shown(label)}.")


def check_labels(spec: Any, labels: list[Any], known: list[Any]) -> None:
    """Reject a dict of limits that lacks a label, or has one that no leaf has.

    Args:
      spec: what was given as limits.
      labels: those of the leaves that count.
      known: those of all leaves.
    """
    missing = [x for x in labels if not isinstance(spec, dict) or x not in spec]
    if missing:
        raise ValueError(
            "max_norm must be one limit or a dict with a limit for each label; add "
            f"{missing[:5]}."
        )
    lone = [x for x in spec if x not in labels and x not in known]
    if labels and lone:
        raise ValueError(
            f"max_norm has a limit for {lone[0]!r}, which no leaf is labeled; take it "
            "out, or write it as the labels do."
        )
