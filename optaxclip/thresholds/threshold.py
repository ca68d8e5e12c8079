"""How big is too big? The question every threshold answers, and what it may look at."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import PyTree

from optaxclip.groups import Groups, PerGroup
from optaxclip.norms import Magnitude

GroupShapes = PyTree[jax.ShapeDtypeStruct]


@dataclass(frozen=True)
class Observation:
    """What a threshold may look at in one step.

    Attributes:
      groups: the leaves that count, in groups.
      size: how big each group is, even where no float holds it.
      measure_params: gives how big the parameters of each group are.
      limits: arranges a tree of limits like the groups.
      extra_args: what else was handed to the optimizer's update, such as ``value``.
    """

    groups: Groups
    size: Magnitude
    measure_params: Callable[[], PerGroup]
    limits: Callable[[PyTree], PerGroup]
    extra_args: Mapping[str, Any]

    @functools.cached_property
    def magnitude(self) -> PerGroup:
        """How big each group is, as plain numbers of float32 or wider."""
        return self.size.plain


@runtime_checkable
class Threshold(Protocol):
    """A limit for each group, from what is seen now and what is remembered."""

    def init(self, groups: GroupShapes) -> Any:
        """Give the memory before the first step.

        Args:
          groups: the shapes and types in which magnitudes will come.
        """
        ...

    def update(self, seen: Observation, state: Any) -> tuple[PerGroup, Any]:
        """Give the limits of this step, one or one a group, and the new memory."""
        ...
