"""The interface of thresholds, and what they may look at."""

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
      size: the magnitude of each group, even where it would overflow a float.
      measure_params: returns the magnitude of each group's parameters.
      limits: arranges a tree of limits like the groups.
      extra_args: the extra arguments of the optimizer's update, such as ``value``.
    """

    groups: Groups
    size: Magnitude
    measure_params: Callable[[], PerGroup]
    limits: Callable[[PyTree], PerGroup]
    extra_args: Mapping[str, Any]

    @functools.cached_property
    def magnitude(self) -> PerGroup:
        """The magnitude of each group, as plain numbers in float32 or wider."""
        return self.size.plain


@runtime_checkable
class Threshold(Protocol):
    """Computes the limit of each group from an observation and a memory."""

    def init(self, groups: GroupShapes) -> Any:
        """Return the initial memory.

        Args:
          groups: the shapes and dtypes of the magnitudes.
        """
        ...

    def update(self, seen: Observation, state: Any) -> tuple[PerGroup, Any]:
        """Return the limits of this step (one, or one per group) and the new memory."""
        ...
