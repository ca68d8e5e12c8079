"""Numbers as text: alone, in sentences and in columns."""

import math
from collections.abc import Sequence

import numpy as np

from optaxclip.tuning.limits import told_limit


def number(value: float) -> str:
    """Write a number with three digits; nothing is known of NaN."""
    return "-" if math.isnan(value) else f"{value:.3g}"


def percent(share: float) -> str:
    """Write a share in percent."""
    return "-" if math.isnan(share) else f"{100 * share:.1f}%"


def share_of(share: float, whole: str = "the steps") -> str:
    """Write a share as in ``12% of the steps``, or ``all the steps``."""
    if share in (0, 1):
        return f"all {whole}" if share else f"none of {whole}"
    return f"{100 * share:.3g}% of {whole}"


def typical(norms: np.ndarray) -> str:
    """Say what norms are typical, and which are rare."""
    finite = norms[np.isfinite(norms)]
    if not finite.size:
        return "no norm was finite"
    if not finite.any():
        return "all norms were 0"
    (half, most), (tenth, rare) = (told_limit(finite, share) for share in (0.5, 0.1))
    said = f"{share_of(most, 'the norms')} were above {half}"
    if tenth == half:
        return said
    return f"{said}, and {f'{100 * rare:.3g}%' if rare else 'none'} above {tenth}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align the first column at the left and all others at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [x.rjust(w) for x, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
