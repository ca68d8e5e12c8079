"""What adaptive strategies add to a training step, compared with `clip_global_norm`.

As in overhead.py, every variant is timed once per round, in random order, and a ratio
is the median over rounds of the ratio of two times from the same round.

    python benchmarks/memory.py               # about 5 minutes on 2 cores
    python benchmarks/memory.py --part late   # or: run
"""

import argparse
import time
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import optax
from overhead import ratio, run_times, step_of, transformer

from optaxclip import (
    adagc,
    aggc,
    autoclip,
    clip_global_norm,
    clip_tensor_norm,
    greedy_clip,
    quantile_clip,
    zclip,
)

BASE = "clip_global_norm"


def by_kind(params: Any) -> Any:
    """Label each leaf by its name without the layer number."""
    return {name: name.rstrip("0123456789") for name in params}


def with_loss(clip: optax.GradientTransformationExtraArgs) -> Any:
    """Pass a loss to a strategy that needs one."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return clip.update(updates, state, params, value=jnp.float32(1))

    return optax.GradientTransformation(clip.init, update)


def print_run_times(rounds: int) -> None:
    variants = {
        "none": optax.identity(),
        "optax": optax.clip_by_global_norm(1.0),
        BASE: clip_global_norm(1.0),
        "clip_tensor_norm": clip_tensor_norm(1.0),
        "autoclip": autoclip(),
        "autoclip, 10,000": autoclip(window=10_000),
        "zclip": zclip(max_norm=1.0),
        "quantile_clip": quantile_clip(),
        "greedy_clip": with_loss(greedy_clip(1.0)),
        "aggc": aggc(by_kind),
        "adagc": adagc(),
    }
    times = run_times(variants, transformer(), rounds)
    print("\nA jitted Adam step, 30 M parameters: milliseconds, and over the base")
    for name, seconds in times.items():
        against = ratio(times, name, BASE)
        print(f"  {name:18}{median(seconds) * 1e3:9.2f}  {against:6.3f}", flush=True)


def print_late_steps(rounds: int) -> None:
    """Compare a late step with an early one, from states reached by real steps."""
    grads = {"w": jax.random.normal(jax.random.key(0), (256, 256))}
    step, init = step_of(autoclip())
    params = jax.tree.map(jnp.zeros_like, grads)
    clip = autoclip()

    @jax.jit
    def advance(state: Any, steps: int) -> Any:
        def one(_: int, state: Any) -> Any:
            return clip.update({"w": jnp.ones((1, 1))}, state)[1]

        return jax.lax.fori_loop(0, steps, one, state)

    carries = {}
    for at in (100, 100_000):
        adam = init(params)
        state = advance(clip.init(grads), at), *adam[1:]
        carries[at] = step(jax.tree.map(jnp.copy, params), state, grads)
    times: dict[int, list[float]] = {at: [] for at in carries}
    for _ in range(rounds):
        for at, carry in carries.items():
            start = time.perf_counter()
            carries[at] = jax.block_until_ready(step(*carry, grads))
            times[at].append(time.perf_counter() - start)
    early, late = times.values()
    against = median(b / a for a, b in zip(early, late, strict=True))
    print("\nA step of autoclip on 65,536 parameters: microseconds")
    for at, seconds in times.items():
        print(f"  step {at:7,}{median(seconds) * 1e6:9.1f}")
    print(f"  late over early {against:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("run", "late", "all"), default="all")
    parser.add_argument("--rounds", type=int, default=60, help="of every run time")
    options = parser.parse_args()
    print(f"JAX {jax.__version__} on {jax.devices()[0].device_kind}")
    if options.part != "late":
        print_run_times(options.rounds)
    if options.part != "run":
        print_late_steps(20 * options.rounds)


if __name__ == "__main__":
    main()
