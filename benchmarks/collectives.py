"""How often the devices of a mesh talk to each other in one call of each strategy.

Counted in the compiled programs on eight virtual devices, where XLA chooses the
shardings: all-reduces, and in brackets other collectives, which only spectral maps
need. Beside them stand Optax's own transformations. Data-parallel gradients have been
averaged before, and cost nothing.

    python benchmarks/collectives.py              # a Markdown table, in five minutes
    python benchmarks/collectives.py --only agc
    python benchmarks/collectives.py --growth     # calls and bytes as a mesh grows
    python benchmarks/collectives.py --growth --leaves 291  # or as a model does
"""

import argparse
import math
import os
import re
from collections.abc import Iterator
from functools import partial

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxclip

AXES = ("expert", "data", "model")

# Two kernels and a bias each, as users place them.
LAYOUTS = {
    "data": (P(), P()),
    "FSDP": (P("data"), P("data")),
    "tensor": (P(None, "model"), P("model")),
    "2-D": (P("data", "model"), P("model")),
    "experts": (P("expert"), P()),
    "3-D": (P("expert", "data", "model"), P("model")),
}

global_norm = partial(optaxclip.clip_global_norm, 1.0)
STRATEGIES: dict[str, optax.GradientTransformation] = {
    "optax.clip": optax.clip(1.0),
    "clip_value": optaxclip.clip_value(1.0),
    "optax.clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "clip_global_norm": global_norm(),
    "clip_global_norm(ord=inf)": global_norm(ord=jnp.inf),
    "clip_global_norm(ord=3)": global_norm(ord=3),
    "optax.clip_by_block_rms": optax.clip_by_block_rms(1.0),
    "clip_tensor_rms": optaxclip.clip_tensor_rms(1.0),
    "clip_tensor_norm": optaxclip.clip_tensor_norm(1.0),
    "clip_group_norm": optaxclip.clip_group_norm(
        1.0, lambda tree: {name: name[0] for name in tree}
    ),
    "optax.adaptive_grad_clip": optax.adaptive_grad_clip(0.01, axis=0),
    "agc": optaxclip.agc(0.01),
    "clip_unit_norm": optaxclip.clip_unit_norm(1.0),
    "autoclip": optaxclip.autoclip(),
    "zclip": optaxclip.zclip(),
    "adagc": optaxclip.adagc(),
    "spam_clip": optaxclip.spam_clip(),
    "clippy": optaxclip.clippy(),
    "optax.scale_by_adam": optax.scale_by_adam(),
    "scale_by_stable_adam": optaxclip.scale_by_stable_adam(),
    "watch": optaxclip.watch(),
    "zero_nonfinite": optaxclip.zero_nonfinite(),
    "optax.apply_if_finite(clip_by_global_norm)": optax.apply_if_finite(
        optax.clip_by_global_norm(1.0), 5
    ),
    "skip_nonfinite(clip_global_norm)": optaxclip.skip_nonfinite(global_norm()),
    "skip_spikes(clip_global_norm)": optaxclip.skip_spikes(global_norm()),
    "clip_weights": optaxclip.clip_weights(1.0),
    "clip_weight_unit_norm": optaxclip.clip_weight_unit_norm(1.0),
    "hyperball": optaxclip.hyperball(0.01),
    "clip_singular_values": optaxclip.clip_singular_values(1.0),
    "clip_weight_spectral_norm": optaxclip.clip_weight_spectral_norm(1.0),
}


def shapes(layout: str, shards: int = 2) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and shardings of a model's gradients."""
    devices = np.array(jax.devices()[: shards**3]).reshape((shards,) * 3)
    mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)
    kernel, bias = LAYOUTS[layout]
    stacked = "expert" in kernel
    wide = (8, 16, 16) if stacked else (16, 16)
    leaves = {"kernel1": (wide, kernel), "kernel2": (wide, kernel)}
    leaves |= {"bias1": ((16,), bias), "bias2": ((16,), bias)}
    return {
        name: jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, spec)
        )
        for name, (shape, spec) in leaves.items()
    }


def collectives(clip: optax.GradientTransformation, layout: str) -> tuple[int, int]:
    """Return the number of all-reduces, and of all other collectives."""
    tree = shapes(layout)
    state = jax.eval_shape(clip.init, tree)
    text = jax.jit(clip.update).lower(tree, state, tree).compile().as_text() or ""
    found = re.findall(
        r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
        r"(?:-start)?\(",
        text,
    )
    sums = found.count("all-reduce")
    return sums, len(found) - sums


def rows(only: str | None) -> Iterator[str]:
    for name, clip in STRATEGIES.items():
        if only is None or only in name:
            cells = (collectives(clip, layout) for layout in LAYOUTS)
            told = (f"{a} ({b})" if b else str(a) for a, b in cells)
            yield f"| `{name}` | " + " | ".join(told) + " |"


def all_reduced(
    clip: optax.GradientTransformation, devices: int, spec: P, leaves: int
) -> tuple[int, int]:
    """Return the number of all-reduces, and the bytes that each device puts in."""
    mesh = Mesh(np.array(jax.devices()[:devices]), "x", axis_types=(AxisType.Auto,))
    leaf = jax.ShapeDtypeStruct(
        (64, 64), jnp.float32, sharding=NamedSharding(mesh, spec)
    )
    tree = {f"w{i}": leaf for i in range(leaves)}
    state = jax.eval_shape(clip.init, tree)
    text = jax.jit(clip.update).lower(tree, state, tree).compile().as_text() or ""
    found = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
    shapes = re.findall(r"[fsu](\d+)\[([\d,]*)\]", " ".join(found))
    sizes = (
        int(bits) // 8 * math.prod(map(int, s.split(","))) if s else int(bits) // 8
        for bits, s in shapes
    )
    return len(found), sum(sizes)


def growth(leaves: int) -> Iterator[str]:
    yield f"| {leaves} leaves of 64 x 64 | sharded | 2 devices | 4 | 8 |"
    yield "|---|---|---|---|---|"
    names = ("clip_value", "clip_global_norm", "clip_tensor_norm", "clip_unit_norm")
    for name in (*names, "clip_group_norm", "agc", "optax.clip_by_global_norm"):
        for where, spec in {"first": P("x"), "last": P(None, "x")}.items():
            cells = (all_reduced(STRATEGIES[name], n, spec, leaves) for n in (2, 4, 8))
            told = (f"{calls}, {size} bytes" for calls, size in cells)
            yield f"| `{name}` | {where} | " + " | ".join(told) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="only strategies whose names contain this")
    parser.add_argument("--growth", action="store_true", help="with the mesh")
    parser.add_argument("--leaves", type=int, default=10, help="for --growth")
    arguments = parser.parse_args()
    if arguments.growth:
        for row in growth(arguments.leaves):
            print(row, flush=True)
        return
    print("| strategy | " + " | ".join(LAYOUTS) + " |")
    print("|---|" + "---|" * len(LAYOUTS))
    for row in rows(arguments.only):
        print(row, flush=True)


if __name__ == "__main__":
    main()
