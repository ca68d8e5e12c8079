"""A Wasserstein GAN needs a critic of bounded slope, so the paper clips its weights.

The critic's mean over real samples minus its mean over generated ones estimates how far
apart they are, but only if the critic is nowhere steep. Clipping every weight to
[-0.01, 0.01] after each step ensures that. Without it the critic and its estimate grow
for as long as it is trained, whatever the samples are like.

The generator learns both ways here, since RMSprop is insensitive to the size of the
critic's gradients. The benefit of the clip is that the estimate shows how training
goes; its cost is visible, too: a clipped critic is a simple function, so the modes are
blurred.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

import optaxclip

STEPS, CRITIC_STEPS, BATCH = 2000, 5, 128
LEARNING_RATE, MAX_WEIGHT = 5e-4, 0.01
MODES, SPREAD = 8, 0.05
EARLY, LATE = slice(20, 120), slice(-100, None)
PICTURE = Path("wgan.png")


class Network(nnx.Module):
    """Two hidden layers of ReLU units."""

    def __init__(self, inputs: int, hidden: int, outputs: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(inputs, hidden, rngs=rngs)
        self.second = nnx.Linear(hidden, hidden, rngs=rngs)
        self.last = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.second(nnx.relu(self.first(x)))))


def centers():
    """Return the centers of the modes, on a circle of radius 2."""
    angle = 2 * jnp.pi * jnp.arange(MODES) / MODES
    return 2 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def real(key):
    """Draw from a mixture of normal distributions."""
    mode_key, noise_key = jax.random.split(key)
    mode = jax.random.randint(mode_key, (BATCH,), 0, MODES)
    return centers()[mode] + SPREAD * jax.random.normal(noise_key, (BATCH, 2))


def generated(generator, key):
    """Generate samples from normal noise."""
    return generator(jax.random.normal(key, (BATCH, 2)))


def train(critic_clip):
    """Train both networks; return samples, and the critic's estimates and slopes."""
    generator = Network(2, 64, 2, nnx.Rngs(0))
    critic = Network(2, 128, 1, nnx.Rngs(1))
    rmsprop = optax.rmsprop(LEARNING_RATE)
    generator_optimizer = nnx.Optimizer(generator, rmsprop, wrt=nnx.Param)
    critic_optimizer = nnx.Optimizer(
        critic, optax.chain(rmsprop, *critic_clip), wrt=nnx.Param
    )

    def advantage(critic, generator, key):
        """The critic's mean over real samples minus that over generated ones."""
        real_key, noise_key = jax.random.split(key)
        fake = generated(generator, noise_key)
        return jnp.mean(critic(real(real_key))) - jnp.mean(critic(fake))

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def critic_steps(carry, key):
        generator, critic, critic_optimizer = carry
        grads = nnx.grad(lambda c: -advantage(c, generator, key))(critic)
        critic_optimizer.update(critic, grads)
        return carry

    @nnx.jit
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def steps(carry, key):
        generator, critic, generator_optimizer, critic_optimizer = carry
        keys = jax.random.split(key, CRITIC_STEPS + 1)
        critic_keys, generator_key = keys[:-1], keys[-1]
        critic_steps((generator, critic, critic_optimizer), critic_keys)
        estimate, grads = nnx.value_and_grad(
            lambda g: advantage(critic, g, generator_key)
        )(generator)
        generator_optimizer.update(generator, grads)
        slopes = jax.vmap(jax.grad(lambda x: critic(x)[0]))(real(generator_key))
        weights = nnx.state(critic, nnx.Param)
        return carry, {
            "estimate": estimate,
            "slope": jnp.max(jnp.linalg.norm(slopes, axis=1)),
            "weight": optaxclip.tree_norm(weights, ord=jnp.inf),
        }

    everything = generator, critic, generator_optimizer, critic_optimizer
    _, history = steps(everything, jax.random.split(jax.random.key(0), STEPS))
    keys = jax.random.split(jax.random.key(1), 4)
    samples = jnp.concatenate([generated(generator, key) for key in keys])
    return np.asarray(samples), jax.tree.map(np.asarray, history)


def quality(samples):
    """Count the modes with enough samples nearby, and the share of samples near any."""
    distance = np.linalg.norm(samples[:, None] - np.asarray(centers()), axis=2)
    near = distance.min(axis=1) < 0.5
    counts = np.bincount(distance.argmin(axis=1)[near], minlength=MODES)
    return int((counts > len(samples) / MODES / 5).sum()), float(near.mean())


def draw(runs, path):
    """Plot each run's samples over real ones, and the critics' estimates."""
    figure = Figure(figsize=(12, 4.2), dpi=120, layout="constrained")
    *scatters, estimates = figure.subplots(1, len(runs) + 1)
    truth = np.concatenate(
        [real(key) for key in jax.random.split(jax.random.key(2), 4)]
    )
    colors = ("#1f6fb4", "#d1495b")
    for axes, color, (title, (samples, history)) in zip(
        scatters, colors, runs.items(), strict=True
    ):
        axes.scatter(*truth.T, s=4, color="#bbbbbb", label="real")
        axes.scatter(*samples.T, s=4, color=color, alpha=0.6, label="generated")
        axes.set(title=title, xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")
        size = np.abs(history["estimate"])
        estimates.plot(size, color=color, label=title, linewidth=0.8)
    scatters[0].legend(frameon=False, loc="center", markerscale=3)
    estimates.set(title="size of the critic's estimate", xlabel="step", yscale="log")
    estimates.legend(frameon=False)
    figure.savefig(path)


def main():
    """Train with and without the clip, print the results, check the claim."""
    runs = {
        "critic's weights clipped": train([optaxclip.clip_weights(MAX_WEIGHT)]),
        "not clipped": train([]),
    }
    columns = "modes  samples near one    estimate      slope  weight"
    print(f"{columns:>80}")
    for title, (samples, history) in runs.items():
        modes, near = quality(samples)
        estimate = np.abs(history["estimate"][-100:]).mean()
        slope, weight = history["slope"][-1], history["weight"].max()
        print(f"{title:<25} {modes} of {MODES} {near:17.0%}", end="")
        print(f" {estimate:11.2g} {slope:10.2g} {weight:7.2g}")
    draw(runs, PICTURE)
    print(f"The picture is in {PICTURE}.")

    (samples, clipped), (_, free) = runs.values()
    assert clipped["weight"].max() <= np.float32(MAX_WEIGHT), "within, at every step"
    assert quality(samples)[0] > MODES / 2, "the generator finds most modes"
    early, late = (np.abs(clipped["estimate"][part]).mean() for part in (EARLY, LATE))
    assert late < early / 2, "the estimate falls as the samples come near"
    early, late = (np.abs(free["estimate"][part]).mean() for part in (EARLY, LATE))
    assert late > early * 2, "without the clip it rises meanwhile"
    assert free["slope"][-1] > 1000 * clipped["slope"].max(), "as the critic gets steep"


if __name__ == "__main__":
    main()
