"""Digits of which some are broken, and digits that are all right, as a control.

A broken image has a wrong label, and may be far too bright; then its gradient is many
times larger than those of others. Clipping a batch cannot tell which was at fault.
"""

import jax
import jax.numpy as jnp
import optax

from benchmarks.stability.task import Params, Task, half_decades, loss_of, normal
from benchmarks.stability.tasks.digits import digits, score_of

HIDDEN, BATCH = 32, 32


def init(key: jax.Array) -> Params:
    first, second = jax.random.split(key)
    return {
        "first": normal(first, 64, HIDDEN),
        "first_bias": jnp.zeros(HIDDEN),
        "last": normal(second, HIDDEN, 10),
        "last_bias": jnp.zeros(10),
    }


def logits(params: Params, image: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(image @ params["first"] + params["first_bias"])
    return hidden @ params["last"] + params["last_bias"]


def batch(key: jax.Array, variant: jax.Array):
    """Some of the labels wrong, and the images of these many times as bright."""
    wrong, brightness = variant
    keys = jax.random.split(key, 3)
    images, labels, *_ = map(jnp.asarray, digits())
    rows = jax.random.randint(keys[0], (BATCH,), 0, len(labels))
    # An image is either always broken or never.
    broken = jax.random.uniform(jax.random.key(0), labels.shape)[rows] < wrong
    other = jax.random.randint(jax.random.key(1), labels.shape, 1, 10)[rows]
    images, labels = images[rows], labels[rows]
    images = jnp.where(broken[:, None], brightness * images, images)
    return images, jnp.where(broken, (labels + other) % 10, labels)


TASKS = (
    Task(
        name="labels",
        title="digits of which some are broken, small network, SGD",
        init=init,
        batch=batch,
        loss=loss_of(logits),
        score=score_of(logits),
        measured="share of wrong answers",
        direction=optax.identity,
        rates=half_decades(-5, 1),
        steps=400,
        failed=0.8,
        solved=0.05,
        variants={
            "clean": (0.0, 1.0),
            "30% wrong labels": (0.3, 1.0),
            "5% wrong and bright": (0.05, 50.0),
        },
    ),
    Task(
        name="control",
        title="digits that are all right, small network, Adam",
        init=init,
        batch=batch,
        loss=loss_of(logits),
        score=score_of(logits),
        measured="share of wrong answers",
        direction=optax.scale_by_adam,
        rates=half_decades(-7, -1),
        steps=400,
        failed=0.8,
        solved=0.05,
        variants={"clean": (0.0, 1.0)},
    ),
)
