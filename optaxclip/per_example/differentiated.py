"""Which arguments of a loss are its parameters, and which make up the batch."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import PyTree

Argnums = int | Sequence[int]


def check_argnums(argnums: Any) -> None:
    """Reject anything but the positions of arguments."""
    found = argnums if isinstance(argnums, list | tuple) else (argnums,)
    if not found or any(isinstance(i, bool) or not isinstance(i, int) for i in found):
        raise TypeError(
            "argnums must be an int or several, the positions of the parameters among "
            f"the arguments of the loss, not {argnums!r}."
        )


def chosen(argnums: Argnums, args: tuple[Any, ...]) -> tuple[PyTree, tuple[Any, ...]]:
    """Take the parameters out of all arguments; return them and the rest."""
    places = _places(argnums, len(args))
    rest = tuple(x for i, x in enumerate(args) if i not in places)
    if isinstance(argnums, int):
        return args[places[0]], rest
    return tuple(args[i] for i in places), rest


def woven(loss: Callable[..., Any], argnums: Argnums) -> Callable[..., Any]:
    """Let a loss take its parameters first, and last a dict of what has a name."""

    def taken(params: PyTree, *example: Any) -> Any:
        *rest, named = example
        each = [params] if isinstance(argnums, int) else list(params)
        places = _places(argnums, len(rest) + len(each))
        others = iter(rest)
        args = [
            each[places.index(i)] if i in places else next(others)
            for i in range(len(rest) + len(each))
        ]
        return loss(*args, **named)

    return taken


def _places(argnums: Argnums, number: int) -> list[int]:
    """Count positions from 0 on."""
    given = [argnums] if isinstance(argnums, int) else list(argnums)
    if any(not -number <= i < number for i in given):
        raise ValueError(
            f"argnums must name some of the {number} arguments by position, not "
            f"{argnums!r}; the parameters and the batch are handed over by position."
        )
    places = [i % number for i in given]
    if len(set(places)) < len(places):
        raise ValueError(f"argnums must name each argument once, not {argnums!r}.")
    return places
