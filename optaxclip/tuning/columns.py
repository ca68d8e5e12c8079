"""The columns of a history: which clipper, field and group each key stands for."""

from typing import Any, NamedTuple

import numpy as np
from jax.core import Tracer

from optaxclip.arguments import is_real, is_static_int
from optaxclip.reports import BoundState, CarryState, LengthState, SphereState
from optaxclip.sentences import shown

Columns = dict[str, np.ndarray]

# What a report is about, if not about limits of updates: fields that are always 1.
_KINDS = BoundState, SphereState, LengthState, CarryState
MARKS = tuple(kind.mark for kind in _KINDS)

# The fields of all reports. A name or a path may have slashes of its own.
_FIELDS = {
    *("pre_norm", "post_norm", "limit", "clipped_fraction", "clipped_steps"),
    *MARKS,
    *("skipped", "consecutive", "total", "zeroed"),
    *("norm", "norm_score", "value_score", "value_given"),
    *("update_norm", "param_norm", "ratio", "step"),
}


class Heading(NamedTuple):
    """What a key of a report stands for.

    Attributes:
      name: that of the clipper or guard.
      field: the field of its report.
      group: the path of a leaf or the label of a group; "" where there is none.
    """

    name: str
    field: str
    group: str


def heading_of(key: str) -> Heading:
    """Split a key such as ``clip_tensor_norm/pre_norm/body/kernel``."""
    parts = key.split("/")
    at = next((i for i, part in enumerate(parts) if i and part in _FIELDS), 1)
    return Heading(
        "/".join(parts[:at]), "/".join(parts[at : at + 1]), "/".join(parts[at + 1 :])
    )


def check_entry(key: Any, value: Any) -> None:
    """Reject what no column can be made of."""
    if not isinstance(key, str):
        raise TypeError(
            f"report must have strings as keys, not {shown(key)}; name each number, "
            "such as 'loss'."
        )
    if isinstance(value, Tracer):
        raise TypeError(
            "report must hold numbers that are known, and is traced; return it from "
            "the transformed function, and append it outside."
        )
    is_flag = getattr(value, "dtype", None) == np.dtype(bool)
    if not (is_flag or isinstance(value, bool) or is_real(value)):
        raise TypeError(
            f"report must hold numbers and arrays, not {shown(value)} at {key}."
        )


def later(columns: Columns, since: Any) -> Columns:
    """Return the steps from `since` on."""
    if not is_static_int(since):
        raise TypeError(
            f"since must be an int, not {shown(since)}; give the number of steps to "
            "leave out."
        )
    steps = len(next(iter(columns.values()), ()))
    if not 0 <= since < max(1, steps):
        raise ValueError(
            f"since must be at least 0 and below the number of steps, {steps}, not "
            f"{since}."
        )
    return {key: column[since:] for key, column in columns.items()}


def names_in(columns: Columns) -> tuple[str, ...]:
    """Return the names of the clippers and guards, in their order."""
    headings = map(heading_of, columns)
    return tuple(dict.fromkeys(heading.name for heading in headings if heading.field))


def fields_of(columns: Columns, name: str) -> Columns:
    """Return the fields of one clipper; those of single groups are put side by side."""
    wholes: Columns = {}
    parts: dict[str, list[np.ndarray]] = {}
    for key, column in columns.items():
        heading = heading_of(key)
        if heading.name != name or not heading.field:
            continue
        if heading.group in ("", "each"):
            wholes["/".join(filter(None, heading[1:]))] = column
        else:
            parts.setdefault(heading.field, []).append(column)
    stacked = {
        f"{field}/each" if field in wholes else field: np.stack(several, axis=-1)
        for field, several in parts.items()
    }
    return wholes | stacked


def groups_of(columns: Columns, name: str) -> tuple[str, ...]:
    """Return the names of a clipper's groups: paths, labels or, unnamed, numbers."""
    headings = [heading for heading in map(heading_of, columns) if heading.name == name]
    named = dict.fromkeys(p.group for p in headings if p.group not in ("", "each"))
    if named:
        return tuple(named)
    sizes = [np.prod(x.shape[1:], dtype=int) for x in fields_of(columns, name).values()]
    size = max(sizes, default=1)
    return tuple(map(str, range(size))) if size > 1 else ("",)
