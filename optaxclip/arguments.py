"""Arguments of the wrong kind, refused in one sentence where they are given."""

from typing import Any


def answers(given: Any, role: type) -> bool:
    """Tell whether an object, not the class of one, answers what a protocol asks."""
    return isinstance(given, role) and not isinstance(given, type)


def check_role(given: Any, role: type, argument: str, example: str) -> None:
    """Refuse what does not answer a protocol, such as a function yet to be called."""
    if not answers(given, role):
        raise TypeError(
            f"{argument} must be an object such as {example}, not {given!r}."
        )


def not_static(argument: str, kind: str, given: Any) -> TypeError:
    """Give the error for an argument that JAX cannot trace by unless it is known."""
    return TypeError(
        f"{argument} must be a Python {kind}, not {type(given).__name__}; name it in "
        "static_args where a wrapper such as optax.inject_hyperparams traces it."
    )
