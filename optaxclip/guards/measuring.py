"""Norms of a gradient that an optimizer inside will measure in its own way again."""

from __future__ import annotations

import jax.numpy as jnp

from optaxclip.norms import Norm
from optaxclip.norms.sums import PowerNorm
from optaxclip.numbers import Leaf, Number


class _SquaresApart(PowerNorm):
    """The L2 norm, by squares that XLA does not take for those of an optimizer inside.

    It would keep them in memory for both, which is a copy of the gradient.
    """

    def _power(self, x: Leaf) -> Number:
        return super()._power(x if jnp.iscomplexobj(x) else jnp.maximum(x, -x))


def apart(norm: Norm) -> Norm:
    """Give a norm that shares no squares with an optimizer inside."""
    if isinstance(norm, PowerNorm) and norm.order == 2:
        return _SquaresApart(2, norm.averaged)
    return norm
