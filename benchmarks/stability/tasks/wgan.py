"""A Wasserstein GAN on a ring of normal distributions: its critic has to stay flat.

Arjovsky, Chintala and Bottou, Wasserstein GAN, 2017, arXiv:1701.07875, who clip the
critic's weights to 0.01. Both networks learn at every step, the generator at a fifth of
the critic's rate; strategies act on the critic.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import optax

from benchmarks.stability.task import Params, Task, half_decades, normal

MODES, SPREAD, BATCH, TEST = 8, 0.05, 64, 512
GENERATOR, CRITIC = (2, 32, 32, 2), (2, 64, 64, 1)


def init(key: jax.Array) -> Params:
    generator_key, critic_key = jax.random.split(key)
    return {
        "critic": network(critic_key, CRITIC),
        "generator": network(generator_key, GENERATOR),
    }


def network(key: jax.Array, sizes: tuple[int, ...]) -> Params:
    layers = pairwise(sizes)
    return [
        {
            "kernel": normal(jax.random.fold_in(key, n), *shape),
            "bias": jnp.zeros(shape[1]),
        }
        for n, shape in enumerate(layers)
    ]


def applied(layers: Params, x: jax.Array) -> jax.Array:
    for number, layer in enumerate(layers):
        x = x if number == 0 else jax.nn.relu(x)
        x = x @ layer["kernel"] + layer["bias"]
    return x


def real(key: jax.Array, number: int) -> jax.Array:
    """Draw points around the modes, on a circle of radius 2."""
    mode_key, noise_key = jax.random.split(key)
    angle = 2 * jnp.pi / MODES * jax.random.randint(mode_key, (number,), 0, MODES)
    center = 2 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    return center + SPREAD * jax.random.normal(noise_key, (number, 2))


def batch(key: jax.Array, variant: jax.Array):
    del variant
    real_key, noise_key = jax.random.split(key)
    return real(real_key, BATCH), jax.random.normal(noise_key, (BATCH, 2))


def loss(params: Params, example: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Two losses in one: each network's gradient is that of its own."""
    point, noise = example
    fake = applied(params["generator"], noise)
    fixed = jax.lax.stop_gradient((params["critic"], fake))
    critic = applied(params["critic"], fixed[1]) - applied(params["critic"], point)
    return jnp.sum(critic - applied(fixed[0], fake))


def score(params: Params, key: jax.Array) -> jax.Array:
    """The energy distance between generated and real points, 0 if they are alike."""
    keys = jax.random.split(key, 4)
    fakes = [
        applied(params["generator"], jax.random.normal(k, (TEST, 2))) for k in keys[:2]
    ]
    reals = [real(k, TEST) for k in keys[2:]]

    def apart(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(jnp.linalg.norm(x[:, None] - y[None], axis=-1))

    between = apart(fakes[0], reals[0]) + apart(fakes[1], reals[1])
    return jnp.abs(between - apart(*fakes) - apart(*reals))


TASKS = (
    Task(
        name="wgan",
        title="Wasserstein GAN on a ring, RMSprop",
        init=init,
        batch=batch,
        loss=loss,
        score=score,
        measured="energy distance of generated points",
        direction=optax.scale_by_rms,
        rates=half_decades(-8, -2),
        steps=1000,
        failed=1.0,
        solved=0.05,
        part="critic",
        rest=0.2,
    ),
)
