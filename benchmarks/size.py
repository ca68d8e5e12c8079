"""How clipping grows with the model: many leaves, and deep stacks of scanned layers.

An SGD step is traced, compiled and run with no clipper, with ours and with Optax's. The
times are seconds of CPU, those of a step milliseconds, and the memory is what the
compiled step needs beside its arguments and results.

    python benchmarks/size.py --leaves 100 1000        # some minutes
    python benchmarks/size.py --layers 0 --leaves 10000 --only agc
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optaxclip

LEAVES = {
    "none": optax.identity(),
    "optax.clip": optax.clip(1.0),
    "clip_value": optaxclip.clip_value(1.0),
    "optax.clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "clip_global_norm": optaxclip.clip_global_norm(1.0),
    "optax.clip_by_block_rms": optax.clip_by_block_rms(1.0),
    "clip_tensor_norm": optaxclip.clip_tensor_norm(1.0),
    "optax.adaptive_grad_clip": optax.adaptive_grad_clip(0.01),
    "agc": optaxclip.agc(0.01),
}
STACKS = {
    "none": optax.identity(),
    "optax.clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "clip_global_norm": optaxclip.clip_global_norm(1.0),
    "clip_tensor_norm(leading_axes=1)": optaxclip.clip_tensor_norm(1.0, leading_axes=1),
    "optax.adaptive_grad_clip(axis=1)": optax.adaptive_grad_clip(0.01, axis=1),
    "agc(axis=1)": optaxclip.agc(0.01, axis=1),
}


def measured(
    clip: optax.GradientTransformation, tree: dict[str, jax.Array], rounds: int
) -> tuple[float, ...]:
    optimizer = optax.chain(clip, optax.sgd(0.1))

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, tree)
    state = optimizer.init(params)
    start = time.process_time()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, tree)
    traced = time.process_time()
    compiled = lowered.compile()
    built = time.process_time()
    memory = compiled.memory_analysis()
    times = []
    for _ in range(1 + rounds):
        begin = time.perf_counter()
        params, state = jax.block_until_ready(compiled(params, state, tree))
        times.append(time.perf_counter() - begin)
    return (
        traced - start,
        built - traced,
        statistics.median(times[1:]) * 1e3,
        memory.temp_size_in_bytes / 2**20 if memory else float("nan"),
    )


def print_table(
    title: str,
    clips: dict[str, optax.GradientTransformation],
    make: Callable[[], dict[str, jax.Array]],
    rounds: int,
    only: str | None,
) -> None:
    print(f"\n{title}\n\n| clipper | trace, s | compile, s | step, ms | memory, MiB |")
    print("|---|---|---|---|---|")
    for name, clip in clips.items():
        if only not in (None, name):
            continue
        jax.clear_caches()
        trace, build, run, memory = measured(clip, make(), rounds)
        row = f"{trace:.2f} | {build:.1f} | {run:.2f} | {memory:.2f}"
        print(f"| `{name}` | {row} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leaves", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--layers", type=int, default=100, help="0 leaves them out")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", help="only the clipper of this name")
    given = parser.parse_args()
    if given.layers:
        print_table(
            f"6 stacks of {given.layers} layers of 64 x 64",
            STACKS,
            lambda: {f"w{i}": jnp.ones((given.layers, 64, 64)) for i in range(6)},
            given.rounds,
            given.only,
        )
    for number in given.leaves:
        print_table(
            f"{number} leaves of 8 x 8",
            LEAVES,
            lambda number=number: {f"w{i}": jnp.ones((8, 8)) for i in range(number)},
            given.rounds,
            given.only,
        )


if __name__ == "__main__":
    main()
