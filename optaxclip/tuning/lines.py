"""Histories as text: one JSON object a line, also where numbers are not finite."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from optaxclip.tuning.columns import Columns

# JSON has no number for these; any program reads a string, and Python's float too.
_NAMES = {math.inf: "Infinity", -math.inf: "-Infinity"}


def write_lines(columns: Columns, path: Path) -> None:
    """Write one line for each step."""
    steps = zip(*(column.tolist() for column in columns.values()), strict=True)
    with path.open("w", encoding="utf-8") as file:
        for step in steps:
            told = dict(zip(columns, map(_told, step), strict=True))
            file.write(json.dumps(told, allow_nan=False) + "\n")


def _told(value: Any) -> Any:
    if isinstance(value, list):
        return [_told(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return _NAMES.get(value, "NaN")
    return value


def read_lines(path: Path) -> Iterator[dict[str, np.ndarray]]:
    """Yield the report of each step.

    Raises:
      ValueError: if a line is not what `write_lines` writes.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                step = json.loads(line, parse_constant=_refuse)
                yield {key: _numbers(value) for key, value in step.items()}
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise ValueError(
                    f"path must be a file that to_jsonl wrote, but line {number} of "
                    f"{path} is not a JSON object of numbers; take that line out."
                ) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON.")


def _numbers(value: Any) -> np.ndarray:
    def number(part: Any) -> Any:
        if isinstance(part, list):
            return [number(inner) for inner in part]
        if isinstance(part, str):
            return {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}[part]
        return part

    array = np.asarray(number(value))
    if array.dtype.kind not in "biuf":
        raise TypeError("not a number")
    return array
