"""Every strategy of the library; a later one joins the matrix by one entry here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import oracles
import pytest

import optaxclip
from optaxclip import norms, responses


@dataclass(frozen=True, eq=False)
class Strategy:
    """A strategy, its oracle, and what the matrix must know of it."""

    name: str
    factory: Callable[..., Any]
    limit: str  # the name of its limit
    sizes: Callable[..., Any]  # oracle: how big the group of each number is
    limits: Callable[..., Any] = oracles.as_given  # oracle: how big it may be
    respond: Callable[..., Any] = oracles.shrink  # oracle: what then happens
    options: Mapping[str, Any] = field(default_factory=dict)
    soft: bool = False  # alters values below the limit
    clamps: bool = False  # maps inf to the limit
    needs_params: bool = False

    def make(self, limit, **options):
        """The transformation with this limit."""
        return self.factory(**{self.limit: limit}, **self.options, **options)

    def oracle(self, updates, params, limit):
        """The updates as they must come back, a list of float64 arrays."""
        with np.errstate(all="ignore"):
            return [
                self.respond(x, size, bound)
                for x, size, bound in zip(
                    updates,
                    self.sizes(updates),
                    self.limits(params, limit),
                    strict=True,
                )
            ]


def by_rank(tree):
    """Label every leaf by the number of its axes."""
    return jax.tree.map(lambda x: "matrices" if np.ndim(x) >= 2 else "others", tree)


CURVES = ("tanh", "arctan", "algebraic", "pseudo_huber")
ORDERS = {"l1": norms.l1, "linf": norms.linf, "p3": norms.p_norm(3)}

STRATEGIES = [
    Strategy(
        "clip_value",
        optaxclip.clip_value,
        "max_value",
        oracles.element,
        clamps=True,
    ),
    Strategy(
        "clip_scaled_value",
        optaxclip.clip_scaled_value,
        "scale",
        oracles.element,
        oracles.per_root_size,
        clamps=True,
    ),
    Strategy(
        "clip_global_norm",
        optaxclip.clip_global_norm,
        "max_norm",
        oracles.global_norm(2),
    ),
    *[
        Strategy(
            f"clip_global_norm_{order}",
            optaxclip.clip_global_norm,
            "max_norm",
            oracles.global_norm({"l1": 1, "linf": np.inf, "p3": 3}[order]),
            options={"ord": measure},
        )
        for order, measure in ORDERS.items()
    ],
    Strategy(
        "clip_tensor_norm",
        optaxclip.clip_tensor_norm,
        "max_norm",
        oracles.tensor_norm,
    ),
    Strategy(
        "clip_tensor_rms",
        optaxclip.clip_tensor_rms,
        "max_rms",
        oracles.tensor_rms,
    ),
    Strategy(
        "clip_unit_norm",
        optaxclip.clip_unit_norm,
        "max_norm",
        oracles.unit_norm,
    ),
    Strategy(
        "clip_group_norm",
        optaxclip.clip_group_norm,
        "max_norms",
        oracles.rank_norm,
        options={"labels": by_rank},
    ),
    *[
        Strategy(
            f"soft_clip_value_{curve}",
            optaxclip.soft_clip_value,
            "max_value",
            oracles.element,
            respond=oracles.soften(getattr(oracles, curve)),
            options={"curve": getattr(responses, curve)},
            soft=True,
        )
        for curve in CURVES
    ],
    Strategy(
        "soft_clip_global_norm",
        optaxclip.soft_clip_global_norm,
        "max_norm",
        oracles.global_norm(2),
        respond=oracles.soften(oracles.tanh),
        soft=True,
    ),
    Strategy(
        "agc",
        optaxclip.agc,
        "clipping",
        oracles.unit_norm,
        oracles.share_of_unit,
        needs_params=True,
    ),
]


def named(strategy):
    """The name of a strategy, for pytest's ids."""
    return strategy.name


every_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=named)
every_hard_strategy = pytest.mark.parametrize(
    "strategy", [s for s in STRATEGIES if not s.soft], ids=named
)
