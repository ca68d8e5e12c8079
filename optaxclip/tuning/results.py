"""The scores of training runs over a grid of limits, and what they say."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from optaxclip.tuning.tables import number, percent, table


@dataclass(frozen=True, eq=False)
class Sweep:
    """The scores of a `sweep`, the lower the better; `print` shows them as a table.

    Attributes:
      limits: the limits, in ascending order, each once.
      seeds: the seeds.
      scores: limits x seeds; those that are not finite are of runs that diverged.
    """

    limits: np.ndarray
    seeds: np.ndarray
    scores: np.ndarray

    @functools.cached_property
    def diverged(self) -> np.ndarray:
        """The share of runs that diverged, for each limit."""
        return np.mean(~np.isfinite(self.scores), axis=1)

    @functools.cached_property
    def quartiles(self) -> np.ndarray:
        """The first quartile, the median and the third quartile, limits x 3.

        A run that diverged is worse than all others, so that a number here is infinite
        where it is that of such runs.
        """
        ranked = np.sort(
            np.where(np.isfinite(self.scores), self.scores, np.inf), axis=1
        )
        places = np.array([0.25, 0.5, 0.75]) * (ranked.shape[1] - 1)
        low, high = (ranked[:, f(places).astype(int)] for f in (np.floor, np.ceil))
        with np.errstate(invalid="ignore"):  # infinity times a weight of zero
            between = low + (high - low) * (places % 1)
        return np.where(low == high, low, between)

    @property
    def medians(self) -> np.ndarray:
        """The median score of each limit; infinite where half of the runs diverged."""
        return self.quartiles[:, 1]

    @property
    def best(self) -> float:
        """The limit with the lowest median, and the loosest of several.

        Raises:
          ValueError: if half of the runs or more diverged with every limit.
        """
        if not np.isfinite(self.medians).any():
            raise ValueError(
                "no limit is best, since half of the runs or more diverged with each; "
                "try lower limits, or a lower learning rate."
            )
        return float(self.limits[self._best])

    @property
    def _best(self) -> int:
        (lowest,) = np.nonzero(self.medians == self.medians.min())
        return int(lowest[-1])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to be careful about, one sentence each; `print` shows them, too.

        They are not issued by Python's `warnings`, which may be set to raise, and would
        then lose the scores.
        """
        if not np.isfinite(self.medians).any():
            return ("Half of the runs or more diverged with every limit.",)
        said = []
        best, last = self._best, len(self.limits) - 1
        if last and best == 0:
            said.append("The best limit is the lowest of the grid: try lower ones.")
        elif last and best == last and np.isinf(self.best):
            said.append("No limit is as good as any: clipping does not help here.")
        elif last and best == last:
            said.append(
                "The best limit is the highest of the grid: try higher ones, and "
                "infinity."
            )
        if self.diverged[best]:
            share = percent(self.diverged[best])
            said.append(f"With the best limit {share} of the runs diverged.")
        return tuple(said)

    def __str__(self) -> str:
        rows = [["limit", "median", "quartiles", "diverged"]]
        known = np.isfinite(self.medians).any()
        for i, limit in enumerate(self.limits):
            low, median, high = map(number, self.quartiles[i])
            diverged = percent(self.diverged[i])
            cells = [number(limit), median, f"{low} to {high}", diverged]
            rows.append([*cells, "<- best" if known and i == self._best else ""])
        rows[0].append("")
        return "\n".join([table(rows), *self.warnings])
