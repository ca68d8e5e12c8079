"""Every strategy of the library that clips gradients, by its name."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax

import optaxclip

Strategy = optax.GradientTransformationExtraArgs

DEFAULT_LIMIT = 0.5


def strategies() -> dict[str, Callable[..., Strategy]]:
    """Find every strategy that clips gradients."""
    rooms = ("optaxclip.strategies.", "optaxclip.spectral.")
    return {
        name: function
        for name, function in inspect.getmembers(optaxclip, inspect.isfunction)
        if function.__module__.startswith(rooms)
    }


def build(name: str, limit: float | None) -> tuple[Strategy, float]:
    """Build a strategy; without a limit, use the strategy's default, or else 0.5."""
    known = strategies()
    if name not in known:
        raise ValueError(f"There is no strategy {name}, only {', '.join(known)}.")
    parameters = inspect.signature(known[name]).parameters
    fixed = {"labels": kinds_of_layers, "min_factor": 0.1}
    given = {name: fixed[name] for name in parameters if name in fixed}
    own = next(p for p in parameters.values() if p.name not in given)
    default = DEFAULT_LIMIT if own.default is inspect.Parameter.empty else own.default
    limit = default if limit is None else limit
    return known[name](**{own.name: limit}, **given), limit


def kinds_of_layers(params: Any) -> Any:
    """Name each parameter's group, for a strategy that limits groups of them."""
    return jax.tree.map_with_path(
        lambda path, _: "conv" if "conv" in str(path) else "dense", params
    )
