"""What clipping costs where the host must not count: many Adam steps in one program.

On an accelerator a step of many small kernels is over before Python has launched the
next, so a step timed alone tells how fast its arguments are handed over. Here a scan
runs the steps, and each has gradients of its own, which XLA cannot measure in advance.

    python benchmarks/accelerator.py    # a minute and a half on one GPU
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import optax
from overhead import (
    COUNTERPARTS,
    Tree,
    interleaved,
    many_leaves,
    ratio,
    transformer,
    without_report,
)

import optaxclip

STEPS = 20
OTHERS = {
    "no clipping": optax.identity(),
    "zclip": optaxclip.zclip(),
    "clip_unit_norm": optaxclip.clip_unit_norm(1.0),
    "clip_tensor_norm, no report": without_report(optaxclip.clip_tensor_norm(1.0)),
}


def compiled(clip: optax.GradientTransformation, grads: Tree) -> Callable[[], Any]:
    """A program of many steps, and its arguments."""
    optimizer = optax.chain(clip, optax.adam(1e-3))

    def steps(params: Tree, state: Any, grads: Tree) -> Any:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            own = jax.tree.map(lambda p, g: 1e-3 * p + g, params, grads)
            own = jax.lax.optimization_barrier(own)
            updates, state = optimizer.update(own, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), length=STEPS)[0]

    params = jax.tree.map(jnp.zeros_like, grads)
    args = params, jax.jit(optimizer.init)(params), grads
    return partial(jax.jit(steps).lower(*args).compile(), *args)


def print_steps(title: str, grads: Tree, rounds: int) -> None:
    pairs = {name: ours for name, (ours, _) in COUNTERPARTS.items()}
    pairs |= {f"{name} of Optax": theirs for name, (_, theirs) in COUNTERPARTS.items()}
    variants = OTHERS | pairs
    with ThreadPoolExecutor() as threads:
        programs = threads.map(lambda clip: compiled(clip, grads), variants.values())
        times = interleaved(dict(zip(variants, programs, strict=True)), rounds)
    print(f"\n{title}: microseconds a step, over none, over the counterpart")
    for name, seconds in times.items():
        other = f"{name} of Optax"
        print(
            f"{name}:".ljust(32),
            f"{median(seconds) / STEPS * 1e6:8.1f}",
            f"{ratio(times, name, 'no clipping'):8.3f}",
            f"{ratio(times, name, other):8.3f}" if other in times else "",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    print(f"JAX {jax.__version__} on {jax.devices()[0].device_kind}")
    print_steps("transformer, 30 M parameters", transformer(), rounds)
    print_steps("300 leaves of 64 x 64", many_leaves(300), rounds)


if __name__ == "__main__":
    main()
