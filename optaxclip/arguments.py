"""Argument checks: reject bad arguments early, with a one-sentence error."""

from typing import Any, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Role = TypeVar("Role")


def answers(given: Any, role: type[Role]) -> TypeGuard[Role]:
    """Return whether an object (an instance, not a class) satisfies a protocol."""
    return isinstance(given, role) and not isinstance(given, type)


def check_role(given: Any, role: type, argument: str, example: str) -> None:
    """Reject objects that do not satisfy a protocol, such as an uncalled factory."""
    if not answers(given, role):
        raise TypeError(
            f"{argument} must be an object such as {example}, not {given!r}."
        )


def check_transformation(given: Any, argument: str) -> None:
    """Reject anything but a transformation, such as a factory that was not called."""
    if not (hasattr(given, "init") and hasattr(given, "update")):
        raise TypeError(
            f"{argument} must be a transformation such as optax.adam(1e-3), not "
            f"{given!r}."
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
        raise TypeError(f"{argument} must be {kinds}, not {value!r}.")
    try:
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return None  # Traced: responses treat a negative limit as 0.


def check_limit(value: Any, argument: str) -> None:
    """Reject anything but numbers >= 0; traced values are not checked."""
    known = _known(value, argument, "a number or an array")
    if known is not None and not np.all(known >= 0):
        raise ValueError(
            f"{argument} must be at least 0, not {value}; use infinity for no limit."
        )


def check_lower(value: Any, argument: str) -> None:
    """Reject anything but numbers <= 0; traced values are not checked."""
    known = _known(value, argument, "a number, an array or a schedule")
    if known is not None and not np.all(known <= 0):
        raise ValueError(
            f"{argument} must be at most 0, not {value}; use -infinity for no limit."
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


def check_order(low: Any, high: Any) -> None:
    """Reject a lower bound above the upper bound."""
    try:
        ordered = np.all(np.asarray(low) <= np.asarray(high))
    except jax.errors.TracerArrayConversionError:
        return
    if not ordered:
        raise ValueError(f"low must be at most high, but {low} is above {high}.")


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
        raise TypeError(f"{argument} {demand}, not {value!r}.")
    try:
        known = np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return
    if not np.all(holds(known)):
        raise ValueError(f"{argument} {demand}, not {value}.")


def check_window(value: Any, argument: str = "window") -> None:
    """Reject windows that are not static ints of at least 1."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise not_static(argument, "int", value)
    if value < 1:
        raise ValueError(f"{argument} must be at least 1, not {value}.")


def check_denominator(value: Any) -> None:
    """Reject anything but a scalar above 0; traced values are not checked."""
    if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array):
        raise TypeError(f"denominator must be a number, not {value!r}.")
    try:
        known = np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return
    if known.ndim or not known > 0:
        raise ValueError(f"denominator must be a number above 0, not {value}.")
