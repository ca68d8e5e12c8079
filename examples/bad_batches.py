"""What demo.py does: one network is trained twice, with and without clipping."""

from functools import partial
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

from command_line import until_interrupted

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from image_data import Images, digits
from image_network import CNN, augment, normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from tqdm import tqdm

import optaxclip

BATCH, BAD_SHARE, TEST_EVERY = 128, 0.02, 5
LEARNING_RATE, LIMIT = 1e-3, 5.0
LIMITS = {"with clipping": LIMIT, "without": np.inf}
# Two colors of Okabe and Ito, which the color-blind tell apart.
COLORS = {"with clipping": "#0072b2", "without": "#d55e00"}


class Run(NamedTuple):
    """The norm of each step's gradient, and the accuracy after every few steps."""

    norms: np.ndarray
    accuracies: np.ndarray


class Batch(NamedTuple):
    """Images of 0 to 255, and whether someone forgets to normalize them."""

    images: np.ndarray
    labels: np.ndarray
    is_bad: np.ndarray


def make_batches(data: Images, epochs: int, seed: int) -> list[Batch]:
    """Shuffle the images anew in each epoch, and choose the bad batches."""
    random = np.random.default_rng(seed)
    per_epoch = len(data.train_labels) // BATCH
    steps = epochs * per_epoch
    bad = random.choice(steps, round(BAD_SHARE * steps), replace=False)
    orders = [random.permutation(len(data.train_labels)) for _ in range(epochs)]
    rows = np.concatenate([order[: per_epoch * BATCH] for order in orders])
    return [
        Batch(data.train_images[some], data.train_labels[some], np.isin(step, bad))
        for step, some in enumerate(rows.reshape(steps, BATCH))
    ]


def optimizer(limit) -> optax.GradientTransformationExtraArgs:
    """Clip, then let Adam choose the step."""
    clip = optaxclip.clip_global_norm(limit)
    return optax.chain(clip, optax.adam(LEARNING_RATE))


def make_train_step(model: nnx.GraphDef[CNN], data: Images):
    """Return the step of both runs, which takes the limit as an argument."""

    # Donated: the new state reuses the memory of the old one.
    @partial(jax.jit, donate_argnames="state")
    def train_step(state, limit, batch: Batch, key):
        params, opt_state = state
        pixels = augment(batch.images, key, data.padding, data.flip)
        images = jnp.where(batch.is_bad, pixels, normalize(pixels))

        def loss(params):
            logits = nnx.merge(model, params)(images)
            losses = optax.softmax_cross_entropy_with_integer_labels
            return losses(logits, batch.labels).mean()

        grads = jax.grad(loss)(params)
        updates, opt_state = optimizer(limit).update(grads, opt_state, params)
        report = optaxclip.report(opt_state)
        state = optax.apply_updates(params, updates), opt_state
        return state, report["clip_global_norm/pre_norm"]

    return train_step


def train_both_ways(epochs: int, seed: int) -> tuple[dict[str, Run], np.ndarray]:
    """Train side by side; return both runs, and which batches were bad.

    Ctrl-C ends both early, if there is an accuracy to show.
    """
    data = digits()
    model, params = nnx.split(CNN(data.train_images.shape[1:], nnx.Rngs(seed)))
    train_step = make_train_step(model, data)

    @jax.jit
    def accuracy(params):
        guesses = nnx.merge(model, params)(normalize(data.test_images)).argmax(-1)
        return jnp.mean(guesses == data.test_labels)

    batches, key = make_batches(data, epochs, seed), jax.random.key(seed)
    states = {}
    for name, limit in LIMITS.items():
        own = jax.tree.map(jnp.copy, params)
        states[name] = own, optimizer(limit).init(own)
    norms, accuracies = [], []
    with until_interrupted(accuracies):
        for number, batch in enumerate(tqdm(batches, mininterval=0.5), start=1):
            step_key, both = jax.random.fold_in(key, number), []
            for name, limit in LIMITS.items():
                states[name], norm = train_step(states[name], limit, batch, step_key)
                both.append(norm)
            norms.append(jax.device_get(both))
            if number % TEST_EVERY == 0:
                both = [accuracy(params) for params, _ in states.values()]
                accuracies.append(jax.device_get(both))
    # One column for each run.
    columns = np.array(norms).reshape(-1, 2).T, np.array(accuracies).reshape(-1, 2).T
    runs = dict(zip(LIMITS, map(Run, *columns), strict=True))
    return runs, np.array([batch.is_bad for batch in batches[: len(norms)]])


def conclusion(runs: dict[str, Run], is_bad: np.ndarray) -> str:
    """Say what to read off the picture."""
    clipped, free = runs.values()
    return (
        f"Look at the upper panel: with {is_bad.sum()} of {len(is_bad)} batches bad, "
        f"accuracy ends at {clipped.accuracies[-1]:.1%} where a limit of {LIMIT:g} "
        f"clips {np.mean(clipped.norms > LIMIT):.1%} of the steps, and at "
        f"{free.accuracies[-1]:.1%} without clipping."
    )


def draw(runs: dict[str, Run], is_bad: np.ndarray, caption: str, path: Path) -> None:
    """Plot the accuracy above, and the norms of the gradients below."""
    # A figure made without pyplot uses Agg, which needs no screen.
    figure = Figure(figsize=(6.4, 5.8), dpi=125, layout="constrained")
    accuracy, norm = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    steps = len(is_bad)
    for axes in (accuracy, norm):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        for step in np.flatnonzero(is_bad) + 1:
            axes.axvline(step, color="black", linestyle=":", linewidth=1, zorder=0)
    for name, (norms, accuracies) in runs.items():
        tested = TEST_EVERY * np.arange(1, len(accuracies) + 1)
        accuracy.plot(tested, accuracies, color=COLORS[name], label=name, linewidth=2.5)
        norm.plot(np.arange(1, steps + 1), norms, color=COLORS[name], linewidth=1.5)
    accuracy.plot([], [], color="black", linestyle=":", label="bad batch")
    accuracy.set(ylabel="accuracy on test images", ylim=(0, 1.03), xlim=(0, steps))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    accuracy.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    norm.axhline(LIMIT, color="black", linestyle="--", linewidth=1, label="limit")
    norm.set(ylabel="norm before clipping", yscale="log", xlabel="step")
    norm.minorticks_off()
    norm.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 0.95))
    figure.suptitle("One network and seed, with and without clipping")
    figure.supxlabel(fill(caption, 75), fontsize="medium")
    figure.savefig(path)
