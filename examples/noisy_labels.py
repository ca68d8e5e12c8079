"""Train on digits of which some are broken, with per-example and global clipping.

    python noisy_labels.py

A twentieth of the training images have overly bright pixels and wrong labels. Their
gradients are many times larger than others. If a batch is clipped as a whole, one of
them determines its direction; if examples are clipped one by one, each has one vote.
"""

from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any

from command_line import Parser, until_interrupted

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import optaxclip

BROKEN = 0.05
BATCH = 64
EPOCHS = 12
LIMIT = 1.0
# Black, and two colors of Okabe and Ito, which the color-blind can tell apart.
COLORS = {
    "no clipping": "#000000",
    "global clipping": "#d55e00",
    "per-example clipping": "#0072b2",
}

Params = dict[str, jax.Array]


def broken_digits(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Break some training images; the test images stay intact."""
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    images = images[order].astype(np.float32) / 16
    labels = labels[order].astype(np.int32)
    train, train_labels = images[:1280].copy(), labels[:1280].copy()
    broken = rng.random(1280) < BROKEN
    train[broken] *= 50
    train_labels[broken] = (train_labels[broken] + rng.integers(1, 10)) % 10
    return train, train_labels, broken, images[1280:], labels[1280:]


@jax.jit
def initial() -> Params:
    first, second = jax.random.split(jax.random.key(0))
    return {
        "w1": jax.random.normal(first, (64, 64)) / 8,
        "b1": jnp.zeros(64),
        "w2": jax.random.normal(second, (64, 10)) / 8,
        "b2": jnp.zeros(10),
    }


def logits(params: Params, image: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(image @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def loss(params: Params, image: jax.Array, label: jax.Array) -> jax.Array:
    """The loss of ONE example."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, image), label)


def mean_gradient(params: Params, images: jax.Array, labels: jax.Array) -> Params:
    def mean_loss(params: Params) -> jax.Array:
        return jax.vmap(loss, (None, 0, 0))(params, images, labels).mean()

    return jax.grad(mean_loss)(params)


def train(
    gradient: Callable[..., Params],
    optimizer: optax.GradientTransformation,
    data: tuple[np.ndarray, ...],
) -> list[float]:
    """Train, and return the accuracy on intact images after each epoch."""
    images, labels, _, test_images, test_labels = data

    @jax.jit
    def step(params: Params, state: Any, images: jax.Array, labels: jax.Array):
        updates, state = optimizer.update(gradient(params, images, labels), state)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def accuracy(params: Params) -> jax.Array:
        guesses = jax.vmap(logits, (None, 0))(params, test_images).argmax(-1)
        return jnp.mean(guesses == test_labels)

    params: Any = initial()
    state = optimizer.init(params)
    shuffle = np.random.default_rng(1)
    history = []
    for _ in range(EPOCHS):
        for rows in shuffle.permutation(len(labels)).reshape(-1, BATCH):
            params, state = step(params, state, images[rows], labels[rows])
        history.append(float(accuracy(params)))
    return history


def draw(
    curves: dict[str, list[float]],
    norms: np.ndarray,
    broken: np.ndarray,
    caption: str,
    path: Path,
) -> None:
    figure = Figure(figsize=(6.4, 6.4), dpi=125, layout="constrained")
    above, below = figure.subplots(2, height_ratios=(3, 2))
    for name, accuracies in curves.items():
        epochs = range(1, EPOCHS + 1)
        above.plot(epochs, accuracies, color=COLORS[name], label=name, linewidth=2)
    above.set(xlabel="epoch", ylabel="accuracy on intact images", ylim=(0, 1))
    above.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    bins = np.geomspace(norms.min() + 1e-6, norms.max(), 40)
    kinds = ("intact", ~broken, "#0072b2"), ("broken", broken, "#d55e00")
    for name, chosen, color in kinds:
        below.hist(norms[chosen], bins, color=color, label=name, alpha=0.7)
    below.axvline(LIMIT, color="black", linestyle=":", label="limit")
    below.set(xlabel="norm of an example's first gradient", ylabel="images")
    below.set(xscale="log", yscale="log")
    below.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(fill(caption, 75), fontsize="medium")
    figure.savefig(path)


def main() -> None:
    args = Parser(__doc__, picture="noisy_labels.png").parse_args()
    data = broken_digits(np.random.default_rng(0))
    images, labels, broken = data[:3]
    sgd = optax.sgd(0.3)
    clipped_sgd = optax.chain(optaxclip.clip_global_norm(LIMIT), sgd)
    ways = {
        "no clipping": (mean_gradient, sgd),
        "global clipping": (mean_gradient, clipped_sgd),
        "per-example clipping": (optaxclip.clipped_grad(loss, LIMIT), sgd),
    }
    curves: dict[str, list[float]] = {}
    with until_interrupted(curves):
        for name, way in ways.items():
            curves[name] = train(*way, data)
            print(f"{name:22} accuracy {curves[name][-1]:.1%}")
    measure = jax.jit(optaxclip.per_example_norms(loss))
    norms = np.asarray(measure(initial(), images, labels))
    print(
        f"First gradients: broken images {np.median(norms[broken]):.0f}, whole ones "
        f"{np.median(norms[~broken]):.1f} (medians)."
    )
    final = {name: accuracies[-1] for name, accuracies in curves.items()}
    told = ", ".join(f"{accuracy:.1%} with {name}" for name, accuracy in final.items())
    draw(curves, norms, broken, f"Final accuracy: {told}.", args.output)
    print(f"The picture is in {args.output}.")
    if len(final) == len(ways):
        assert final["per-example clipping"] > 0.9
        assert final["per-example clipping"] > final["global clipping"] + 0.05


if __name__ == "__main__":
    main()
