"""What clipping adds to a training step: run time, the report, trace and compile time.

Every variant is timed once a round, in any order, so that a noisy machine disturbs all
of them alike; a ratio is the median over the rounds of what two of them took in the
same round. All work on the same parameters and moments: where such buffers happen to
lie in memory is worth up to a tenth of a step. Compile time is CPU time of the process,
which other processes disturb least.

    python benchmarks/overhead.py              # all of it, about 20 minutes on 2 cores
    python benchmarks/overhead.py --part run   # or: compile
"""

import argparse
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optaxclip import clip_global_norm, clip_tensor_rms, clip_value

Tree = dict[str, jax.Array]
Variants = dict[str, optax.GradientTransformation]


def transformer(dtype: jnp.dtype = jnp.float32) -> Tree:
    """30 M parameters in about 100 leaves."""
    shapes: dict[str, tuple[int, ...]] = {"embed": (8192, 512), "position": (512, 512)}
    for layer in range(8):
        shapes |= {f"{name}{layer}": (512, 512) for name in "qkvo"}
        shapes |= {f"up{layer}": (512, 2048), f"down{layer}": (2048, 512)}
        shapes |= {f"bias{layer}": (2048,)}
        shapes |= {f"{name}{layer}": (512,) for name in ("scale1", "scale2", "bias2")}
    return random_tree(shapes, dtype)


def thousand_leaves() -> Tree:
    return random_tree({f"leaf{i}": (64, 64) for i in range(1000)})


def one_leaf() -> Tree:
    return random_tree({"leaf": (30_000_000,)})


def random_tree(
    shapes: dict[str, tuple[int, ...]], dtype: jnp.dtype = jnp.float32
) -> Tree:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: jax.random.normal(key, shape, dtype)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def without_report(clip: optax.GradientTransformation) -> optax.GradientTransformation:
    """Give back the old state, so that XLA drops all that only the report needs."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return clip.update(updates, state, params)[0], state

    return optax.GradientTransformation(clip.init, update)


def step_of(clip: optax.GradientTransformation) -> tuple[Callable[..., Any], Any]:
    optimizer = optax.chain(clip, optax.adam(1e-3))

    def step(params: Tree, state: Any, grads: Tree) -> tuple[Tree, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)), optimizer.init


def run_times(variants: Variants, grads: Tree, rounds: int) -> dict[str, list[float]]:
    params, steps, clips = jax.tree.map(jnp.zeros_like, grads), {}, {}
    for name, clip in variants.items():
        steps[name], init = step_of(clip)
        clips[name], moments = init(params)
    times: dict[str, list[float]] = {name: [] for name in variants}
    shuffled = random.Random(0)
    for _ in range(1 + rounds):
        # Who comes after whom is worth some percent: what was freed, what is cached.
        for name in shuffled.sample(list(steps), len(steps)):
            start = time.perf_counter()
            after = steps[name](params, (clips[name], moments), grads)
            params, (clips[name], moments) = jax.block_until_ready(after)
            times[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def compile_times(
    variants: Variants, grads: Tree, rounds: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, clip in variants.items():
            jax.clear_caches()
            step, init = step_of(clip)
            params = jax.tree.map(jnp.zeros_like, grads)
            state = init(params)
            start = time.process_time()
            step.lower(params, state, grads).compile()
            times[name].append(time.process_time() - start)
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    return median(a / b for a, b in zip(times[name], times[base], strict=True))


def print_run_times(title: str, grads: Tree, rounds: int) -> None:
    ours = clip_global_norm(1.0)
    times = run_times(
        {
            "none": optax.identity(),
            "optax": optax.clip_by_global_norm(1.0),
            "optaxclip": ours,
            "no report": without_report(ours),
        },
        grads,
        rounds,
    )
    print_row(title, times, "optax", "no report")


def print_counterparts(rounds: int) -> None:
    """Compare the other strategies that optax has too, on the transformer."""
    pairs = {
        "value": (optax.clip(1.0), clip_value(1.0)),
        "tensor rms": (optax.clip_by_block_rms(1.0), clip_tensor_rms(1.0)),
    }
    for title, (theirs, ours) in pairs.items():
        variants = {
            "none": optax.identity(),
            "optax": theirs,
            "optaxclip": ours,
            "no report": without_report(ours),
        }
        times = run_times(variants, transformer(), rounds)
        print_row(f"transformer, {title}", times, "optax", "no report")


def print_row(title: str, times: dict[str, list[float]], *bases: str) -> None:
    medians = "  ".join(f"{median(t) * 1e3:9.2f}" for t in times.values())
    ratios = "  ".join(f"{ratio(times, 'optaxclip', base):10.3f}" for base in bases)
    print(f"{title:26}{medians}  {ratios}", flush=True)


def print_compile_times(rounds: int) -> None:
    variants = {
        "none": optax.identity(),
        "optax": optax.clip_by_global_norm(1.0),
        "optaxclip": clip_global_norm(1.0),
    }
    times = compile_times(variants, thousand_leaves(), rounds)
    print("\nTrace and compile, 1000 leaves: seconds of CPU, median (least)")
    for name, seconds in times.items():
        print(f"  {name:10}{median(seconds):8.2f}  ({min(seconds):.2f})")
    for how, of in (("median", median), ("least", min)):
        none, theirs, ours = (of(seconds) for seconds in times.values())
        print(
            f"  clipping adds, {how}: optax {theirs - none:.2f}, optaxclip "
            f"{ours - none:.2f}, ratio {(ours - none) / (theirs - none):.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("run", "compile", "all"), default="all")
    parser.add_argument("--rounds", type=int, default=60, help="of every run time")
    parser.add_argument("--compilations", type=int, default=5)
    options = parser.parse_args()
    print(f"JAX {jax.__version__} on {jax.devices()[0].device_kind}")
    if options.part != "compile":
        print("\nA jitted Adam step: milliseconds, medians; ratios within a round")
        names = ("none", "optax", "optaxclip", "no report")
        heads = "  ".join(f"{name:>9}" for name in names)
        print(f"{'':26}{heads}  {'over optax':>10}  {'report':>10}")
        print_run_times("transformer, 30 M, f32", transformer(), options.rounds)
        print_run_times("1000 leaves of 64x64", thousand_leaves(), options.rounds)
        print_run_times("one leaf of 30 M", one_leaf(), options.rounds)
        bfloat16 = transformer(jnp.bfloat16)
        print_run_times("transformer, bf16", bfloat16, options.rounds)
        print_counterparts(options.rounds)
    if options.part != "run":
        print_compile_times(options.compilations)


if __name__ == "__main__":
    main()
