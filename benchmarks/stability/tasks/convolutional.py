"""A deep network without normalization on the digits: which rate still trains?

Brock et al., High-performance large-scale image recognition without normalization,
2021, arXiv:2102.06171: clipping by unit is what large batches and rates need there.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from benchmarks.stability.task import Params, Task, half_decades, loss_of, normal
from benchmarks.stability.tasks.digits import digits, score_of

CHANNELS, BLOCKS, EXAMPLES = 12, 6, 6400


def init(key: jax.Array) -> Params:
    keys = iter(jax.random.split(key, BLOCKS + 2))
    params = {
        "first": normal(next(keys), 9, CHANNELS),
        "last": normal(next(keys), 16 * CHANNELS, 10),
        "last_bias": jnp.zeros(10),
    }
    for block in range(BLOCKS):
        params[f"block{block}"] = {
            "kernel": normal(next(keys), 9 * CHANNELS, CHANNELS, gain=2**0.5),
            "bias": jnp.zeros(CHANNELS),
        }
    return params


def patches(x: jax.Array, stride: int) -> jax.Array:
    """Each place's 3 by 3 neighbors, so that a convolution is one matrix product."""
    size = x.shape[0]
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    shifted = [
        padded[i : i + size : stride, j : j + size : stride]
        for i in range(3)
        for j in range(3)
    ]
    return jnp.concatenate(shifted, axis=-1)


def logits(params: Params, image: jax.Array) -> jax.Array:
    x = patches(image.reshape(8, 8, 1), 2) @ params["first"]
    for number in range(BLOCKS):
        block = params[f"block{number}"]
        x = x + patches(jax.nn.relu(x), 1) @ block["kernel"] + block["bias"]
    return x.ravel() @ params["last"] + params["last_bias"]


def batch(size: int, key: jax.Array, variant: jax.Array):
    del variant
    images, labels, *_ = map(jnp.asarray, digits())
    rows = jax.random.randint(key, (size,), 0, len(labels))
    return images[rows], labels[rows]


def convolutional(size: int) -> Task:
    return Task(
        name=f"convolutional{size}",
        title=f"norm-free convolutions, digits in batches of {size}, momentum",
        init=init,
        batch=partial(batch, size),
        loss=loss_of(logits),
        score=score_of(logits),
        measured="share of wrong answers",
        direction=partial(optax.trace, 0.9, nesterov=True),
        rates=half_decades(-7, -1),
        steps=EXAMPLES // size,
        failed=0.8,
        solved=0.1,
    )


TASKS = tuple(convolutional(size) for size in (32, 256))
