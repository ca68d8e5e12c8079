"""Limits relative to the model: to its size, and to its parameters."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optaxclip.arguments import check_limit
from optaxclip.groups import PerGroup, map_groups
from optaxclip.numbers import Number
from optaxclip.thresholds.constant import take_thresholds
from optaxclip.thresholds.threshold import GroupShapes, Observation


@dataclass(frozen=True)
class PerRootSize:
    r"""The limit $c / \sqrt n$, n being how many numbers the whole tree has.

    Elements at this limit all together have the L2 norm c.

    Attributes:
      scale: c.
    """

    scale: Any  # a limit of any kind, taken as a threshold

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        take_thresholds(self, "scale")

    def init(self, groups: GroupShapes) -> Any:
        """See `Threshold.init`."""
        return self.scale.init(groups)

    def update(self, seen: Observation, state: Any) -> tuple[PerGroup, Any]:
        """See `Threshold.update`."""
        scale, state = self.scale.update(seen, state)
        root = max(seen.groups.total_size, 1) ** 0.5
        return jax.tree.map(lambda c: c / root, scale), state


@dataclass(frozen=True)
class Share:
    r"""The limit $\lambda \max(\lVert w \rVert, \epsilon)$, w the parameters.

    The parameters are measured as the updates are, in the same groups.

    Attributes:
      share: the share of the parameters' norm, λ.
      floor: the norm of which groups with smaller parameters get their share, ε.
    """

    share: Any  # a limit of any kind, taken as a threshold
    floor: ArrayLike

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        take_thresholds(self, "share")
        check_limit(self.floor, "floor")

    def init(self, groups: GroupShapes) -> Any:
        """See `Threshold.init`."""
        return self.share.init(groups)

    def update(self, seen: Observation, state: Any) -> tuple[PerGroup, Any]:
        """See `Threshold.update`."""
        share, state = self.share.update(seen, state)

        def limit(norm: Number, share: Number) -> Number:
            share, floor = share.astype(norm.dtype), jnp.asarray(self.floor, norm.dtype)
            unlimited = share == jnp.inf  # of nothing, too
            product = jnp.where(unlimited, 1, share) * jnp.maximum(norm, floor)
            return jnp.where(unlimited, jnp.inf, product)

        return map_groups(limit, seen.measure_params(), share), state
