"""The strategies, each with its default and five limits to try."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

import optaxclip

Transformation = optax.GradientTransformation
Limit = jax.Array
# Makes a whole optimizer from the limit, a direction and a learning rate or schedule.
Build = Callable[[Limit, Transformation, Callable[[Any], Any]], Transformation]


@dataclass(frozen=True)
class Strategy:
    """A way to clip.

    Attributes:
      build: makes the optimizer.
      limit: what the limit is.
      default: the library's default, or else the number that is in most recipes.
      trials: the limits to try.
      per_example: whether the limit is on each example's gradient.
      only: the tasks that it is for; all by default.
      never: the tasks in which it would do nothing.
    """

    build: Build
    limit: str = "none"
    default: float | None = None
    trials: tuple[float, ...] = ()
    per_example: bool = False
    only: tuple[str, ...] | None = None
    never: tuple[str, ...] = ()


def plain(direction: Transformation, rate: Any) -> Transformation:
    return optax.chain(direction, optax.scale_by_learning_rate(rate))


def first(clip: Callable[[Limit], Transformation]) -> Build:
    """Clip the gradient, before anything else sees it."""
    return lambda limit, direction, rate: optax.chain(
        clip(limit), plain(direction, rate)
    )


def last(clip: Callable[[Limit], Transformation]) -> Build:
    """Clip the step itself, after the learning rate."""
    return lambda limit, direction, rate: optax.chain(
        plain(direction, rate), clip(limit)
    )


def around(guard: Callable[[Transformation, Limit], Transformation]) -> Build:
    """Wrap the whole optimizer."""
    return lambda limit, direction, rate: guard(plain(direction, rate), limit)


def by_kind(tree: Any) -> Any:
    """Label each leaf by its own name, which says its kind."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.tree_util.keystr(path[-1:]), tree
    )


def spheres(limit: Limit, direction: Transformation, rate: Any) -> Transformation:
    """Matrices on the spheres of their norms, and the rest as without clipping."""
    del limit
    return optax.partition(
        {
            "matrix": optax.chain(direction, optaxclip.hyperball(rate)),
            "other": plain(direction, rate),
        },
        lambda tree: jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "other", tree),
    )


TENFOLD = (0.01, 0.1, 1.0, 10.0, 100.0)


def tenfold(default: float) -> tuple[float, ...]:
    return tuple(default * factor for factor in TENFOLD)


def by_norm(build: Build, limit: str = "norm", **others: Any) -> Strategy:
    """A strategy whose limit is a norm; most recipes say 1."""
    return Strategy(build, limit, 1.0, trials=TENFOLD, **others)


def at(limit: float) -> Strategy:
    """The norm of the whole gradient at a limit of which CIFAR-10 shall tell."""
    clip = first(optaxclip.clip_global_norm)
    return Strategy(clip, "norm", limit, only=("cifar10",))


def of_weights(
    clip: Callable[[Limit], Transformation], limit: str, most: float
) -> Strategy:
    """A strategy for the critic's weights, with the bound that most recipes have."""
    return Strategy(last(clip), limit, most, trials=tenfold(most), only=("wgan",))


STRATEGIES: dict[str, Strategy] = {
    "none": Strategy(lambda limit, direction, rate: plain(direction, rate)),
    "global": by_norm(first(optaxclip.clip_global_norm)),
    "global_0.5": at(0.5),
    "global_5": at(5.0),
    "tensor": by_norm(first(optaxclip.clip_tensor_norm), "norm of a tensor"),
    "unit": by_norm(first(optaxclip.clip_unit_norm), "norm of a unit"),
    "value": by_norm(first(optaxclip.clip_value), "size of a number"),
    "soft": by_norm(first(optaxclip.soft_clip_global_norm)),
    "error_feedback": by_norm(
        first(lambda c: optaxclip.error_feedback(optaxclip.clip_global_norm(c)))
    ),
    "per_example": by_norm(
        lambda limit, direction, rate: plain(direction, rate),
        "norm of an example's gradient",
        per_example=True,
    ),
    "agc": Strategy(
        first(optaxclip.agc), "share of the unit's norm", 0.01, trials=tenfold(0.01)
    ),
    "autoclip": Strategy(
        first(optaxclip.autoclip), "percentile", 10.0, trials=(1, 10, 50, 75, 90)
    ),
    "quantile": Strategy(
        first(optaxclip.quantile_clip),
        "quantile",
        0.5,
        trials=(0.1, 0.5, 0.75, 0.9, 0.99),
    ),
    "zclip": Strategy(
        first(optaxclip.zclip), "z-score", 2.5, trials=(1.0, 1.5, 2.5, 4.0, 6.0)
    ),
    "adagc": Strategy(
        first(lambda factor: optaxclip.adagc(factor=factor)),
        "multiple of the tensor's average",
        1.05,
        trials=(1.0, 1.05, 1.2, 1.5, 2.5),
    ),
    "aggc": Strategy(
        first(lambda high: optaxclip.aggc(by_kind, high=high, low=1 / high)),
        "multiple of the group's average",
        2.0,
        trials=(1.2, 1.5, 2.0, 4.0, 8.0),
    ),
    "spam": Strategy(
        first(optaxclip.spam_clip),
        "ratio of squares",
        5000.0,
        trials=(5.0, 50.0, 500.0, 5000.0, 50000.0),
    ),
    "adagn": Strategy(first(lambda _: optaxclip.adagn())),
    "clippy": Strategy(
        last(lambda c: optaxclip.clippy(max_absolute=c)),
        "step of a parameter that is zero",
        0.01,
        trials=tenfold(0.01),
    ),
    "trust_ratio": Strategy(
        last(optaxclip.clip_trust_ratio),
        "share of the tensor's norm",
        trials=(1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    ),
    "spectral": by_norm(first(optaxclip.clip_singular_values), "singular value"),
    "hyperball": Strategy(spheres, never=("regression",)),
    "skip_nonfinite": Strategy(
        around(lambda inner, _: optaxclip.skip_nonfinite(inner))
    ),
    "skip_spikes": Strategy(
        around(lambda inner, sigmas: optaxclip.skip_spikes(inner, sigmas=sigmas)),
        "standard deviations",
        6.0,
        trials=(2.0, 3.0, 4.5, 6.0, 9.0),
    ),
    "skip_above": Strategy(
        around(optaxclip.skip_above), "norm", trials=(0.1, 1.0, 10.0, 100.0, 1000.0)
    ),
    "weights": of_weights(optaxclip.clip_weights, "size of a weight", 0.01),
    "weight_spectral": of_weights(
        optaxclip.clip_weight_spectral_norm, "spectral norm", 1.0
    ),
}
