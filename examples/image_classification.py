"""Train a convolutional network with clipped gradients, and see what clipping did.

    python image_classification.py                             digits, in seconds
    python image_classification.py --data cifar-10-batches-py  CIFAR-10, in minutes
    python image_classification.py --limit 5                   another limit
    python image_classification.py --strategy agc              another strategy

Many scripts clip the norm at 0.5. For this network that is far too tight: on CIFAR-10
the norm is about 4, so every step is cut to an eighth of its length, and learning slows
down accordingly. The report of the clipper shows this, and suggests a better limit.
"""

import argparse
import inspect
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from image_data import ImageDataError, Images, cifar10, digits
from image_network import CNN, augment, normalize
from image_report import EPOCH_HEADER, History, draw, epoch_line, stack, verdict
from tqdm import tqdm

import optaxclip

BATCH = 128
TEST_BATCH = 500
FETCH_EVERY = 10
DEFAULT_LIMIT = 0.5

Strategy = optax.GradientTransformationExtraArgs


class TrainState(NamedTuple):
    """Everything that changes from step to step."""

    params: optax.Params
    optimizer: optax.OptState
    key: jax.Array


def make_train_step(
    model: nnx.GraphDef[CNN], optimizer: Strategy, data: Images
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Combine augmentation, gradient, clipping, update and report in one function."""

    def mean_loss(params: optax.Params, images: jax.Array, labels: jax.Array):
        logits = nnx.merge(model, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    # Donated: the new state reuses the memory of the old one.
    @partial(jax.jit, donate_argnames="state")
    def train_step(state: TrainState, images: jax.Array, labels: jax.Array):
        key, augment_key = jax.random.split(state.key)
        images = normalize(augment(images, augment_key, data.padding, data.flip))
        loss, grads = jax.value_and_grad(mean_loss)(state.params, images, labels)
        # Some strategies use the loss; the others ignore it.
        updates, opt_state = optimizer.update(
            grads, state.optimizer, state.params, value=loss
        )
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, **one_group(optaxclip.report(opt_state))}
        return TrainState(params, opt_state, key), metrics

    return train_step


def one_group(report: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Where a strategy has several limits, show the one that is exceeded the most."""
    told = {key.rpartition("/")[2]: numbers for key, numbers in report.items()}
    norm, limit = told["pre_norm"].ravel(), told["limit"].ravel()
    worst = jnp.argmax(norm / limit)
    return {
        "norm_before": norm[worst],
        "norm_after": told["post_norm"].ravel()[worst],
        "limit": limit[worst],
        "clipped": told["clipped_fraction"],
    }


def train(
    data: Images, clip: Strategy, epochs: int, seed: int
) -> tuple[History, float]:
    """Train, print one line per epoch, and return all steps and the accuracy."""
    model, params = nnx.split(CNN(data.train_images.shape[1:], nnx.Rngs(seed)))
    optimizer = optax.chain(clip, optax.sgd(0.01, momentum=0.9))
    train_step = make_train_step(model, optimizer, data)
    state = TrainState(params, optimizer.init(params), jax.random.key(seed))

    @jax.jit
    def count_right(params: optax.Params, images: jax.Array, labels: jax.Array):
        guesses = nnx.merge(model, params)(normalize(images)).argmax(-1)
        return jnp.sum(guesses == labels)

    shuffle = np.random.default_rng(seed)
    steps = max(1, len(data.train_labels) // BATCH)
    history: list[dict[str, Any]] = []
    accuracy = 0.0
    with tqdm(total=epochs * steps, unit="step", mininterval=0.5) as bar:
        bar.write(EPOCH_HEADER)
        for epoch in range(1, epochs + 1):
            start = time.perf_counter()
            order = shuffle.permutation(len(data.train_labels))
            batches = order[: steps * BATCH].reshape(steps, -1)
            for first in range(0, steps, FETCH_EVERY):
                metrics = []
                for rows in batches[first : first + FETCH_EVERY]:
                    images, labels = data.train_images[rows], data.train_labels[rows]
                    state, step_metrics = train_step(state, images, labels)
                    metrics.append(step_metrics)
                # Reading a number waits for it, so read those of many steps at once.
                history += jax.device_get(metrics)
                bar.update(len(metrics))
                loss = np.mean([step["loss"] for step in history[-len(metrics) :]])
                clipped = np.mean([step["clipped"] > 0 for step in history[-steps:]])
                bar.set_postfix(loss=f"{loss:.3f}", clipped=f"{clipped:.0%}")
            right = 0
            for first in range(0, len(data.test_labels), TEST_BATCH):
                rows = slice(first, first + TEST_BATCH)
                images, labels = data.test_images[rows], data.test_labels[rows]
                right += int(count_right(state.params, images, labels))
            accuracy = right / len(data.test_labels)
            seconds = time.perf_counter() - start
            bar.write(epoch_line(epoch, stack(history[-steps:]), accuracy, seconds))
    return stack(history), accuracy


def kinds_of_layers(params: nnx.State) -> Any:
    """Name each parameter's group, for a strategy that limits groups of them."""
    return jax.tree.map_with_path(
        lambda path, _: "conv" if "conv" in str(path) else "dense", params
    )


def strategies() -> dict[str, Callable[..., Strategy]]:
    """Find every strategy that clips gradients."""
    rooms = ("optaxclip.strategies.", "optaxclip.spectral.")
    return {
        name: function
        for name, function in inspect.getmembers(optaxclip, inspect.isfunction)
        if function.__module__.startswith(rooms)
    }


def build(name: str, limit: float | None) -> tuple[Strategy, float]:
    """Build a strategy; without a limit, use the strategy's default, or else 0.5."""
    known = strategies()
    if name not in known:
        raise ValueError(f"There is no strategy {name}, only {', '.join(known)}.")
    parameters = inspect.signature(known[name]).parameters
    fixed = {"labels": kinds_of_layers, "min_factor": 0.1}
    given = {name: fixed[name] for name in parameters if name in fixed}
    own = next(p for p in parameters.values() if p.name not in given)
    default = DEFAULT_LIMIT if own.default is inspect.Parameter.empty else own.default
    limit = default if limit is None else limit
    return known[name](**{own.name: limit}, **given), limit


class Parser(argparse.ArgumentParser):
    """Reports errors in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main() -> None:
    parser = Parser(description="Train a CNN and see what clipping did.")
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="CIFAR-10's python batches")
    add("--strategy", default="clip_global_norm", metavar="NAME")
    add("--limit", type=float, metavar="X", help="default: the strategy's, or 0.5")
    add("--epochs", type=int, default=10)
    add("--seed", type=int, default=0)
    add("--output", type=Path, default="image_classification.png", help="the picture")
    args = parser.parse_args()
    if args.epochs < 1 or not 0 <= args.seed < 2**32:
        parser.error("--epochs must be at least 1 and --seed from 0 to 2**32 - 1.")
    if not args.output.parent.is_dir() or args.output.is_dir():
        parser.error(f"--output must be a file in an existing folder: {args.output}.")
    try:
        clip, limit = build(args.strategy, args.limit)
        data = cifar10(args.data) if args.data else digits()
    except (ValueError, ImageDataError) as error:
        parser.error(str(error))
    history, accuracy = train(data, clip, args.epochs, args.seed)
    above = history["norm_after"] > history["limit"] * (1 + 1e-5)
    assert not above.any(), "what is left of a gradient is within the limit"
    conclusion = verdict(history, limit)
    print(conclusion)
    title = f"{args.strategy}({limit:g}) on {data.name}: test accuracy {accuracy:.1%}"
    draw(history, args.epochs, title, conclusion, args.output)
    print(f"The picture is in {args.output}.")


if __name__ == "__main__":
    main()
