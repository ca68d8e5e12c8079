"""Limits relative to the size of the model, to its parameters, or to the group."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optaxclip.arguments import check_nonnegative
from optaxclip.groups import PerGroup, map_groups
from optaxclip.numbers import Number
from optaxclip.thresholds.constant import take_thresholds
from optaxclip.thresholds.threshold import GroupShapes, Observation


@dataclass(frozen=True)
class PerRootSize:
    r"""The limit $c / \sqrt n$, where n is the number of elements of the whole tree.

    If all elements are at this limit, their L2 norm is c.

    Attributes:
      scale: c.
    """

    scale: Any  # Any limit; converted to a threshold.

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
    r"""The limit $\lambda \max(\lVert w \rVert, \epsilon)$ for parameters w.

    The parameters are measured like the updates, in the same groups.

    Attributes:
      share: the ratio λ of the limit to the parameters' norm.
      floor: the smallest parameter norm assumed, ε.
    """

    share: Any  # Any limit; converted to a threshold.
    floor: ArrayLike

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        take_thresholds(self, "share")
        check_nonnegative(self.floor, "floor")

    def init(self, groups: GroupShapes) -> Any:
        """See `Threshold.init`."""
        return self.share.init(groups)

    def update(self, seen: Observation, state: Any) -> tuple[PerGroup, Any]:
        """See `Threshold.update`."""
        share, state = self.share.update(seen, state)

        def limit(norm: Number, share: Number) -> Number:
            share, floor = share.astype(norm.dtype), jnp.asarray(self.floor, norm.dtype)
            unlimited = share == jnp.inf  # Even if the norm is 0.
            product = jnp.where(unlimited, 1, share) * jnp.maximum(norm, floor)
            return jnp.where(unlimited, jnp.inf, product)

        return map_groups(limit, seen.measure_params(), share), state


@dataclass(frozen=True)
class OwnShare:
    r"""The limit $\delta m$, where m is the group's own magnitude.

    With this limit, no group shrinks by a factor below δ:
    ``Maximum(c, OwnShare(delta))`` is a limit c that never shrinks a group further.
    With share 1, it is the group's own magnitude, to combine with other limits:
    ``Minimum(high, Maximum(low, OwnShare(1.0)))`` and the response `normalize` keep
    groups in a band. If the magnitude is not finite, the limit is 0.

    Attributes:
      share: the share δ >= 0.
    """

    share: ArrayLike

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        check_nonnegative(self.share, "share")

    def init(self, groups: GroupShapes) -> tuple[()]:
        """See `Threshold.init`."""
        return ()

    def update(self, seen: Observation, state: tuple[()]) -> tuple[PerGroup, tuple[()]]:
        """See `Threshold.update`."""

        def limit(value: Number, scale: Number) -> Number:
            share = jnp.asarray(self.share).astype(value.dtype)
            # A magnitude may overflow while its share does not. A limit that overflows
            # is capped, since an infinite one would be none.
            own = jnp.minimum(share * value / scale, jnp.finfo(value.dtype).max)
            return jnp.where(value < jnp.inf, own, 0)

        return map_groups(limit, *seen.size), state
