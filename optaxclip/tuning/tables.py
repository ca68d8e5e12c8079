"""Numbers in columns, for a terminal."""

import math
from collections.abc import Sequence


def number(value: float) -> str:
    """Write a number with three digits; nothing is known of NaN."""
    return "-" if math.isnan(value) else f"{value:.3g}"


def percent(share: float) -> str:
    """Write a share in percent."""
    return "-" if math.isnan(share) else f"{100 * share:.1f}%"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align the first column at the left and all others at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [x.rjust(w) for x, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
