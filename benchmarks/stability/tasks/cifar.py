"""CIFAR-10 and a small convolutional network: is a limit of 0.5 too tight?

Many scripts clip at 0.5. Images are averaged to 16 by 16 pixels, and the two
convolutions have strides, so that ten seeds take minutes on a CPU.
"""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.stability.task import (
    Params,
    Task,
    error_rate,
    half_decades,
    loss_of,
    normal,
)
from benchmarks.stability.tasks.convolutional import patches
from examples.image_data import cifar10

LAYERS = {"first": (27, 16), "second": (144, 32), "third": (512, 64), "last": (64, 10)}
BATCH = 32


@cache
def images(folder: Path | None) -> tuple[np.ndarray, ...]:
    """Return images and labels to train on, and those to test on."""
    if folder is None:
        raise SystemExit("cifar10 needs --data, the folder cifar-10-batches-py.")
    data = cifar10(folder)
    train, test = map(halved, (data.train_images, data.test_images))
    return train, data.train_labels, test, data.test_labels


def halved(pixels: np.ndarray) -> np.ndarray:
    """Average 2 by 2 pixels, and map 0..255 to -1..1."""
    squares = pixels.reshape(len(pixels), 16, 2, 16, 2, 3)
    return (squares.mean((2, 4)) / 127.5 - 1).astype(np.float32)


def init(key: jax.Array) -> Params:
    keys = jax.random.split(key, len(LAYERS))
    return {
        name: {
            "kernel": normal(own, *shape, gain=1 if name == "last" else 2**0.5),
            "bias": jnp.zeros(shape[1]),
        }
        for own, (name, shape) in zip(keys, LAYERS.items(), strict=True)
    }


def logits(params: Params, image: jax.Array) -> jax.Array:
    def layer(name: str, x: jax.Array) -> jax.Array:
        return x @ params[name]["kernel"] + params[name]["bias"]

    x = jax.nn.relu(layer("first", patches(image, 2)))
    x = jax.nn.relu(layer("second", patches(x, 2)))
    return layer("last", jax.nn.relu(layer("third", x.ravel())))


def batch(folder: Path | None, key: jax.Array, variant: jax.Array):
    del variant
    train, labels, *_ = map(jnp.asarray, images(folder))
    rows = jax.random.randint(key, (BATCH,), 0, len(labels))
    return train[rows], labels[rows]


def score(folder: Path | None, params: Params, key: jax.Array) -> jax.Array:
    """The share of wrong answers on the images to test on."""
    del key
    *_, test, labels = map(jnp.asarray, images(folder))
    return error_rate(jax.vmap(logits, (None, 0))(params, test), labels)


def tasks(folder: Path | None) -> tuple[Task, ...]:
    return (
        Task(
            name="cifar10",
            title="CIFAR-10 at 16 by 16 pixels, two convolutions, momentum",
            init=init,
            batch=partial(batch, folder),
            loss=loss_of(logits),
            score=partial(score, folder),
            measured="share of wrong answers",
            direction=partial(optax.trace, 0.9),
            rates=half_decades(-5, -1),
            steps=300,
            failed=0.85,
            solved=0.0,
        ),
    )
