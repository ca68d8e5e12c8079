"""Norms: how the size of a group is measured.

Norms are accumulated in float32 or wider, and are correct even where powers overflow or
underflow.
"""

import math
import sys
from typing import Any

from optaxclip.arguments import not_static
from optaxclip.norms.maxima import GeneralNorm, MaxNorm
from optaxclip.norms.norm import Magnitude, Norm
from optaxclip.norms.sums import PowerNorm
from optaxclip.roles import answers
from optaxclip.sentences import shown

__all__ = ["Magnitude", "Norm", "as_norm", "l1", "l2", "linf", "mean", "p_norm", "rms"]

l1: Norm = PowerNorm(1)
"""The sum of absolute values."""

l2: Norm = PowerNorm(2)
"""The Euclidean norm."""

linf: Norm = MaxNorm()
"""The largest absolute value."""

mean: Norm = PowerNorm(1, averaged=True)
"""The mean absolute value."""

rms: Norm = PowerNorm(2, averaged=True)
"""The root mean square."""


def p_norm(order: float) -> Norm:
    r"""Return the norm $(\sum_i |x_i|^p)^{1/p}$ of any order.

    Args:
      order: p >= 1; infinity gives the largest absolute value.

    Returns:
      The norm.

    Raises:
      TypeError: if `order` is not a number, or is traced.
      ValueError: if `order` is below 1 or NaN.

    Examples:
      >>> optaxclip.norms.p_norm(2) == optaxclip.norms.l2
      True

    Note:
      On a mesh, orders other than 1, 2 and infinity take two all-reduces where these
      take one: first for the largest number, then for the sum of powers of ratios to
      it. Fixed scales, which keep 1 and 2 from over- and underflow in one round, are
      too many for other orders: five for 3, and 140 for 100.
    """
    if not isinstance(order, int | float) or isinstance(order, bool):
        raise not_static("ord", "number", order)
    if order == math.inf:
        return linf
    if not 1 <= order <= sys.float_info.max:
        raise ValueError(
            f"ord must be at least 1 or infinity, not {shown(order)}; give 2 for the "
            "Euclidean norm."
        )
    return PowerNorm(int(order)) if order in (1, 2) else GeneralNorm(float(order))


def as_norm(ord: Any) -> Norm:
    """Convert an order to a norm; return norms unchanged."""
    return ord if answers(ord, Norm) else p_norm(ord)
