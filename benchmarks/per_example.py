"""What per-example clipping adds to a gradient: time and temporary memory.

Every variant computes the mean gradient of the same loss, jitted, and is timed once per
round, in turn, so that a noisy machine disturbs all alike; a ratio is the median over
rounds of the ratio of two times from the same round. Memory is the temporary memory in
XLA's analysis of the compiled program. The other variants are `vmap` of `grad`, clipped
and averaged, and jax-privacy's `clipped_grad` if it is installed.

    python benchmarks/per_example.py                    # all, some minutes on 2 cores
    python benchmarks/per_example.py --models mlp cnn --rounds 20
    python benchmarks/per_example.py --slow             # also the slow variants
"""

import argparse
import importlib.util
import itertools
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optaxclip

LIMIT = 1.0
Model = tuple[Callable[..., jax.Array], Any, tuple[jax.Array, ...]]


def normal(seed: int, *shape: int, scale: float | None = None) -> jax.Array:
    scale = shape[0] ** -0.5 if scale is None else scale
    return jax.random.normal(jax.random.key(seed), shape) * scale


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(logits) - logits[label]


def mlp() -> Model:
    """784-1024-1024-10, 128 images."""
    sizes = (784, 1024, 1024, 10)
    params = [
        (normal(i, a, b), jnp.zeros(b))
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    ]

    def loss(params: Any, x: jax.Array, label: jax.Array) -> jax.Array:
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        w, b = params[-1]
        return cross_entropy(x @ w + b, label)

    return loss, params, (normal(4, 128, 784, scale=1.0), jnp.arange(128) % 10)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * scale + bias


def transformer(width: int, batch: int) -> Model:
    """Two layers on 64 tokens from a vocabulary of 65."""
    length, kinds, heads = 64, 65, width // 64
    features = width // heads
    names = {"q": 0, "k": 1, "v": 2}
    layers = [
        {name: normal(i, width, heads, features) for name, i in names.items()}
        | {"o": normal(3, heads, features, width, scale=width**-0.5)}
        | {"up": normal(4, width, 4 * width), "down": normal(5, 4 * width, width)}
        | {"up_bias": jnp.zeros(4 * width), "down_bias": jnp.zeros(width)}
        | {f"scale{i}": jnp.ones(width) for i in (1, 2)}
        | {f"bias{i}": jnp.zeros(width) for i in (1, 2)}
        for _ in range(2)
    ]
    params = {
        "embed": normal(6, kinds, width, scale=0.02),
        "position": normal(7, length, width, scale=0.02),
        "layers": layers,
        "out": normal(8, width, kinds),
    }
    causal = np.tril(np.ones((length, length), bool))

    def loss(params: Any, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        x = params["embed"][tokens] + params["position"]
        for p in params["layers"]:
            y = layer_norm(x, p["scale1"], p["bias1"])
            q, k, v = (jnp.einsum("td,dhk->thk", y, p[name]) for name in "qkv")
            scores = jnp.einsum("thk,shk->hts", q, k) * features**-0.5
            weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
            y = jnp.einsum("hts,shk->thk", weights, v)
            x = x + jnp.einsum("thk,hkd->td", y, p["o"])
            y = layer_norm(x, p["scale2"], p["bias2"])
            y = jax.nn.gelu(y @ p["up"] + p["up_bias"])
            x = x + y @ p["down"] + p["down_bias"]
        return jax.vmap(cross_entropy)(x @ params["out"], labels).mean()

    tokens = jax.random.randint(jax.random.key(9), (batch, length + 1), 0, kinds)
    return loss, params, (tokens[:, :-1], tokens[:, 1:])


def cnn(size: int, channels: int) -> Model:
    """The network of examples/image_classification.py, 128 images."""
    params = {
        "conv1": normal(1, 3, 3, channels, 64, scale=0.1),
        "bias1": jnp.zeros(64),
        "conv2": normal(2, 3, 3, 64, 128, scale=0.05),
        "bias2": jnp.zeros(128),
        "dense1": normal(3, (size // 4) ** 2 * 128, 1024),
        "bias3": jnp.zeros(1024),
        "dense2": normal(4, 1024, 10),
        "bias4": jnp.zeros(10),
    }

    def convolve(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, w, (1, 1), ((1, 1), (1, 1)), dimension_numbers=numbers
        )
        x = jax.nn.relu(x + b)
        x = jnp.maximum(x[:, ::2], x[:, 1::2])
        return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])

    def loss(params: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        x = convolve(image[None], params["conv1"], params["bias1"])
        x = convolve(x, params["conv2"], params["bias2"])
        x = jax.nn.relu(x.reshape(-1) @ params["dense1"] + params["bias3"])
        return cross_entropy(x @ params["dense2"] + params["bias4"], label)

    images = normal(5, 128, size, size, channels, scale=1.0)
    return loss, params, (images, jnp.arange(128) % 10)


MODELS: dict[str, Callable[[], Model]] = {
    "mlp": mlp,
    "transformer_256": lambda: transformer(256, 32),
    "transformer_768": lambda: transformer(768, 16),
    "cnn_digits": lambda: cnn(8, 1),
    "cnn": lambda: cnn(32, 3),
}


def plain(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    def gradient(params: Any, *batch: jax.Array) -> Any:
        axes = (None, *(0 for _ in batch))
        return jax.grad(lambda p: jax.vmap(loss, axes)(p, *batch).mean())(params)

    return gradient


def stacked(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    def gradient(params: Any, *batch: jax.Array) -> Any:
        axes = (None, *(0 for _ in batch))
        grads = jax.vmap(jax.grad(loss), axes)(params, *batch)
        squares = [(g.reshape(len(g), -1) ** 2).sum(1) for g in jax.tree.leaves(grads)]
        factors = jnp.minimum(1, LIMIT / jnp.sqrt(sum(squares)))
        return jax.tree.map(
            lambda g: jnp.einsum("n,n...->...", factors, g) / len(g), grads
        )

    return gradient


def jax_privacy(loss: Callable[..., jax.Array], batch: Any) -> Callable[..., Any]:
    from jax_privacy import clipping

    return clipping.clipped_grad(
        loss,
        l2_clip_norm=LIMIT,
        batch_argnums=tuple(range(1, 1 + len(batch))),
        keep_batch_dim=False,
        normalize_by=len(batch[0]),
    )


def compare(name: str, rounds: int, slow: bool) -> None:
    loss, params, batch = MODELS[name]()
    variants = {"plain": plain(loss), "optaxclip": optaxclip.clipped_grad(loss, LIMIT)}
    if slow:
        variants["vmap"] = stacked(loss)
        if importlib.util.find_spec("jax_privacy"):
            variants["jax-privacy"] = jax_privacy(loss, batch)
    steps, memory = {}, {}
    for variant, function in variants.items():
        steps[variant] = jax.jit(function).lower(params, *batch).compile()
        analysis = steps[variant].memory_analysis()
        memory[variant] = analysis.temp_size_in_bytes / 2**20
        jax.block_until_ready(steps[variant](params, *batch))
    times: dict[str, list[float]] = {variant: [] for variant in steps}
    for _ in range(rounds):
        for variant, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(params, *batch))
            times[variant].append(time.perf_counter() - start)
    for variant, taken in times.items():
        pairs = zip(taken, times["plain"], strict=True)
        ratio = median(a / b for a, b in pairs)
        print(
            f"{name:16} {variant:12} {median(taken) * 1e3:9.1f} ms {ratio:8.2f}"
            f" {memory[variant]:9.1f} MB {memory[variant] / memory['plain']:8.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slow", action="store_true", help="vmap and jax-privacy too")
    options = parser.parse_args()
    print(f"JAX {jax.__version__} on {jax.devices()[0].device_kind}")
    print(f"{'':30}{'time':>11} {'of plain':>8} {'temporary':>12} {'of plain':>8}")
    for name in options.models:
        compare(name, options.rounds, options.slow)


if __name__ == "__main__":
    main()
