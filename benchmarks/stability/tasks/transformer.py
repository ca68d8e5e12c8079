"""A small transformer on characters with Adam: clean, corrupt and with spikes.

In one step of a hundred, all of the batch is noise, or its gradient is 10, 100 or 1000
times too large, as in the experiments of SPAM (Huang et al., arXiv:2501.06842).
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from benchmarks.stability.task import (
    Params,
    Task,
    cross_entropy,
    half_decades,
    normal,
)
from benchmarks.stability.tasks.text import CHARACTERS, characters

CONTEXT, BATCH, WIDTH, HEADS, LAYERS = 32, 4, 32, 2, 2
BAD = 0.01
VARIANTS = {
    "clean": (0.0, 1.0),
    "corrupt batches": (1.0, 1.0),
    "spikes of 10": (0.0, 10.0),
    "spikes of 100": (0.0, 100.0),
    "spikes of 1000": (0.0, 1000.0),
}


def init(dtype: jnp.dtype, key: jax.Array) -> Params:
    keys = iter(jax.random.split(key, 3 + 4 * LAYERS))
    params = {
        "embed": normal(next(keys), CHARACTERS, WIDTH, gain=CHARACTERS**0.5),
        "position": normal(next(keys), CONTEXT, WIDTH, gain=CONTEXT**0.5),
        "head": normal(next(keys), WIDTH, CHARACTERS),
    }
    for layer in range(LAYERS):
        params[f"block{layer}"] = {
            "gain": jnp.ones((2, WIDTH)),
            "attention": normal(next(keys), WIDTH, 3 * WIDTH),
            "mix": normal(next(keys), WIDTH, WIDTH),
            "up": normal(next(keys), WIDTH, 4 * WIDTH),
            "down": normal(next(keys), 4 * WIDTH, WIDTH),
        }
    return jax.tree.map(lambda x: x.astype(dtype), params)


def batch(text: Path | None, key: jax.Array, variant: jax.Array):
    """Rows of the text, and the factor on the gradient of each."""
    corrupt, factor = variant
    row_key, bad_key, noise_key = jax.random.split(key, 3)
    train = jnp.asarray(characters(text)[0])
    starts = jax.random.randint(row_key, (BATCH, 1), 0, len(train) - CONTEXT - 1)
    rows = train[starts + jnp.arange(CONTEXT + 1)].astype(jnp.int32)
    bad = jax.random.bernoulli(bad_key, BAD)
    noise = jax.random.randint(noise_key, rows.shape, 0, CHARACTERS)
    rows = jnp.where(bad & (corrupt > 0), noise, rows)
    return rows, jnp.broadcast_to(jnp.where(bad, factor, 1.0), BATCH)


def normalized(x: jax.Array, gain: jax.Array) -> jax.Array:
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)
    return gain * (x * jax.lax.rsqrt(square + 1e-6).astype(x.dtype))


def attended(block: Params, x: jax.Array) -> jax.Array:
    """Causal attention over one row."""
    size = WIDTH // HEADS
    joint = (x @ block["attention"]).reshape(len(x), 3, HEADS, size)
    queries, keys, values = joint[:, 0], joint[:, 1], joint[:, 2]
    scores = jnp.einsum("qhd,khd->hqk", queries, keys) / size**0.5
    causal = jnp.tril(jnp.ones(scores.shape[1:], bool))
    shares = jax.nn.softmax(jnp.where(causal, scores, -1e9).astype(jnp.float32))
    mixed = jnp.einsum("hqk,khd->qhd", shares.astype(x.dtype), values)
    return mixed.reshape(x.shape) @ block["mix"]


def logits(params: Params, row: jax.Array) -> jax.Array:
    x = params["embed"][row] + params["position"][: len(row)]
    for layer in range(LAYERS):
        block = params[f"block{layer}"]
        x = x + attended(block, normalized(x, block["gain"][0]))
        hidden = jax.nn.gelu(normalized(x, block["gain"][1]) @ block["up"])
        x = x + hidden @ block["down"]
    return normalized(x, jnp.ones((), x.dtype)) @ params["head"]


def row_loss(params: Params, row: jax.Array) -> jax.Array:
    return jnp.mean(jax.vmap(cross_entropy)(logits(params, row[:-1]), row[1:]))


def loss(params: Params, example: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The loss, of which only the gradient is multiplied by the factor."""
    row, factor = example
    value = row_loss(params, row)
    return value + (factor - 1) * (value - jax.lax.stop_gradient(value))


def score(text: Path | None, params: Params, key: jax.Array) -> jax.Array:
    """The perplexity of what is held out."""
    del key
    test = jnp.asarray(characters(text)[1])
    starts = jnp.linspace(0, len(test) - CONTEXT - 1, 64).astype(jnp.int32)
    rows = test[starts[:, None] + jnp.arange(CONTEXT + 1)].astype(jnp.int32)
    return jnp.exp(jnp.mean(jax.vmap(row_loss, (None, 0))(params, rows)))


def transformer(name: str, dtype: jnp.dtype, variants: dict, text: Path | None) -> Task:
    return Task(
        name=name,
        title=f"transformer on characters, {jnp.dtype(dtype).name}, Adam",
        init=partial(init, dtype),
        batch=partial(batch, text),
        loss=loss,
        score=partial(score, text),
        measured="perplexity of a character of held-out text",
        direction=optax.scale_by_adam,
        rates=half_decades(-7, -2),
        steps=300,
        failed=30.0,
        solved=0.0,
        variants=variants,
    )


def tasks(text: Path | None) -> tuple[Task, ...]:
    clean = {"clean": VARIANTS["clean"]}
    return (
        transformer("transformer", jnp.float32, VARIANTS, text),
        transformer("transformer_bf16", jnp.bfloat16, clean, text),
    )
