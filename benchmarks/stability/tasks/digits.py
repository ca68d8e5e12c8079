"""Handwritten digits of 8 by 8 pixels, with scikit-learn's order shuffled once."""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from benchmarks.stability.task import Logits, Params, error_rate

TRAIN = 1280


@cache
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return images and labels to train on, and those to test on."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = (images[order] / 16).astype(np.float32)
    labels = labels[order].astype(np.int32)
    return images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:]


def score_of(logits: Logits) -> Callable[[Params, jax.Array], jax.Array]:
    """The share of wrong answers on the images to test on."""

    def score(params: Params, key: jax.Array) -> jax.Array:
        del key
        *_, images, labels = map(jnp.asarray, digits())
        return error_rate(jax.vmap(logits, (None, 0))(params, images), labels)

    return score
