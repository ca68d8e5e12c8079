"""A Wasserstein GAN needs a critic of bounded slope, so the paper clips its weights.

The critic's mean over real samples minus its mean over generated ones estimates how far
apart they are, but only if the critic is nowhere steep. Clipping every weight to
[-0.01, 0.01] after each step ensures that. Without it the critic and its estimate grow
for as long as it is trained, whatever the samples are like.

The samples of the unclipped critic are the better ones here, and no wonder: RMSprop
divides by the size of the gradients, so a steep critic does the generator no harm, and
a critic whose weights are at most 0.01 is too simple a function to tell a blurred mode
from a sharp one. What the clip buys is a number that says how training goes: with it
the estimate falls as the samples come near, without it it rises meanwhile.

    python wgan.py
"""

from textwrap import fill

from command_line import Parser, until_interrupted, whole_number

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

import optaxclip

CRITIC_STEPS, BATCH = 5, 128
LEARNING_RATE, MAX_WEIGHT = 5e-4, 0.01
BOUNDS = {"weights clipped": MAX_WEIGHT, "not clipped": np.inf}
MODES, SPREAD = 8, 0.05
EARLY, LATE = slice(20, 120), slice(-100, None)


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
    angle = 2 * np.pi * np.arange(MODES) / MODES
    return 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def real(random, *shape):
    """Draw from a mixture of normal distributions."""
    mode = random.integers(0, MODES, shape)
    samples = centers()[mode] + SPREAD * random.standard_normal((*shape, 2))
    return samples.astype(np.float32)


@jax.jit
def train(max_weight, truth, noise):
    """Train both networks; return samples, and the critic's estimates and slopes.

    A step takes a batch of real samples and one of noise for each step of the critic,
    and one more for the generator. An infinite bound clips nothing.
    """
    generator = Network(2, 64, 2, nnx.Rngs(0))
    critic = Network(2, 128, 1, nnx.Rngs(1))
    rmsprop = optax.rmsprop(LEARNING_RATE)
    clipped = optax.chain(rmsprop, optaxclip.clip_weights(max_weight))
    generator_optimizer = nnx.Optimizer(generator, rmsprop, wrt=nnx.Param)
    critic_optimizer = nnx.Optimizer(critic, clipped, wrt=nnx.Param)

    def advantage(critic, generator, truth, noise):
        """The critic's mean over real samples minus that over generated ones."""
        return jnp.mean(critic(truth)) - jnp.mean(critic(generator(noise)))

    @nnx.scan(in_axes=(nnx.Carry, 0, 0), out_axes=nnx.Carry)
    def critic_steps(carry, truth, noise):
        generator, critic, critic_optimizer = carry
        grads = nnx.grad(lambda c: -advantage(c, generator, truth, noise))(critic)
        critic_optimizer.update(critic, grads)
        return carry

    @nnx.scan(in_axes=(nnx.Carry, 0, 0), out_axes=(nnx.Carry, 0))
    def steps(carry, truth, noise):
        generator, critic, generator_optimizer, critic_optimizer = carry
        of_critic = generator, critic, critic_optimizer
        critic_steps(of_critic, truth[:CRITIC_STEPS], noise[:CRITIC_STEPS])
        estimate, grads = nnx.value_and_grad(
            lambda g: advantage(critic, g, truth[-1], noise[-1])
        )(generator)
        generator_optimizer.update(generator, grads)
        slopes = jax.vmap(jax.grad(lambda x: critic(x)[0]))(truth[-1])
        weights = nnx.state(critic, nnx.Param)
        return carry, {
            "estimate": estimate,
            "slope": jnp.max(jnp.linalg.norm(slopes, axis=1)),
            "weight": optaxclip.tree_norm(weights, ord=jnp.inf),
        }

    everything = generator, critic, generator_optimizer, critic_optimizer
    _, history = steps(everything, truth, noise)
    return generator(noise[0].reshape(-1, 2)), history


def quality(samples):
    """Count the modes with enough samples nearby, and the share of samples near any."""
    distance = np.linalg.norm(samples[:, None] - centers(), axis=2)
    near = distance.min(axis=1) < 0.5
    counts = np.bincount(distance.argmin(axis=1)[near], minlength=MODES)
    return int((counts > len(samples) / MODES / 5).sum()), float(near.mean())


def draw(runs, truth, caption, path):
    """Plot each run's samples over real ones, and the critics' estimates."""
    figure = Figure(figsize=(6.4, 6.8), dpi=125, layout="constrained")
    axes = figure.subplot_mosaic("ab;cc", height_ratios=(3, 2))
    scatters, estimates = (axes["a"], axes["b"]), axes["c"]
    colors = ("#0072b2", "#d55e00")  # which the color-blind can tell apart
    for plot, color, (title, (samples, history)) in zip(
        scatters, colors, runs.items(), strict=False
    ):
        plot.scatter(*truth.T, s=4, color="#999999")
        plot.scatter(*samples.T, s=4, color=color, alpha=0.6)
        plot.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")
        plot.set_title(title, color=color)
        estimates.plot(np.abs(history["estimate"]), color=color, linewidth=0.8)
    estimates.set(ylabel="size of the estimate", xlabel="step", yscale="log")
    for plot in axes.values():
        plot.grid(alpha=0.3)
        plot.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(fill(caption, 75), fontsize="medium")
    figure.savefig(path)


def main():
    """Train with and without the clip, print the results, check the claim."""
    parser = Parser(__doc__, picture="wgan.png")
    steps, told = whole_number(500), "default: 2000"
    parser.add_argument("--steps", type=steps, default=2000, metavar="N", help=told)
    args = parser.parse_args()
    random = np.random.default_rng(0)
    shape = args.steps, CRITIC_STEPS + 1, BATCH
    truth = real(random, *shape)
    noise = random.standard_normal((*shape, 2), np.float32)
    runs = {}
    with until_interrupted(runs):
        for title, bound in BOUNDS.items():
            runs[title] = jax.device_get(train(bound, truth, noise))
    columns = "modes  samples near one    estimate      slope  weight"
    print(f"{columns:>80}")
    for title, (samples, history) in runs.items():
        modes, near = quality(samples)
        estimate = np.abs(history["estimate"][-100:]).mean()
        slope, weight = history["slope"][-1], history["weight"].max()
        print(f"{title:<25} {modes} of {MODES} {near:17.0%}", end="")
        print(f" {estimate:11.2g} {slope:10.2g} {weight:7.2g}")
    caption = (
        "Above, real samples (gray) and generated ones. Below, how far apart the "
        "critic says they are: that falls only if its weights are clipped."
    )
    draw(runs, truth[0].reshape(-1, 2), caption, args.output)
    print(f"The picture is in {args.output}.")

    if len(runs) < len(BOUNDS):
        return
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
