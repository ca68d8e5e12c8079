"""Limits relative to the model: to its size, and to its parameters."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from optaxclip.groupings import each_group
from optaxclip.magnitudes import Number, PerGroup
from optaxclip.thresholds.checks import check_threshold
from optaxclip.thresholds.constant import check_limit
from optaxclip.thresholds.threshold import Groups, Observation, Threshold


@dataclass(frozen=True)
class PerRootSize:
    r"""The limit $c / \sqrt n$, n being how many numbers the whole tree has.

    Elements at this limit all together have the L2 norm c.

    Attributes:
      scale: c.
    """

    scale: Threshold

    def __post_init__(self) -> None:
        """Check what is known now."""
        check_threshold(self.scale, "scale")

    def init(self, groups: Groups) -> Any:
        """See `Threshold.init`."""
        return self.scale.init(groups)

    def update(self, seen: Observation, state: Any) -> tuple[PerGroup, Any]:
        """See `Threshold.update`."""
        scale, state = self.scale.update(seen, state)
        root = max(seen.number, 1) ** 0.5
        return each_group(lambda c: c / root, scale), state


@dataclass(frozen=True)
class Share:
    r"""The limit $\lambda \max(\lVert w \rVert, \epsilon)$, w the parameters.

    The parameters are measured as the updates are, in the same groups.

    Attributes:
      share: the share of the parameters' norm, λ.
      floor: the norm of which groups with smaller parameters get their share, ε.
    """

    share: Threshold
    floor: ArrayLike

    def __post_init__(self) -> None:
        """Check what is known now."""
        check_threshold(self.share, "share")
        check_limit(self.floor, "floor")

    def init(self, groups: Groups) -> Any:
        """See `Threshold.init`."""
        return self.share.init(groups)

    def update(self, seen: Observation, state: Any) -> tuple[PerGroup, Any]:
        """See `Threshold.update`."""
        share, state = self.share.update(seen, state)

        def limit(share: Number, norm: Number) -> Number:
            share, floor = share.astype(norm.dtype), jnp.asarray(self.floor, norm.dtype)
            unlimited = share == jnp.inf  # of nothing, too
            product = jnp.where(unlimited, 1, share) * jnp.maximum(norm, floor)
            return jnp.where(unlimited, jnp.inf, product)

        return each_group(limit, share, seen.measure_params()), state
