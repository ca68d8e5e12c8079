"""What clipping costs: measuring, in a training step, compiling, and outside of jit.

Every variant is timed once per round, in random order, so that a noisy machine disturbs
all of them alike; a ratio is the median over rounds of the ratio of two times from the
same round. All variants use the same parameters and moments: where such buffers happen
to be in memory can change a step by up to a tenth. Compile time is CPU time of the
process, which other processes disturb least.

    python benchmarks/overhead.py                  # everything, about 40 minutes
    python benchmarks/overhead.py --part measure   # or: run, compile, eager
"""

import argparse
import random
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optaxclip
from optaxclip import norms, scopes
from optaxclip.norms.norm import measure

Tree = dict[str, jax.Array]
Variants = dict[str, optax.GradientTransformation]

# Each strategy and its counterpart in Optax, or else one of ours.
COUNTERPARTS: dict[str, tuple[optax.GradientTransformation, ...]] = {
    "clip_global_norm": (
        optaxclip.clip_global_norm(1.0),
        optax.clip_by_global_norm(1.0),
    ),
    "clip_tensor_norm": (
        optaxclip.clip_tensor_norm(1.0),
        optax.clip_by_block_rms(1.0),
    ),
    "clip_tensor_rms": (optaxclip.clip_tensor_rms(1.0), optax.clip_by_block_rms(1.0)),
    "agc": (optaxclip.agc(0.01), optax.adaptive_grad_clip(0.01)),
    "clip_value": (optaxclip.clip_value(1.0), optax.clip(1.0)),
    "adagc": (optaxclip.adagc(1.0), optaxclip.clip_global_norm(1.0)),
}


def transformer(dtype: jnp.dtype = jnp.float32) -> Tree:
    """30 M parameters in about 100 leaves."""
    shapes: dict[str, tuple[int, ...]] = {"embed": (8192, 512), "position": (512, 512)}
    for layer in range(8):
        shapes |= {f"{name}{layer}": (512, 512) for name in "qkvo"}
        shapes |= {f"up{layer}": (512, 2048), f"down{layer}": (2048, 512)}
        shapes |= {f"bias{layer}": (2048,)}
        shapes |= {f"{name}{layer}": (512,) for name in ("scale1", "scale2", "bias2")}
    return random_tree(shapes, dtype)


def many_leaves(
    number: int = 1000, side: int = 64, dtype: jnp.dtype = jnp.float32
) -> Tree:
    return random_tree({f"leaf{i}": (side, side) for i in range(number)}, dtype)


def one_leaf(dtype: jnp.dtype = jnp.float32) -> Tree:
    return random_tree({"leaf": (30_000_000,)}, dtype)


TREES = {"transformer": transformer, "1000 leaves": many_leaves, "one leaf": one_leaf}


def random_tree(
    shapes: dict[str, tuple[int, ...]], dtype: jnp.dtype = jnp.float32
) -> Tree:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: jax.random.normal(key, shape, dtype)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def without_report(clip: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return the old state, so that XLA drops everything that only the report needs."""

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
        # The order matters by some percent: freed memory, caches.
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


def interleaved(
    calls: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, list[float]]:
    """Time calls in random order, round by round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    shuffled = random.Random(0)
    for _ in range(1 + rounds):
        for name in shuffled.sample(list(calls), len(calls)):
            start = time.perf_counter()
            jax.block_until_ready(calls[name]())
            times[name].append(time.perf_counter() - start)
    return {name: seconds[1:] for name, seconds in times.items()}


def sums_of_squares(tree: Tree, axis: int | None) -> list[jax.Array]:
    """Only sum squares, over each leaf or along an axis of it."""
    return [
        jnp.sum(jnp.square(x.astype(jnp.float32)), None if x.ndim == 1 else axis)
        for x in tree.values()
    ]


def print_measuring(rounds: int) -> None:
    print("\nMeasuring alone, over a plain sum of squares")
    bare = {
        "whole": lambda tree: sum(sums_of_squares(tree, None)),
        "tensor": lambda tree: sums_of_squares(tree, None),
        "unit": lambda tree: sums_of_squares(tree, 0),
    }
    ours = {
        "whole": (scopes.whole(), norms.l2, "whole"),
        "tensor": (scopes.tensor(), norms.l2, "tensor"),
        "rms": (scopes.tensor(), norms.rms, "tensor"),
        "unit": (scopes.unit(), norms.l2, "unit"),
    }
    for dtype in (jnp.float32, jnp.bfloat16):
        for title, make in TREES.items():
            tree, calls = make(dtype=dtype), {}
            for name, function in bare.items():
                calls[f"bare {name}"] = partial(jax.jit(function), tree)
            for name, (scope, norm, _) in ours.items():
                calls[name] = partial(jax.jit(partial(measured, scope, norm)), tree)
            times = interleaved(calls, rounds)
            row = (
                f"{name} {ratio(times, name, f'bare {base}'):.2f}"
                for name, (*_, base) in ours.items()
            )
            print(f"{title}, {jnp.dtype(dtype).name}:".ljust(24), "  ".join(row))


def measured(scope: scopes.Scope, norm: norms.Norm, tree: Tree) -> Any:
    return measure(norm, scope.arrange(tree))


def print_steps(rounds: int) -> None:
    print(
        "\nA jitted Adam step over that with the counterpart, and over none's; report"
    )
    cases = [("transformer", jnp.bfloat16, ["clip_global_norm"])]
    cases = [(title, jnp.float32, list(COUNTERPARTS)) for title in TREES] + cases
    for title, dtype, names in cases:
        for name in names:
            ours, theirs = COUNTERPARTS[name]
            variants = {"none": optax.identity(), "theirs": theirs, "ours": ours}
            variants["no report"] = without_report(ours)
            times = run_times(variants, TREES[title](dtype=dtype), rounds)
            print(
                f"{title}, {jnp.dtype(dtype).name}, {name}:".ljust(44),
                f"{median(times['ours']) * 1e3:8.2f} ms  over theirs "
                f"{ratio(times, 'ours', 'theirs'):.3f}  over none "
                f"{ratio(times, 'ours', 'none'):.3f}  report "
                f"{ratio(times, 'ours', 'no report'):.3f}",
                flush=True,
            )


def print_compile_times(rounds: int) -> None:
    print("\nTrace and compile of an Adam step: what is added, seconds of CPU, medians")
    for number in (100, 300, 1000):
        grads = many_leaves(number, side=8)
        for name, (ours, theirs) in COUNTERPARTS.items():
            variants = {"none": optax.identity(), "theirs": theirs, "ours": ours}
            times = compile_times(variants, grads, rounds)
            none, other, own = (median(seconds) for seconds in times.values())
            print(
                f"{number:5} leaves, {name}:".ljust(32),
                f"ours {own - none:6.2f}  theirs {other - none:6.2f}  ratio "
                f"{(own - none) / (other - none):5.2f}",
                flush=True,
            )


def print_eager(rounds: int) -> None:
    print("\nA call outside of jit, 100 leaves")
    grads = many_leaves(100, side=32)
    for name, (ours, theirs) in COUNTERPARTS.items():
        calls = {
            which: partial(clip.update, grads, clip.init(grads), grads)
            for which, clip in (("ours", ours), ("theirs", theirs))
        }
        times = interleaved(calls, rounds)
        print(
            f"{name}:".ljust(20),
            f"{median(times['ours']) * 1e3:8.2f} ms, over theirs "
            f"{ratio(times, 'ours', 'theirs'):.2f}",
            flush=True,
        )


PARTS: dict[str, Callable[[int], None]] = {
    "measure": print_measuring,
    "run": print_steps,
    "compile": print_compile_times,
    "eager": print_eager,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="all of them if not given")
    parser.add_argument("--rounds", type=int, default=40, help="of every run time")
    parser.add_argument("--compilations", type=int, default=3)
    options = parser.parse_args()
    print(f"JAX {jax.__version__} on {jax.devices()[0].device_kind}")
    for name in [options.part] if options.part else PARTS:
        PARTS[name](options.compilations if name == "compile" else options.rounds)


if __name__ == "__main__":
    main()
