"""Checks of objects: reject what does not play its role, with a one-sentence error."""

import inspect
from typing import Any, TypeGuard, TypeVar

import jax.numpy as jnp

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
    return _takes(given.update, 3)


def check_schedule(given: Any, argument: str) -> None:
    """Reject a class, and a function that does not take one argument, the step."""
    if isinstance(given, type) or not _takes(given, 1):
        raise TypeError(
            f"{argument} must be a number or a schedule, which takes the step, not "
            f"{uncalled(given)}."
        )


def _takes(function: Any, number: int) -> bool:
    """Return whether a function can be called with a number of arguments."""
    try:
        inspect.signature(function).bind(*[None] * number)
    except TypeError:
        return False
    except ValueError:  # Some builtins have no signature.
        return True
    return True


def check_name(name: Any) -> None:
    """Reject a name under which `optaxclip.report` could not list anything."""
    if not isinstance(name, str) or not name:
        raise TypeError(
            f"name must be a nonempty string, not {shown(name)}; optaxclip.report "
            "calls this by it."
        )


def check_flag(value: Any, argument: str) -> None:
    """Reject anything but True and False, traced or not."""
    if not (isinstance(value, bool) or getattr(value, "dtype", None) == jnp.bool_):
        raise TypeError(f"{argument} must be True or False, not {shown(value)}.")
