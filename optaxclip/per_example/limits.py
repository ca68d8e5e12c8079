"""Limits per example, and the leaves that each of them covers."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from optaxclip.arguments import check_limit
from optaxclip.leaves import counted, counts, of_leaves
from optaxclip.numbers import as_number
from optaxclip.responses import Response
from optaxclip.responses.pointwise import Pointwise

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Limits, and the leaves that are measured together for each.

    Attributes:
      groups: the positions of the leaves of each limit.
      values: the limits.
      structure: the structure in which they were given; None for an array with one
        limit per leaf.
    """

    groups: tuple[tuple[int, ...], ...]
    values: list[Array]
    structure: Any

    def like_given(self, per_group: list[Array]) -> PyTree:
        """Arrange one object per group in the way the limits were given."""
        if self.structure is None:
            return jnp.stack(per_group, axis=-1)
        return jax.tree.unflatten(self.structure, per_group)

    def of_leaves(self, per_group: list[T]) -> dict[int, T]:
        """Map the position of each leaf to the object of its group."""
        pairs = zip(self.groups, per_group, strict=True)
        return {i: x for group, x in pairs for i in group}

    def places(self, params: PyTree) -> "Limits":
        """Convert positions among leaves that count to positions among all leaves."""
        counted = [i for i, x in enumerate(jax.tree.leaves(params)) if counts(x)]
        groups = tuple(tuple(counted[i] for i in group) for group in self.groups)
        return replace(self, groups=groups)


def check_limits(max_norm: Any) -> None:
    """Reject anything but limits; traced values are not checked."""
    given = jax.tree.leaves(max_norm)
    if not given:
        raise TypeError(f"max_norm must be a number, not {max_norm!r}.")
    for value in given:
        if callable(value):
            raise TypeError(
                "max_norm must be a number, not a schedule, since no steps are counted "
                "here; call the schedule and pass its value."
            )
        check_limit(value, "max_norm")


def arrange(
    max_norm: PyTree[ArrayLike],
    params: PyTree,
    argument: str = "max_norm",
    tree: str = "params",
) -> Limits:
    """Find the leaves that each limit covers."""
    number = len(counted(params))
    given, structure = jax.tree.flatten(max_norm)
    if len(given) == 1 and structure == jax.tree.structure(0) and jnp.ndim(given[0]):
        limits = as_number(given[0])
        if limits.shape != (number,):
            raise ValueError(
                f"max_norm must be one limit or have one for each of the {number} "
                f"leaves of params, not the shape {limits.shape}."
            )
        groups = tuple((i,) for i in range(number))
        return Limits(groups, list(limits), None)
    for limit in given:
        if jnp.ndim(limit):
            raise ValueError(
                "max_norm must have a single number for each part of params, not an "
                f"array of shape {jnp.shape(limit)}."
            )
    numbers = jax.tree.unflatten(structure, range(len(given)))
    of_leaf = of_leaves(argument, numbers, params, tree_name=tree)
    groups = tuple(
        tuple(i for i, which in enumerate(of_leaf) if which == group)
        for group in range(len(given))
    )
    return Limits(groups, [as_number(limit) for limit in given], structure)


def check_response(response: Response) -> None:
    """Reject responses that do not multiply a whole gradient by a number."""
    if isinstance(response, Pointwise) or not isinstance(response, Response):
        raise TypeError(
            "response must multiply a whole gradient, as responses.shrink does, not "
            f"{response!r}."
        )
