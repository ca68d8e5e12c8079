"""Linear regression whose optimum is known: heavy tails, skewed noise, rare features.

Noise of infinite variance is what clipping is for (Zhang et al., arXiv:1912.03194). On
skewed noise a constant limit leaves a bias (Koloskova et al., arXiv:2305.01588), and a
feature that is rare and strong is all in the gradients that a limit cuts.
"""

import jax
import jax.numpy as jnp
import optax

from benchmarks.stability.task import Params, Task, half_decades

FEATURES, BATCH = 16, 4
NORMAL, SKEWED, RARE = 2.0, 1.0, 0.03


def optimum() -> jax.Array:
    return jnp.where(jnp.arange(FEATURES) % 2, -1.0, 1.0)


def init(key: jax.Array) -> Params:
    del key
    return {"weights": jnp.zeros(FEATURES)}


def stable(key: jax.Array, alpha: jax.Array) -> jax.Array:
    """Draw from a symmetric stable distribution, by Chambers, Mallows and Stuck.

    An `alpha` of 2 gives a normal distribution of variance 2.
    """
    angle_key, length_key = jax.random.split(key)
    angle = jax.random.uniform(
        angle_key, (BATCH,), minval=-jnp.pi / 2, maxval=jnp.pi / 2
    )
    length = jax.random.exponential(length_key, (BATCH,))
    side = (jnp.cos((1 - alpha) * angle) / length) ** ((1 - alpha) / alpha)
    return jnp.sin(alpha * angle) / jnp.cos(angle) ** (1 / alpha) * side


def batch(key: jax.Array, variant: jax.Array):
    """Features of which the first is constant and the last may be rare and strong."""
    alpha, skewed, rarity = variant
    keys = jax.random.split(key, 4)
    features = jax.random.normal(keys[0], (BATCH, FEATURES)).at[:, 0].set(1.0)
    present = jax.random.bernoulli(keys[1], rarity, (BATCH,)) / jnp.sqrt(rarity)
    features = features.at[:, -1].multiply(present)
    skew = jnp.exp(1.5 * jax.random.normal(keys[2], (BATCH,))) - jnp.exp(1.125)
    noise = (1 - skewed) * stable(keys[3], alpha) + skewed * skew
    return features, features @ optimum() + noise


def loss(params: Params, example: tuple[jax.Array, jax.Array]) -> jax.Array:
    features, target = example
    return (features @ params["weights"] - target) ** 2 / 2


def score(params: Params, key: jax.Array) -> jax.Array:
    del key
    return jnp.mean((params["weights"] - optimum()) ** 2)


TASKS = (
    Task(
        name="regression",
        title="linear regression with a known optimum, SGD",
        init=init,
        batch=batch,
        loss=loss,
        score=score,
        measured="mean squared error of the weights, 1 at the start",
        direction=optax.identity,
        rates=half_decades(-6, 0),
        steps=1000,
        failed=1.0,
        solved=0.05,
        variants={
            "normal noise": (NORMAL, 0.0, 1.0),
            "stable noise 1.8": (1.8, 0.0, 1.0),
            "stable noise 1.5": (1.5, 0.0, 1.0),
            "stable noise 1.2": (1.2, 0.0, 1.0),
            "skewed noise": (NORMAL, SKEWED, 1.0),
            "a rare feature": (NORMAL, 0.0, RARE),
        },
    ),
)
