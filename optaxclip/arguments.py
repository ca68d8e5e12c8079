"""Arguments of the wrong kind, refused in one sentence where they are given."""

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
