"""How far one example can move a clipped gradient."""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from optaxclip.responses import Response
from optaxclip.responses.scaling import Scaling


class NeighboringRelation(enum.Enum):
    """How two neighboring data sets differ, by the names of dp-accounting.

    Attributes:
      ADD_OR_REMOVE_ONE: one of them has an example more.
      REPLACE_ONE: one example is another one.
      REPLACE_SPECIAL: one example is a special one, whose gradient is zero.
    """

    ADD_OR_REMOVE_ONE = enum.auto()
    REPLACE_ONE = enum.auto()
    REPLACE_SPECIAL = enum.auto()


@dataclass(frozen=True, eq=False)
class ClippedGradient:
    """A function for the gradient of a batch that knows its sensitivity.

    It is called with the arguments of the loss and optionally ``mask``.

    Attributes:
      function: what computes the gradient.
      max_norm: the limits.
      response: what happens to a gradient above its limit.
      denominator: the divisor of the sum; None for the number of examples.
    """

    function: Callable[..., Any]
    max_norm: PyTree[ArrayLike]
    response: Response
    denominator: ArrayLike | None

    def __call__(self, *args: Any, mask: Any = None, **batch: Any) -> Any:
        """Compute the gradient."""
        return self.function(*args, mask=mask, **batch)

    @property
    def __name__(self) -> str:
        """Name the program that ``jax.jit`` makes of it."""
        return self.function.__name__

    def sensitivity(
        self, relation: Any = NeighboringRelation.ADD_OR_REMOVE_ONE
    ) -> ArrayLike:
        r"""Return the largest norm of the difference that one example makes.

        It is $s = \sqrt{\sum_l c_l^2} / d$ for the limits $c_l$ and the denominator d,
        and $2s$ where an example is replaced by any other, up to rounding. Without a
        denominator d is 1: the mean over the examples that count moves so far where
        there is only one.

        This holds for the gradient; what is returned for each example, such as losses
        and norms, has no such bound.

        Args:
          relation: a `NeighboringRelation`, or the one of dp-accounting.

        Returns:
          A float; an array if a limit or the denominator is traced.

        Raises:
          TypeError: if `relation` is no such thing.
          ValueError: if the response is not one of `optaxclip.responses`, whose results
            stay within the limit.

        Examples:
          >>> loss = lambda w, x: jnp.dot(w, x)
          >>> limits = {"body": 3.0, "head": 4.0}
          >>> gradient = optaxclip.clipped_grad(loss, limits, denominator=10)
          >>> gradient.sensitivity(optaxclip.NeighboringRelation.REPLACE_ONE)
          1.0
        """
        name = getattr(relation, "name", None)
        if name not in NeighboringRelation.__members__:
            raise TypeError(
                "relation must be one of optaxclip.NeighboringRelation, or of "
                f"dp_accounting's, not {relation!r}."
            )
        if not isinstance(self.response, Scaling):
            raise ValueError(
                "response must be one of optaxclip.responses for a sensitivity, not "
                f"{self.response!r}; derive yours from what it returns."
            )
        times = 2 if name == NeighboringRelation.REPLACE_ONE.name else 1
        divisor = 1 if self.denominator is None else self.denominator
        return _norm_of(jax.tree.leaves(self.max_norm)) * times / divisor


def _norm_of(limits: list[Any]) -> Any:
    """Return the norm of limits, exactly as long as none is traced."""
    try:
        return math.hypot(*(float(c) for limit in limits for c in np.ravel(limit)))
    except jax.errors.TracerArrayConversionError:
        each = [jnp.ravel(jnp.maximum(limit, 0)) for limit in limits]
        return jnp.linalg.norm(jnp.concatenate(each))
