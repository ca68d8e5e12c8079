"""The reports of many steps, in order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optaxclip.sentences import shown
from optaxclip.tuning.columns import (
    Columns,
    check_entry,
    fields_of,
    groups_of,
    later,
    names_in,
)
from optaxclip.tuning.lines import read_lines, write_lines
from optaxclip.tuning.totals import Totals, summarize

_LOT = 100  # steps that are fetched from the device at once


@jax.jit
def _copied(report: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Copy a report, so that the state it is part of may be donated."""
    return jax.tree.map(jnp.copy, report)


class History:
    """The reports of many steps, as columns with one entry a step.

    It collects what `optaxclip.report` returns, with vectors or, with ``names=params``,
    with a scalar for each group. Other numbers, such as a loss, may be added under keys
    without a slash. `print` shows its `summary`.

    A step that is appended costs one call to the device, which copies the report, and
    no wait: numbers are fetched a hundred steps at a time, a hundred steps late, or
    when they are asked for. Under ``jax.jit`` or in ``jax.lax.scan``, return the report
    instead, and use `from_scan`.

    Examples:
      >>> optimizer = optax.chain(optaxclip.clip_global_norm(1.0), optax.sgd(0.1))
      >>> state = optimizer.init(jnp.zeros(2))
      >>> history = optaxclip.tuning.History()
      >>> for size in 0.5, 0.25, jnp.nan, 4.0:
      ...     _, state = optimizer.update(jnp.array([size, 0.0]), state)
      ...     history.append(optaxclip.report(state))
      >>> history["clip_global_norm"]["pre_norm"]
      array([0.5 , 0.25,  nan, 4.  ], dtype=float32)
      >>> print(history)
      name              steps  clipped  skipped  not finite  P50   P90   P99  limit
      clip_global_norm      4    50.0%        -           1  0.5  3.3  3.93      1
    """

    def __init__(self) -> None:
        self._blocks: list[Columns] = []  # on the host, several steps each
        self._late: list[dict[str, Any]] = []  # perhaps still being computed
        self._shapes: dict[str, tuple[int, ...]] | None = None

    def append(self, report: Mapping[str, Any]) -> None:
        """Add the report of one step.

        Args:
          report: what `optaxclip.report` returned, outside of ``jax.jit``.

        Raises:
          TypeError: if the report is not a dict of numbers and arrays under strings,
            or is traced.
          ValueError: if the report is empty, or not like those before.
        """
        self._check(report, np.shape)
        on_device = {k: v for k, v in report.items() if isinstance(v, jax.Array)}
        elsewhere = {k: np.array(v) for k, v in report.items() if k not in on_device}
        self._late.append(elsewhere | (_copied(on_device) if on_device else {}))
        if len(self._late) >= 2 * _LOT:
            self._fetch(_LOT)

    @classmethod
    def from_scan(cls, stacked: Mapping[str, Any]) -> History:
        """Collect the reports of a ``jax.lax.scan``.

        Args:
          stacked: a report whose arrays have a leading axis of steps.

        Raises:
          TypeError: if the report is not a dict of arrays under strings, or is traced.
          ValueError: if an array lacks the axis, or has another number of steps.

        Examples:
          >>> clip = optaxclip.clip_global_norm(1.0)
          >>> def step(state, updates):
          ...     updates, state = clip.update(updates, state)
          ...     return state, optaxclip.report(state)
          >>> _, reports = jax.lax.scan(step, clip.init(jnp.zeros(2)), jnp.ones((3, 2)))
          >>> len(optaxclip.tuning.History.from_scan(reports))
          3
        """
        history = cls()
        history._check(stacked, lambda value: np.shape(value)[1:])
        fetched = jax.device_get(dict(stacked))
        block = {key: np.asarray(fetched[key]) for key in stacked}
        lengths = {x.shape[0] if x.ndim else None for x in block.values()}
        if len(lengths) > 1 or None in lengths:
            raise ValueError(
                "stacked must have a leading axis of steps, of the same length in all "
                "arrays; return the report from the body of the scan."
            )
        history._blocks.append(block)
        return history

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write one line of JSON for each step; infinity and NaN are written as text.

        Args:
          path: the file, which is overwritten.
        """
        write_lines(self.columns, Path(path))

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike[str]) -> History:
        """Read what `to_jsonl` wrote; numbers are as they were, in 64 bits.

        Args:
          path: the file.

        Raises:
          ValueError: if a line is not a JSON object of numbers, or is not like those
            before.

        Examples:
          >>> import tempfile
          >>> reports = {"clip/pre_norm": jnp.array([1.0, jnp.inf])}
          >>> history = optaxclip.tuning.History.from_scan(reports)
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     history.to_jsonl(f"{folder}/run.jsonl")
          ...     read = optaxclip.tuning.History.from_jsonl(f"{folder}/run.jsonl")
          >>> read["clip"]["pre_norm"]
          array([ 1., inf])
        """
        history = cls()
        for number, report in enumerate(read_lines(Path(path)), 1):
            try:
                history.append(report)
            except ValueError as error:
                raise ValueError(f"line {number} of {path}: {error}") from error
        return history

    def _check(self, report: Any, shape_of: Any) -> None:
        if not isinstance(report, Mapping):
            raise TypeError(
                f"report must be what optaxclip.report returned, not {shown(report)}."
            )
        for key, value in report.items():
            check_entry(key, value)
        shapes = {key: shape_of(value) for key, value in report.items()}
        if not shapes:
            raise ValueError(
                "report is empty; put a clipper, a guard or optaxclip.watch into the "
                "optimizer."
            )
        if shapes != (self._shapes or shapes):
            both = self._shapes.items() ^ shapes.items() if self._shapes else ()
            raise ValueError(
                f"report must have the keys and shapes of those before, and differs at "
                f"{min(key for key, _ in both)}; begin another History."
            )
        self._shapes = shapes

    def _fetch(self, steps: int) -> None:
        """Move the oldest steps to the host."""
        lot, self._late = self._late[:steps], self._late[steps:]
        if lot:
            lot = jax.device_get(lot)
            # JAX sorts the keys of a dict; the order is that of the chain.
            keys = self._shapes or ()
            self._blocks.append({key: np.stack([x[key] for x in lot]) for key in keys})

    @property
    def columns(self) -> Columns:
        """Every key of the reports, with an array whose leading axis is of steps."""
        self._fetch(len(self._late))
        if len(self._blocks) > 1:
            keys = self._blocks[0]
            joined = {k: np.concatenate([x[k] for x in self._blocks]) for k in keys}
            self._blocks = [joined]
        return dict(self._blocks[0]) if self._blocks else {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the clippers and guards, as in `optaxclip.report`."""
        return names_in(self.columns)

    def __getitem__(self, name: str) -> Columns:
        """Return the fields of a clipper or guard: steps, or steps x groups."""
        self._check_name(name)
        return fields_of(self.columns, name)

    def groups(self, name: str) -> tuple[str, ...]:
        """Return the names of the groups: paths or labels if the reports had `names`.

        Without them they are numbered; a single group is called "".
        """
        self._check_name(name)
        return groups_of(self.columns, name)

    def _check_name(self, name: str) -> None:
        if name not in self.names:
            known = ", ".join(self.names) or "none"
            raise KeyError(f"name must be one of the history ({known}), not {name!r}.")

    def summary(self, since: int = 0) -> Totals:
        """Sum up the steps from `since` on, counted from 0.

        Args:
          since: the number of steps to leave out, such as those of a warm-up.

        Returns:
          For each name, and each of its groups, the share of clipped and of skipped
          steps, quantiles of the norms, the number of steps that were not finite, and
          the median limit; `print` shows a table.

        Raises:
          TypeError: if `since` is not an int.
          ValueError: if there is no step from `since` on.
        """
        return summarize(later(self.columns, since))

    def __len__(self) -> int:
        done = sum(len(next(iter(block.values()))) for block in self._blocks)
        return done + len(self._late)

    def __str__(self) -> str:
        return str(self.summary())

    def __repr__(self) -> str:
        return f"History of {len(self)} steps of {', '.join(self.names) or 'nothing'}"
