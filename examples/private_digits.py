"""What private_training.py does: DP-SGD on digits, for several budgets side by side."""

from functools import partial
from pathlib import Path
from typing import Any

from command_line import until_interrupted

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
from dp_accounting.pld import PLDAccountant
from image_data import Images
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from tqdm import trange

import optaxclip

EXPECTED_BATCH, CHUNK = 256, 384  # A chunk holds nearly every sample.
MAX_NORM, LEARNING_RATE, HIDDEN = 1.0, 0.5, 64
TEST_EVERY = 5
# Colors of Okabe and Ito, which the color-blind tell apart.
COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

Params = dict[str, jax.Array]


def noise_multiplier(
    epsilon: float, delta: float, sampling_rate: float, steps: int
) -> float:
    """Ask dp-accounting for the noise, in units of the sensitivity, of a budget."""

    def training(multiplier: float) -> dp_accounting.DpEvent:
        step = dp_accounting.PoissonSampledDpEvent(
            sampling_rate, dp_accounting.GaussianDpEvent(multiplier)
        )
        return dp_accounting.SelfComposedDpEvent(step, steps)

    # A grid ten times coarser than the default one gives a little more noise.
    accountant = partial(PLDAccountant, value_discretization_interval=1e-3)
    return dp_accounting.calibrate_dp_mechanism(accountant, training, epsilon, delta)


def poisson_samples(
    number: int, sampling_rate: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw each example by itself; pad, so that one shape is compiled.

    Returns:
      The rows of the examples, and which of them are no padding.
    """
    rows = np.flatnonzero(random.random(number) < sampling_rate)
    mask = np.arange(-(-len(rows) // CHUNK) * CHUNK) < len(rows)
    return np.pad(rows, (0, len(mask) - len(rows))), mask


def initial(key: jax.Array) -> Params:
    return {
        "w1": jax.random.normal(key, (64, HIDDEN)) / 8,
        "b1": jnp.zeros(HIDDEN),
        "w2": jnp.zeros((HIDDEN, 10)),
        "b2": jnp.zeros(10),
    }


def logits(params: Params, image: jax.Array) -> jax.Array:
    pixels = image.ravel() / 127.5 - 1
    hidden = jnp.tanh(pixels @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def loss(params: Params, image: jax.Array, label: jax.Array) -> jax.Array:
    """The loss of ONE example."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, image), label)


gradient = optaxclip.clipped_grad(loss, MAX_NORM, denominator=EXPECTED_BATCH)


def optimizer(multiplier: jax.Array, key: jax.Array) -> optax.GradientTransformation:
    """Add noise to the clipped gradient before anything else is done with it."""
    variance = jnp.square(multiplier * gradient.sensitivity())
    return optax.chain(optax.add_noise(variance, 0.0, key), optax.sgd(LEARNING_RATE))


@jax.jit
@partial(jax.vmap, in_axes=(0, 0, 0, 0, None, None, None))
def train_step(params, state, multiplier, key, images, labels, mask):
    """Make one step for each budget, with the same examples and noise of its own."""
    grads = gradient(params, images, labels, mask=mask)
    updates, state = optimizer(multiplier, key).update(grads, state, params)
    return optax.apply_updates(params, updates), state


@jax.jit
@partial(jax.vmap, in_axes=(0, None, None))
def accuracy(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
    guesses = jax.vmap(logits, (None, 0))(params, images).argmax(-1)
    return jnp.mean(guesses == labels)


def train(multipliers: list[float], data: Images, steps: int, seed: int) -> np.ndarray:
    """Train; return the accuracies on test images, by budget and over the steps."""
    number = len(data.train_labels)
    random = np.random.default_rng(seed)
    first, *keys = jax.random.split(jax.random.key(seed), len(multipliers) + 1)
    keys, scale = jnp.stack(keys), jnp.asarray(multipliers)
    params: Any = jax.vmap(lambda _: initial(first))(keys)
    state = jax.vmap(lambda p, m, k: optimizer(m, k).init(p))(params, scale, keys)
    found = []
    for step in trange(1, steps + 1, leave=False, desc=f"seed {seed}"):
        rows, mask = poisson_samples(number, EXPECTED_BATCH / number, random)
        batch = data.train_images[rows], data.train_labels[rows], mask
        params, state = train_step(params, state, scale, keys, *batch)
        if step % TEST_EVERY == 0:
            found.append(accuracy(params, data.test_images, data.test_labels))
    return np.stack(found, axis=1)


def compare(
    epsilons: list[float], delta: float, data: Images, steps: int, seeds: int
) -> dict[str, np.ndarray]:
    """Train for each budget, and without noise; return accuracies by seed and step."""
    rate = EXPECTED_BATCH / len(data.train_labels)
    multipliers = [noise_multiplier(e, delta, rate, steps) for e in epsilons]
    for epsilon, multiplier in zip(epsilons, multipliers, strict=True):
        deviation = multiplier * gradient.sensitivity()
        print(
            f"ε = {epsilon:g} allows {steps} steps with noise of {multiplier:.2f} "
            f"sensitivities, {deviation:.4f} for each parameter."
        )
    found: list[np.ndarray] = []
    with until_interrupted(found):
        for seed in range(seeds):
            found.append(train([*multipliers, 0.0], data, steps, seed))
    names = [f"ε = {epsilon:g}" for epsilon in epsilons] + ["no noise"]
    return dict(zip(names, np.stack(found, axis=1), strict=True))


def draw(found: dict[str, np.ndarray], delta: float, path: Path) -> None:
    """Plot the accuracies over the steps: the mean, and the range, of the seeds."""
    # A figure made without pyplot uses Agg, which needs no screen.
    figure = Figure(figsize=(6.4, 4.4), dpi=125, layout="constrained")
    axes = figure.subplots()
    colors = dict(zip(found, COLORS, strict=False)) | {"no noise": "black"}
    for name, accuracies in found.items():
        steps = TEST_EVERY * np.arange(1, accuracies.shape[1] + 1)
        style: Any = {"color": colors[name]}
        low, high = accuracies.min(axis=0), accuracies.max(axis=0)
        axes.fill_between(steps, low, high, alpha=0.15, linewidth=0, **style)
        style |= {"linestyle": ":" if name == "no noise" else "-"}
        axes.plot(steps, accuracies.mean(axis=0), label=name, linewidth=2, **style)
    axes.set(xlabel="step", ylabel="accuracy on test images", ylim=(0.5, 1), xlim=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0
    )
    seeds = len(next(iter(found.values())))
    figure.suptitle(f"DP-SGD on digits, δ = {delta:g}, {seeds} seeds")
    figure.savefig(path)
