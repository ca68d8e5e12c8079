"""Arguments that make no sense, refused in one sentence where they are given."""

from typing import Any, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Role = TypeVar("Role")


def answers(given: Any, role: type[Role]) -> TypeGuard[Role]:
    """Tell whether an object, not the class of one, answers what a protocol asks."""
    return isinstance(given, role) and not isinstance(given, type)


def check_role(given: Any, role: type, argument: str, example: str) -> None:
    """Refuse what does not answer a protocol, such as a function yet to be called."""
    if not answers(given, role):
        raise TypeError(
            f"{argument} must be an object such as {example}, not {given!r}."
        )


def check_transformation(given: Any, argument: str) -> None:
    """Refuse what is no transformation, such as a function that gives one."""
    if not (hasattr(given, "init") and hasattr(given, "update")):
        raise TypeError(
            f"{argument} must be a transformation such as optax.adam(1e-3), not "
            f"{given!r}."
        )


def is_real(given: Any) -> bool:
    """Recognize real numbers, arrays of them, and what is traced in their place."""
    if isinstance(given, np.generic | np.ndarray | jax.Array):
        kinds = (jnp.floating, jnp.integer, jnp.bool_)
        return any(jnp.issubdtype(given.dtype, kind) for kind in kinds)
    return isinstance(given, int | float)


def not_static(argument: str, kind: str, given: Any) -> TypeError:
    """Give the error for an argument that JAX cannot trace by unless it is known."""
    return TypeError(
        f"{argument} must be a Python {kind}, not {type(given).__name__}; name it in "
        "static_args where a wrapper such as optax.inject_hyperparams traces it."
    )


def _known(value: Any, argument: str, kinds: str) -> np.ndarray | None:
    """Give the numbers as far as they are known now; refuse what is no number."""
    if not is_real(value):
        raise TypeError(f"{argument} must be {kinds}, not {value!r}.")
    try:
        return np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return None  # Traced: responses take a negative limit as 0.


def check_limit(value: Any, argument: str) -> None:
    """Refuse what is no number of at least 0, as far as that is known now."""
    known = _known(value, argument, "a number or an array")
    if known is not None and not np.all(known >= 0):
        raise ValueError(
            f"{argument} must be at least 0, not {value}; use infinity for no limit."
        )


def check_lower(value: Any, argument: str) -> None:
    """Refuse what is no number of at most 0, as far as that is known now."""
    known = _known(value, argument, "a number, an array or a schedule")
    if known is not None and not np.all(known <= 0):
        raise ValueError(
            f"{argument} must be at most 0, not {value}; use -infinity for no limit."
        )


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


def check_order(low: Any, high: Any, names: tuple[str, str] = ("low", "high")) -> None:
    """Refuse a lower bound above the upper one."""
    try:
        ordered = np.all(np.asarray(low) <= np.asarray(high))
    except jax.errors.TracerArrayConversionError:
        return
    if not ordered:
        first, second = names
        raise ValueError(
            f"{first} must be at most {second}, but {low} is above {high}."
        )


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


def check_denominator(value: Any) -> None:
    """Refuse what nothing can be divided by, as far as that is known now."""
    if not isinstance(value, int | float | np.generic | np.ndarray | jax.Array):
        raise TypeError(f"denominator must be a number, not {value!r}.")
    try:
        known = np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        return
    if known.ndim or not known > 0:
        raise ValueError(f"denominator must be a number above 0, not {value}.")
