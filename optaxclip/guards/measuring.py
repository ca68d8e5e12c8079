"""Norms for a gradient that the wrapped optimizer will measure again."""

from __future__ import annotations

import jax.numpy as jnp

from optaxclip.norms import Norm
from optaxclip.norms.sums import PowerNorm
from optaxclip.numbers import Leaf, Number


class _SquaresApart(PowerNorm):
    """The L2 norm, with squares that XLA does not share with the wrapped optimizer.

    XLA would keep shared squares in memory, as much as a copy of the gradient.
    """

    def _power(self, x: Leaf) -> Number:
        return super()._power(x if jnp.iscomplexobj(x) else jnp.maximum(x, -x))


def apart(norm: Norm) -> Norm:
    """Return a norm that shares no squares with the wrapped optimizer."""
    if isinstance(norm, PowerNorm) and norm.order == 2:
        return _SquaresApart(2, norm.averaged)
    return norm
