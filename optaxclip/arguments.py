"""Argument checks: reject bad arguments early, with a one-sentence error."""

import inspect
from collections.abc import Iterable
from typing import Any, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from optaxclip.sentences import shown, uncalled

Role = TypeVar("Role")


def answers(given: Any, role: type[Role]) -> TypeGuard[Role]:
    """Return whether an object (an instance, not a class) satisfies a protocol."""
    return isinstance(given, role) and not isinstance(given, type)


def check_role(given: Any, role: type, argument: str, example: str) -> None:
    """Reject objects that do not satisfy a protocol, such as an uncalled factory."""
    if not answers(given, role):
        raise TypeError(
            f"{argument} must be an object such as {example}, not {uncalled(given)}."
        )


def check_transformation(given: Any, argument: str) -> None:
    """Reject anything but a transformation, such as a function that returns one."""
    if isinstance(given, type) or not _transforms(given):
        raise TypeError(
            f"{argument} must be a transformation such as a clipper or "
            f"optax.adam(1e-3), not {uncalled(given)}."
        )


def _transforms(given: Any) -> bool:
    """Tell whether something has an update of three arguments, unlike a threshold."""
    if not (hasattr(given, "init") and callable(getattr(given, "update", None))):
        return False
    try:
        inspect.signature(given.update).bind(None, None, None)
    except TypeError:
        return False
    return True


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
    """Return whether the argument is a real number or array, possibly traced."""
    if isinstance(given, np.generic | np.ndarray | jax.Array):
        kinds = (jnp.floating, jnp.integer, jnp.bool_)
        return any(jnp.issubdtype(given.dtype, kind) for kind in kinds)
    return isinstance(given, int | float)


def not_static(argument: str, kind: str, given: Any) -> TypeError:
    """Return the error for a traced argument that has to be static."""
    return TypeError(
        f"{argument} must be a Python {kind}, not {type(given).__name__}; name it in "
        "static_args where a wrapper such as optax.inject_hyperparams traces it."
    )


def _known(value: Any, argument: str, kinds: str) -> np.ndarray | None:
    """Return the concrete values, or None if traced; reject non-numbers."""
    if not is_real(value):
        raise TypeError(f"{argument} must be {kinds}, not {shown(value)}.")
    try:
        return np.asarray(float(value) if isinstance(value, int) else value)
    except OverflowError:
        raise ValueError(
            f"{argument} must be a number that a float holds, not an int beyond all "
            "of them; use infinity for no limit."
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


def check_magnitude(value: Any, argument: str) -> None:
    """Reject negative numbers; NaN is allowed: it is the magnitude of broken groups."""
    _check(value, lambda x: ~(x < 0), argument, "must be a number of at least 0")


def check_between(value: Any, low: float, high: float, argument: str) -> None:
    """Reject anything but numbers from `low` to `high`."""
    _check(
        value,
        lambda x: (low <= x) & (x <= high),
        argument,
        f"must be a number from {low} to {high}",
    )


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
        "must be a number of at least 0 and below 1, in float32 too",
    )


def _check(value: Any, holds: Any, argument: str, demand: str) -> None:
    if not is_real(value):
        raise TypeError(f"{argument} {demand}, not {shown(value)}.")
    try:
        known = np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return
    if not np.all(holds(known)):
        raise ValueError(f"{argument} {demand}, not {_given(value, known)}.")


def check_window(value: Any, argument: str = "window") -> None:
    """Reject windows that are not static ints of at least 1."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise not_static(argument, "int", value)
    if value < 1:
        raise ValueError(f"{argument} must be at least 1, not {value}.")


def check_denominator(value: Any) -> None:
    """Reject a divisor that is not above 0, if its value is already known."""
    _check(
        value,
        lambda x: (x > 0) & (x.ndim == 0),
        "denominator",
        "must be a number above 0",
    )


def check_loss(loss: Any) -> None:
    """Reject anything but a function, such as the value of one."""
    if not callable(loss):
        raise TypeError(
            f"loss must be a function of params and one example, not {shown(loss)}; "
            "hand over the function itself."
        )


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
