"""What clipping every example takes on fifty losses of the kinds that people train.

For each loss: the error against gradients in float64; temporary memory in MiB of the
plain gradient, of `clipped_grad` and of `vmap` of `grad`, clipped; then floating-point
operations and the times of a step, of tracing and of compiling, each over those of the
plain gradient and over those of `vmap`; and the ways of the leaves. A star marks more
memory than twice the plain gradient's and 15% of `vmap`'s, or more than `vmap`'s.

Every variant is run, and traced, once per round, in turn; a ratio is the median over
rounds. The first round of tracing, which fills JAX's caches, does not count.

    python benchmarks/per_example_losses.py                  # about 15 minutes
    python benchmarks/per_example_losses.py --markdown       # as docs/costs.md has it
    python benchmarks/per_example_losses.py --losses gpt vit
"""

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax import lax
from per_example import LIMIT, Model, cross_entropy, layer_norm, normal, plain, stacked

import optaxclip

LOSSES: dict[str, Callable[[], Model]] = {}
KEY = jax.random.key(0)
KINDS = ("flops", "time", "trace", "compile")


def case(make: Callable[[], Model]) -> Callable[[], Model]:
    LOSSES[make.__name__] = make
    return make


def integers(high: int, *shape: int) -> jax.Array:
    return jax.random.randint(KEY, shape, 0, high)


def stack(params: Any, x: jax.Array) -> jax.Array:
    for w in params:
        x = jax.nn.relu(x @ w)
    return jnp.sum(x**2)


def three(size: int = 512) -> list[jax.Array]:
    return [normal(i, size, size) for i in range(3)]


X = normal(9, 32, 512, scale=1.0)


@case
def mlp() -> Model:
    return stack, three(), (X,)


@case
def penalty() -> Model:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        return stack(p, x) + 1e-4 * sum(jnp.sum(w**2) for w in p)

    return loss, three(), (X,)


@case
def penalty_by_example() -> Model:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        return stack(p, x) + 1e-4 * x[0] ** 2 * sum(jnp.sum(w**2) for w in p)

    return loss, three(), (X,)


@case
def cast_by_jit() -> Model:
    cast = jax.jit(lambda w: w.astype(jnp.bfloat16))

    def loss(p: Any, x: jax.Array) -> jax.Array:
        return stack([cast(w) for w in p], x.astype(jnp.bfloat16)).astype(jnp.float32)

    return loss, three(), (X,)


@case
def stacked_by_index() -> Model:
    return lambda p, x: stack([p[i] for i in range(3)], x), jnp.stack(three()), (X,)


@case
def unstacked() -> Model:
    return lambda p, x: stack(list(p), x), jnp.stack(three()), (X,)


@case
def masked() -> Model:
    mask = jnp.asarray(np.tril(np.ones((512, 512))), jnp.float32)
    return lambda p, x: stack([w * mask for w in p], x), three(), (X,)


@case
def masked_on_positions() -> Model:
    mask = jnp.asarray(np.tril(np.ones((512, 512))), jnp.float32)
    x = normal(9, 16, 32, 512, scale=1.0)
    return lambda p, x: stack([w * mask for w in p], x), three(), (x,)


@case
def concatenated() -> Model:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(x @ jnp.concatenate(p, 1)) ** 2)

    return loss, three(), (X,)


@case
def split_gates() -> Model:
    def loss(p: jax.Array, x: jax.Array) -> jax.Array:
        a, b, c = jnp.split(p, 3, axis=1)
        return jnp.sum(jax.nn.silu(x @ a) * (x @ b) @ c)

    return loss, normal(0, 512, 1536), (X,)


@case
def padded_and_reversed() -> Model:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        wide = jnp.pad(p[0], ((0, 0), (0, 64)))[:, ::-1]
        return jnp.sum(jnp.tanh(x @ wide) ** 2)

    return loss, three()[:1], (X,)


@case
def kernel_written_into_zeros() -> Model:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        w = jnp.zeros((512, 1024)).at[:, 256:768].set(p[0])
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    return loss, three()[:1], (X,)


@case
def merged_low_rank() -> Model:
    w = normal(3, 512, 512)
    p = {"a": normal(0, 3, 512, 8, scale=0.05), "b": normal(1, 3, 8, 512, scale=0.05)}
    return lambda p, x: stack([w + p["a"][i] @ p["b"][i] for i in range(3)], x), p, (X,)


@case
def low_rank() -> Model:
    w = three()
    p = [(normal(i, 512, 8), normal(i, 8, 512, scale=0.1)) for i in range(3)]

    def loss(p: Any, x: jax.Array) -> jax.Array:
        for frozen, (a, b) in zip(w, p, strict=True):
            x = jax.nn.relu(x @ frozen + x @ a @ b)
        return jnp.sum(x**2)

    return loss, p, (X,)


@case
def biases_alone() -> Model:
    w = three()

    def loss(p: Any, x: jax.Array) -> jax.Array:
        for frozen, b in zip(w, p, strict=True):
            x = jax.nn.relu(x @ frozen + b)
        return jnp.sum(x**2)

    return loss, [jnp.zeros(512)] * 3, (X,)


@case
def weight_norm() -> Model:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        return stack([g * v / jnp.linalg.norm(v, axis=0) for g, v in p], x)

    return loss, [(jnp.ones(512), v) for v in three()], (X,)


@case
def standardized_weights() -> Model:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        return stack([(w - w.mean(0)) / (w.std(0) + 1e-5) / 20 for w in p], x)

    return loss, three(), (X,)


@case
def straight_through() -> Model:
    def quantized(w: jax.Array) -> jax.Array:
        return w + lax.stop_gradient(jnp.round(w * 16) / 16 - w)

    return lambda p, x: stack([quantized(w) for w in p], x), three(), (X,)


@case
def generated_weights() -> Model:
    code = normal(3, 16, scale=1.0)

    def loss(p: Any, x: jax.Array) -> jax.Array:
        w = jnp.tanh(code @ p["make"].reshape(16, -1)).reshape(256, 256)
        return jnp.sum(jnp.tanh(x[:256] @ w) @ p["out"])

    p = {"make": normal(0, 16, 256, 256), "out": normal(1, 256, 512)}
    return loss, p, (X,)


@case
def two_towers() -> Model:
    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        a, b = (jnp.tanh(jnp.tanh(z @ p[0]) @ p[1]) for z in (x, y))
        return jnp.sum((a - b) ** 2)

    return loss, three()[:2], (X, normal(8, 32, 512, scale=1.0))


@case
def tied_autoencoder() -> Model:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        return jnp.sum((jnp.tanh(x @ p[0]) @ p[0].T - x) ** 2)

    return loss, [normal(0, 512, 256)], (X,)


@case
def heads_of_an_ensemble() -> Model:
    def loss(p: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jax.vmap(lambda w: jnp.tanh(x @ w))(p) ** 2)

    return loss, normal(0, 4, 512, 256, scale=0.05), (X,)


@case
def logistic_regression() -> Model:
    def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(x @ p["w"] + p["b"], y)

    p = {"w": jnp.zeros((512, 100)), "b": jnp.zeros(100)}
    return loss, p, (X, integers(100, 32))


@case
def rows_of_tables() -> Model:
    def loss(p: Any, u: jax.Array, v: jax.Array) -> jax.Array:
        return (jnp.dot(p["user"][u], p["item"][v]) - 1.0) ** 2

    p = {"user": normal(0, 20000, 32), "item": normal(1, 5000, 32)}
    return loss, p, (jnp.arange(32), jnp.arange(32))


@case
def recommender() -> Model:
    """Eight tables, a bottom and a top network, as in DLRM."""

    def loss(p: Any, ids: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        rows = [t[i] for t, i in zip(p["tables"], ids, strict=True)]
        z = jnp.stack([jax.nn.relu(x @ p["low"]), *rows])
        pairs = (z @ z.T)[np.triu_indices(9, 1)]
        hidden = jax.nn.relu(jnp.concatenate([z[0], pairs]) @ p["up"])
        return jax.nn.softplus(jnp.dot(hidden, p["out"])) - y * hidden[0]

    p = {"tables": [normal(i, 10000, 32) for i in range(8)], "low": normal(8, 64, 32)}
    p |= {"up": normal(9, 68, 256), "out": normal(10, 256)}
    return loss, p, (integers(10000, 64, 8), X[:, :128].reshape(64, 64), jnp.ones(64))


@case
def long_text() -> Model:
    p = {"e": normal(0, 16000, 64), "w": normal(1, 64, 64)}

    def loss(p: Any, t: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(p["e"][t] @ p["w"]) ** 2)

    return loss, p, (integers(16000, 8, 1024),)


@case
def reads_in_a_scan() -> Model:
    def loss(p: Any, t: jax.Array) -> jax.Array:
        def step(h: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(h @ p["w"] + p["e"][i]), None

        return jnp.sum(lax.scan(step, jnp.zeros(256), t)[0] ** 2)

    p = {"e": normal(0, 8000, 256), "w": normal(1, 256, 256)}
    return loss, p, (integers(8000, 16, 32),)


@case
def attention_with_biases() -> Model:
    model = linen.MultiHeadDotProductAttention(num_heads=4)
    x = normal(0, 16, 64, 256, scale=1.0)
    p = model.init(KEY, x[0])["params"]
    return lambda p, x: jnp.mean(model.apply({"params": p}, x) ** 2), p, (x,)


def of_cell(cell: Any) -> Model:
    model = linen.RNN(cell)
    x = normal(0, 16, 32, 64, scale=1.0)
    p = model.init(KEY, x[:1])["params"]
    return lambda p, x: jnp.mean(model.apply({"params": p}, x[None]) ** 2), p, (x,)


@case
def lstm() -> Model:
    return of_cell(linen.OptimizedLSTMCell(128))


@case
def gru() -> Model:
    return of_cell(linen.GRUCell(128))


@case
def unrolled() -> Model:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        for _ in range(8):
            x = jnp.tanh(x @ p[0])
        return jnp.sum(x**2)

    return loss, three()[:1], (X,)


@case
def neural_ode() -> Model:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return x + 0.1 * jnp.tanh(x @ p[0]) @ p[1], None

        return jnp.sum(lax.scan(step, x, None, length=16)[0] ** 2)

    return loss, three()[:2], (X,)


def block(p: Any, x: jax.Array, heads: int = 4, causal: bool = True) -> jax.Array:
    length, width = x.shape
    y = layer_norm(x, p["scale1"], p["bias1"])
    q, k, v = jnp.split((y @ p["qkv"]).reshape(length, heads, -1), 3, axis=-1)
    scores = jnp.einsum("thk,shk->hts", q, k) * (width // heads) ** -0.5
    if causal:
        scores = jnp.where(np.tril(np.ones((length, length), bool)), scores, -1e9)
    y = jnp.einsum("hts,shk->thk", jax.nn.softmax(scores), v).reshape(length, width)
    x = x + y @ p["o"]
    y = layer_norm(x, p["scale2"], p["bias2"])
    return x + jax.nn.gelu(y @ p["up"] + p["up_bias"]) @ p["down"] + p["down_bias"]


def block_params(width: int = 128) -> dict[str, jax.Array]:
    shapes = {"qkv": (width, 3 * width), "o": (width, width), "up": (width, 4 * width)}
    shapes |= {"down": (4 * width, width)}
    p = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    p |= {name: jnp.ones(width) for name in ("scale1", "scale2")}
    p |= {name: jnp.zeros(width) for name in ("bias1", "bias2", "down_bias")}
    return p | {"up_bias": jnp.zeros(4 * width)}


def language_model(
    layers: Callable[[Any, jax.Array], jax.Array], blocks: Any, tied: bool = False
) -> Model:
    def loss(p: Any, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        x = layers(p["blocks"], p["embed"][tokens] + p["position"])
        out = p["embed"].T if tied else p["out"]
        return jax.vmap(cross_entropy)(x @ out, labels).mean()

    p = {"embed": normal(6, 1000, 128, scale=0.02), "position": normal(7, 64, 128)}
    p |= {"blocks": blocks} | ({} if tied else {"out": normal(8, 128, 1000)})
    return loss, p, (integers(1000, 8, 64), integers(999, 8, 64))


def by_loop(remat: bool = False) -> Callable[[Any, jax.Array], jax.Array]:
    one = jax.checkpoint(block) if remat else block

    def layers(blocks: Any, x: jax.Array) -> jax.Array:
        for p in blocks:
            x = one(p, x)
        return x

    return layers


def by_scan(remat: bool = False) -> Callable[[Any, jax.Array], jax.Array]:
    def step(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        return block(p, x), None

    one = jax.checkpoint(step) if remat else step
    return lambda blocks, x: lax.scan(one, x, blocks)[0]


def together(blocks: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *blocks)


@case
def gpt() -> Model:
    return language_model(by_loop(), [block_params() for _ in range(4)])


@case
def gpt_with_remat() -> Model:
    return language_model(by_loop(remat=True), [block_params() for _ in range(4)])


@case
def gpt_by_scan() -> Model:
    return language_model(by_scan(), together([block_params() for _ in range(4)]))


@case
def gpt_by_scan_with_remat() -> Model:
    blocks = together([block_params() for _ in range(4)])
    return language_model(by_scan(remat=True), blocks)


@case
def gpt_with_tied_embedding() -> Model:
    return language_model(by_loop(), [block_params() for _ in range(2)], tied=True)


@case
def gpt_in_bfloat16() -> Model:
    loss, p, batch = gpt()

    def narrow(p: Any, *batch: jax.Array) -> jax.Array:
        return loss(jax.tree.map(lambda x: x.astype(jnp.bfloat16), p), *batch)

    return lambda p, *b: narrow(p, *b).astype(jnp.float32), p, batch


@case
def llama() -> Model:
    """RMS norm, rotary positions, grouped queries and a gated network."""

    def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale

    def turned(x: jax.Array) -> jax.Array:
        angle = jnp.arange(64)[:, None] / 1e4 ** (jnp.arange(16) / 16)
        sin, cos = jnp.sin(angle)[:, None], jnp.cos(angle)[:, None]
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    def layers(blocks: Any, x: jax.Array) -> jax.Array:
        for p in blocks:
            y = norm(x, p["scale1"])
            q = turned((y @ p["q"]).reshape(64, 4, 32))
            k, v = jnp.split((y @ p["kv"]).reshape(64, 2, 64), 2, axis=-1)
            k, v = (jnp.repeat(z, 2, axis=1) for z in (turned(k), v))
            scores = jnp.einsum("thk,shk->hts", q, k) / 32**0.5
            scores = jnp.where(np.tril(np.ones((64, 64), bool)), scores, -1e9)
            y = jnp.einsum("hts,shk->thk", jax.nn.softmax(scores), v)
            x = x + y.reshape(64, 128) @ p["o"]
            y = norm(x, p["scale2"])
            gate, up = jnp.split(y @ p["up"], 2, axis=-1)
            x = x + (jax.nn.silu(gate) * up) @ p["down"]
        return x

    shapes = {"q": (128, 128), "kv": (128, 128), "o": (128, 128)}
    shapes |= {"up": (128, 704), "down": (352, 128)}
    p = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    p |= {"scale1": jnp.ones(128), "scale2": jnp.ones(128)}
    return language_model(layers, [p] * 3)


@case
def mixture_of_experts() -> Model:
    def layers(blocks: Any, x: jax.Array) -> jax.Array:
        for p in blocks:
            gate = jax.nn.softmax(x @ p["gate"])
            gate = jnp.where(gate == gate.max(-1, keepdims=True), gate, 0)
            y = jax.nn.relu(jnp.einsum("td,edf->etf", x, p["up"]))
            x = x + jnp.einsum("etf,efd,te->td", y, p["down"], gate)
        return x

    p = {"gate": normal(0, 128, 8), "up": normal(1, 8, 128, 256, scale=0.1)}
    p |= {"down": normal(2, 8, 256, 128, scale=0.1)}
    return language_model(layers, [p] * 2)


@case
def mamba() -> Model:
    """Short convolutions, and a state that is scanned with steps of the input."""

    def layers(blocks: Any, x: jax.Array) -> jax.Array:
        for p in blocks:
            u, gate = jnp.split(x @ p["in"], 2, axis=-1)
            padded = jnp.pad(u, ((3, 0), (0, 0)))
            u = sum(padded[i : i + 64] * p["conv"][i] for i in range(4))
            u = jax.nn.silu(u)
            dt = jax.nn.softplus(u @ p["dt"])
            b, c = jnp.split(u @ p["bc"], 2, axis=-1)
            decay = -jnp.exp(p["a"])

            def step(h: jax.Array, now: Any, decay: Any = decay) -> Any:
                u, dt, b, c = now
                h = h * jnp.exp(dt[:, None] * decay) + (dt * u)[:, None] * b
                return h, h @ c

            _, y = lax.scan(step, jnp.zeros((128, 8)), (u, dt, b, c))
            x = x + (y + u * p["d"]) * jax.nn.silu(gate) @ p["out"]
        return x

    p = {"in": normal(0, 128, 256), "conv": normal(1, 4, 128), "a": jnp.zeros((128, 8))}
    p |= {"dt": normal(2, 128, 128), "bc": normal(3, 128, 16), "d": jnp.ones(128)}
    return language_model(layers, [p | {"out": normal(4, 128, 128)}] * 2)


def convolve(x: jax.Array, w: jax.Array, step: int = 1, **options: Any) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, w, (step, step), "SAME", dimension_numbers=numbers, **options
    )


def standardized(x: jax.Array) -> jax.Array:
    x = x - x.mean((1, 2), keepdims=True)
    return x * lax.rsqrt((x * x).mean((1, 2), keepdims=True) + 1e-5)


IMAGES = normal(5, 16, 32, 32, 3, scale=1.0)


@case
def cnn() -> Model:
    def loss(p: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        x = image[None]
        for w in p["convs"]:
            x = jax.nn.relu(convolve(x, w, 2))
        return cross_entropy(x.reshape(-1) @ p["out"], label)

    sizes = (3, 32, 64, 128, 256)
    pairs = enumerate(itertools.pairwise(sizes))
    convs = [normal(i, 3, 3, *pair) for i, pair in pairs]
    p = {"convs": convs, "out": normal(9, 1024, 10)}
    return loss, p, (IMAGES, integers(10, 16))


@case
def resnet() -> Model:
    def loss(p: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        x = convolve(image[None], p["first"])
        for a, b, scale in p["blocks"]:
            y = jax.nn.relu(standardized(convolve(x, a)) * scale)
            x = x + standardized(convolve(y, b))
        return cross_entropy(x.mean((0, 1, 2)) @ p["out"], label)

    def part(i: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        return normal(i, 3, 3, 32, 32), normal(i + 9, 3, 3, 32, 32), jnp.ones(32)

    p = {"first": normal(0, 3, 3, 3, 32), "blocks": [part(i) for i in range(3)]}
    return loss, p | {"out": normal(1, 32, 10)}, (IMAGES, integers(10, 16))


@case
def separable_convolutions() -> Model:
    def loss(p: Any, image: jax.Array) -> jax.Array:
        x = convolve(image[None], p["first"])
        for deep, wide in p["rest"]:
            x = jax.nn.relu(convolve(x, deep, feature_group_count=64))
            x = jax.nn.relu(convolve(x, wide))
        return jnp.mean(x**2)

    rest = [(normal(i, 3, 3, 1, 64), normal(i, 1, 1, 64, 64)) for i in range(3)]
    return loss, {"first": normal(0, 3, 3, 3, 64), "rest": rest}, (IMAGES,)


@case
def u_net() -> Model:
    def loss(p: Any, image: jax.Array) -> jax.Array:
        a = jax.nn.relu(convolve(image[None], p["a"]))
        b = jax.nn.relu(convolve(a, p["b"], 2))
        c = jax.nn.relu(convolve(b, p["c"], 2))
        b = jnp.concatenate([jnp.repeat(jnp.repeat(c, 2, 1), 2, 2), b], -1)
        b = jax.nn.relu(convolve(b, p["d"]))
        a = jnp.concatenate([jnp.repeat(jnp.repeat(b, 2, 1), 2, 2), a], -1)
        return jnp.mean((convolve(a, p["e"])[0] - image) ** 2)

    shapes = {"a": (3, 16), "b": (16, 32), "c": (32, 64), "d": (96, 32), "e": (48, 3)}
    p = {name: normal(i, 3, 3, *s) for i, (name, s) in enumerate(shapes.items())}
    return loss, p, (IMAGES,)


@case
def dilated_signals() -> Model:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        for i, w in enumerate(p):
            y = lax.conv_general_dilated(
                x[None], w, (1,), "SAME", rhs_dilation=(2**i,),
                dimension_numbers=("NWC", "WIO", "NWC"),
            )[0]  # fmt: skip
            a, b = jnp.split(y, 2, axis=-1)
            x = x + jnp.tanh(a) * jax.nn.sigmoid(b)
        return jnp.mean(x**2)

    return loss, [normal(i, 3, 64, 128) for i in range(4)], (normal(0, 8, 256, 64),)


@case
def vit() -> Model:
    def loss(p: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        x = image.reshape(8, 4, 8, 4, 3).transpose(0, 2, 1, 3, 4).reshape(64, 48)
        x = jnp.concatenate([p["class"][None], x @ p["patch"]]) + p["position"]
        for layer in p["blocks"]:
            x = block(layer, x, causal=False)
        return cross_entropy(x[0] @ p["out"], label)

    p = {"patch": normal(0, 48, 128), "class": jnp.zeros(128)}
    p |= {"position": normal(1, 65, 128), "out": normal(2, 128, 10)}
    p |= {"blocks": [block_params() for _ in range(3)]}
    return loss, p, (IMAGES, integers(10, 16))


@case
def mixer() -> Model:
    def loss(p: Any, x: jax.Array) -> jax.Array:
        for a, b, c, d in p:
            x = x + (jax.nn.gelu(x.T @ a) @ b).T
            x = x + jax.nn.gelu(x @ c) @ d
        return jnp.mean(x**2)

    shapes = ((64, 128), (128, 64), (128, 512), (512, 128))
    p = [tuple(normal(i, *s) for i, s in enumerate(shapes)) for _ in range(2)]
    return loss, p, (normal(0, 16, 64, 128, scale=1.0),)


@case
def graph() -> Model:
    def loss(p: Any, x: jax.Array, edges: jax.Array) -> jax.Array:
        for own, sent in p:
            message = jax.nn.relu(x[edges[0]] @ sent)
            x = jax.nn.relu(x @ own + jax.ops.segment_sum(message, edges[1], 64))
        return jnp.mean(x**2)

    p = [(normal(i, 128, 128), normal(i + 3, 128, 128)) for i in range(3)]
    return loss, p, (normal(0, 16, 64, 128, scale=1.0), integers(64, 16, 2, 200))


@case
def physics() -> Model:
    """The residual of a heat equation at a point: second derivatives in the loss."""

    def value(p: Any, point: jax.Array) -> jax.Array:
        for w in p[:-1]:
            point = jnp.tanh(point @ w)
        return jnp.dot(point, p[-1])

    def loss(p: Any, point: jax.Array) -> jax.Array:
        slope = jax.grad(value, 1)(p, point)
        bend = jax.jvp(
            lambda z: jax.grad(value, 1)(p, z)[0], (point,), (jnp.array([1.0, 0.0]),)
        )[1]
        return (slope[1] - bend) ** 2

    p = [normal(0, 2, 128), normal(1, 128, 128), normal(2, 128, 128), normal(3, 128)]
    return loss, p, (normal(4, 64, 2, scale=1.0),)


@case
def variational() -> Model:
    def loss(p: Any, x: jax.Array, noise: jax.Array) -> jax.Array:
        mean, log = jnp.split(jnp.tanh(x @ p[0]) @ p[1], 2)
        z = mean + jnp.exp(log) * noise
        told = jnp.tanh(z @ p[2]) @ p[3]
        return jnp.sum((told - x) ** 2) + jnp.sum(mean**2 + jnp.exp(log) - log)

    shapes = ((512, 256), (256, 64), (32, 256), (256, 512))
    p = [normal(i, *s) for i, s in enumerate(shapes)]
    return loss, p, (X, normal(9, 32, 32, scale=1.0))


@case
def parts_of_experts() -> Model:
    """Kernels taken by the example from a stack, and convolutions used twice."""

    def loss(p: Any, x: jax.Array, which: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(x @ p[which]) ** 2)

    return loss, normal(0, 8, 512, 128, scale=0.05), (X, integers(8, 32))


def temporary(compiled: Any) -> float:
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def wide(tree: Any) -> Any:
    def one(x: Any) -> Any:
        x = np.asarray(x)
        return x.astype(np.float64) if x.dtype == np.float32 else x

    return jax.tree.map(one, tree)


def error_of(loss: Any, p: Any, batch: Any, found: Any) -> float:
    """Compare with float64, or with float32 where the loss allows no other."""
    try:
        with jax.enable_x64(True):
            wanted = jax.jit(stacked(loss))(wide(p), *wide(batch))
    except TypeError:
        wanted = jax.jit(stacked(loss))(p, *batch)
    pairs = list(zip(*map(jax.tree.leaves, (wide(found), wide(wanted))), strict=True))
    size = np.sqrt(sum(float(np.sum(np.square(b))) for _, b in pairs))
    return max(float(np.linalg.norm(a - b)) for a, b in pairs) / size


def ratio(found: dict[str, list[float]], other: str) -> float:
    pairs = zip(found["ours"], found[other], strict=True)
    return median(a / max(b, 1e-9) for a, b in pairs)


def traced(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    start = time.process_time()
    found = jax.jit(lambda *args: function(*args)).trace(*args)
    return found, time.process_time() - start


def measured(name: str, rounds: int) -> dict[str, Any]:
    loss, p, batch = LOSSES[name]()
    variants = {"plain": plain(loss), "ours": optaxclip.clipped_grad(loss, LIMIT)}
    variants["vmap"] = stacked(loss)
    found: dict[str, dict[str, list[float]]]
    found = {key: {v: [] for v in variants} for key in KINDS}
    memory, steps = {}, {}
    for variant, function in variants.items():
        program, _ = traced(function, p, *batch)
        start = time.process_time()
        steps[variant] = program.lower().compile()
        found["compile"][variant] = [time.process_time() - start]
        memory[variant] = temporary(steps[variant])
        flops = steps[variant].cost_analysis().get("flops", 0.0)
        found["flops"][variant] = [flops]
        jax.block_until_ready(steps[variant](p, *batch))
    for _ in range(rounds):
        for variant, function in variants.items():
            found["trace"][variant].append(traced(function, p, *batch)[1])
            start = time.perf_counter()
            jax.block_until_ready(steps[variant](p, *batch))
            found["time"][variant].append(time.perf_counter() - start)
    example = jax.tree.map(lambda x: x[0], batch)
    rows = optaxclip.explain(loss, p, *example).rows
    ways = ", ".join(f"{n} {way}" for way, n in Counter(r.way for r in rows).items())
    error = error_of(loss, p, batch, steps["ours"](p, *batch))
    return {"name": name, "error": error, "ways": ways, "memory": memory, **found}


def line(row: dict[str, Any], markdown: bool) -> str:
    memory = row["memory"]
    bound = 2 * memory["plain"] + 0.15 * memory["vmap"] + 0.5
    star = memory["ours"] > min(bound, 1.05 * memory["vmap"] + 0.5)
    cells = [f"{row['error']:.0e}", *(f"{memory[v]:.1f}" for v in memory)]
    cells[2] += "*" if star else ""
    for kind in KINDS:
        cells += [f"{ratio(row[kind], other):.2f}" for other in ("plain", "vmap")]
    return joined(row["name"], cells, row["ways"], markdown)


def joined(name: str, cells: list[str], ways: str, markdown: bool) -> str:
    if markdown:
        return "| " + " | ".join([name.replace("_", " "), *cells, ways]) + " |"
    return f"{name:26}" + "".join(f"{cell:>8}" for cell in cells) + f"  {ways}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", nargs="*", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    print(f"JAX {jax.__version__} on {jax.devices()[0].device_kind}")
    heads = ["error", "plain", "ours", "vmap"]
    heads += [head for kind in KINDS for head in (kind, "/vmap")]
    print(joined("loss", heads, "ways", options.markdown))
    if options.markdown:
        print("|---" * (len(heads) + 2) + "|")
    rows = []
    for name in options.losses:
        rows.append(measured(name, options.rounds))
        print(line(rows[-1], options.markdown), flush=True)
    memory = median(r["memory"]["ours"] / max(r["memory"]["plain"], 0.5) for r in rows)
    over = [
        f"{kind} {median(ratio(r[kind], 'plain') for r in rows):.2f}" for kind in KINDS
    ]
    print(f"medians over plain: memory {memory:.2f}, {', '.join(over)}")


if __name__ == "__main__":
    main()
