"""Temporal order: which two symbols were seen, long before the end of a sequence?

Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks,
2013, arXiv:1211.5063. A vanilla tanh network and plain SGD.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from benchmarks.stability.task import Params, Task, error_rate, half_decades, loss_of

SYMBOLS, CLASSES, HIDDEN, BATCH = 6, 4, 32, 16


def init(key: jax.Array) -> Params:
    """A recurrent matrix of 1.1 times a rotation: it does not forget."""
    keys = jax.random.split(key, 3)
    return {
        "input": 0.03 * jax.random.normal(keys[0], (SYMBOLS, HIDDEN)),
        "recurrent": jax.nn.initializers.orthogonal(1.1)(keys[1], (HIDDEN, HIDDEN)),
        "bias": jnp.zeros(HIDDEN),
        "output": jax.random.normal(keys[2], (HIDDEN, CLASSES)) / HIDDEN**0.5,
        "output_bias": jnp.zeros(CLASSES),
    }


def draw(length: int, key: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
    """Distractors with an A or B near the start and another near the middle."""
    keys = jax.random.split(key, 4)
    symbols = jax.random.randint(keys[0], (number, length), 2, SYMBOLS)
    first = jax.random.randint(keys[1], (number,), length // 10, length // 5 + 1)
    second = jax.random.randint(keys[2], (number,), 2 * length // 5, length // 2 + 1)
    seen = jax.random.randint(keys[3], (2, number), 0, 2)
    place = jnp.arange(length)
    symbols = jnp.where(place == first[:, None], seen[0][:, None], symbols)
    symbols = jnp.where(place == second[:, None], seen[1][:, None], symbols)
    return jax.nn.one_hot(symbols, SYMBOLS), 2 * seen[0] + seen[1]


def batch(length: int, key: jax.Array, variant: jax.Array):
    del variant
    return draw(length, key, BATCH)


def logits(params: Params, sequence: jax.Array) -> jax.Array:
    inputs = sequence @ params["input"] + params["bias"]

    def read(state: jax.Array, symbol: jax.Array):
        return jnp.tanh(symbol + state @ params["recurrent"]), None

    state, _ = jax.lax.scan(read, jnp.zeros(HIDDEN), inputs)
    return state @ params["output"] + params["output_bias"]


def score(length: int, params: Params, key: jax.Array) -> jax.Array:
    sequences, answers = draw(length, key, 256)
    return error_rate(jax.vmap(logits, (None, 0))(params, sequences), answers)


def recurrent(length: int) -> Task:
    return Task(
        name=f"recurrent{length}",
        title=f"temporal order, {length} symbols, tanh network, SGD",
        init=init,
        batch=partial(batch, length),
        loss=loss_of(logits),
        score=partial(score, length),
        measured="share of wrong answers",
        direction=optax.identity,
        rates=half_decades(-5, 0),
        steps=1000,
        failed=0.7,
        solved=0.01,
    )


TASKS = tuple(recurrent(length) for length in (20, 50, 100))
