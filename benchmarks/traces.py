"""Compare the norms after clipping with those of released packages, step by step.

The packages are for PyTorch, from the registry: `zclip` by the authors of ZClip, and
`autoclip`, whose global quantile excludes the norm of the current step, so its
threshold is ours of the previous step. All norms here are finite, since zclip never
clips again after one that is not.

    python benchmarks/traces.py     # needs the extra `peers`
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from autoclip.torch import QuantileClip
from zclip import ZClip

import optaxclip
from optaxclip import thresholds

STEPS = 2000


def gradients() -> np.ndarray:
    rng = np.random.default_rng(0)
    level = np.exp(
        0.3 * rng.normal(size=(STEPS, 1)) + np.sin(np.arange(STEPS) / 200)[:, None]
    )
    spikes = np.where(rng.uniform(size=(STEPS, 1)) < 0.02, 30, 1)
    return (level * spikes * rng.normal(size=(STEPS, 20))).astype(np.float32)


def theirs(clip: Callable[[torch.nn.Parameter], None]) -> np.ndarray:
    """The norms of gradients after clipping by a PyTorch package."""
    parameter = torch.nn.Parameter(torch.zeros(20))
    norms = []
    for gradient in gradients():
        parameter.grad = torch.tensor(gradient)
        clip(parameter)
        norms.append(float(parameter.grad.double().norm()))
    return np.array(norms)


def ours(clip: optax.GradientTransformationExtraArgs) -> optaxclip.ClipReport:
    """Our reports for the same steps."""

    def step(state, gradient):
        _, state = clip.update(gradient, state)
        return state, state.report

    return jax.lax.scan(step, clip.init(jnp.zeros(20)), jnp.asarray(gradients()))[1]


def with_zclip(**options) -> Callable[[torch.nn.Parameter], None]:
    clip = ZClip(max_grad_norm=None, **options)

    def step(parameter: torch.nn.Parameter) -> None:
        model = torch.nn.Module()
        model.register_parameter("weight", parameter)
        clip.step(model)

    return step


def with_autoclip(quantile: float, window: int) -> Callable[[torch.nn.Parameter], None]:
    made = []

    def step(parameter: torch.nn.Parameter) -> None:
        if not made:
            made.append(
                QuantileClip([parameter], quantile, window, global_threshold=True)
            )
        made[0].step()

    return step


def print_row(
    title: str, their: np.ndarray, our: np.ndarray, before: np.ndarray
) -> None:
    clipped = np.mean(our < before * (1 - 1e-5))
    difference = np.max(np.abs(our / their - 1))
    print(f"  {title:28}{clipped:8.1%}{difference:20.1e}")


def main() -> None:
    print(f"{STEPS} steps: share of clipped ones, largest relative difference of norms")
    spikes = {
        "zclip, adaptive scaling": ({}, thresholds.adaptive_scaling),
        "zclip, mean": ({"clip_option": "mean"}, thresholds.to_mean),
        "zclip, percentile": ({"mode": "percentile"}, thresholds.to_percentile),
    }
    for title, (options, spike) in spikes.items():
        for skip in (False, True):
            their = theirs(with_zclip(skip_update_on_spike=skip, **options))
            found = ours(optaxclip.zclip(spike=spike, skip_update_on_spike=skip))
            row = np.asarray(found.post_norm), np.asarray(found.pre_norm)
            print_row(f"{title}{', skip' if skip else ''}", their, *row)
    for percentile, window in ((10.0, 1000), (90.0, 100)):
        their = theirs(with_autoclip(percentile / 100, window))
        found = ours(optaxclip.autoclip(percentile, window=window))
        before = np.asarray(found.pre_norm)
        limit = np.insert(np.asarray(found.limit), 0, np.inf)[:-1]
        row = np.minimum(before, limit), before
        print_row(f"autoclip, {percentile:.0f} of {window}", their, *row)


if __name__ == "__main__":
    main()
