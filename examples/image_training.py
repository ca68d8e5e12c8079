"""The training loop of image_classification.py."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from command_line import until_interrupted

import jax
import jax.numpy as jnp
import numpy as np
import optax
from checkpoints import Checkpoints
from flax import nnx
from image_data import Images
from image_network import CNN, augment, normalize
from image_report import EPOCH_HEADER, epoch_line
from named_strategies import Strategy
from tqdm import tqdm

import optaxclip
from optaxclip.tuning import History

BATCH, TEST_BATCH = 128, 500


class TrainState(NamedTuple):
    """What changes from step to step."""

    params: optax.Params
    optimizer: optax.OptState


def make_train_step(
    model: nnx.GraphDef[CNN], optimizer: Strategy, data: Images
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Combine augmentation, gradient, clipping, update and report in one function."""

    def mean_loss(params: optax.Params, images: jax.Array, labels: jax.Array):
        logits = nnx.merge(model, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    # Donated: the new state reuses the memory of the old one.
    @partial(jax.jit, donate_argnames="state")
    def train_step(
        state: TrainState, images: jax.Array, labels: jax.Array, key: jax.Array
    ):
        images = normalize(augment(images, key, data.padding, data.flip))
        loss, grads = jax.value_and_grad(mean_loss)(state.params, images, labels)
        # Some strategies use the loss; the others ignore it.
        updates, opt_state = optimizer.update(
            grads, state.optimizer, state.params, value=loss
        )
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, **optaxclip.report(opt_state)}
        return TrainState(params, opt_state), metrics

    return train_step


def make_test(
    model: nnx.GraphDef[CNN], data: Images
) -> Callable[[optax.Params], float]:
    """Return a function that measures the accuracy on the test images."""

    @jax.jit
    def count_right(params: optax.Params, images: jax.Array, labels: jax.Array):
        guesses = nnx.merge(model, params)(normalize(images)).argmax(-1)
        return jnp.sum(guesses == labels)

    def accuracy(params: optax.Params) -> float:
        right = 0
        for first in range(0, len(data.test_labels), TEST_BATCH):
            rows = slice(first, first + TEST_BATCH)
            images, labels = data.test_images[rows], data.test_labels[rows]
            right += int(count_right(params, images, labels))
        return right / len(data.test_labels)

    return accuracy


def shuffled(data: Images, seed: int, epoch: int) -> np.ndarray:
    """Return the rows of each batch of an epoch; the same ones after a restart."""
    order = np.random.default_rng((seed, epoch)).permutation(len(data.train_labels))
    steps = max(1, len(order) // BATCH)
    return order[: steps * BATCH].reshape(steps, -1)


def batches(data: Images, seed: int, epoch: int) -> Iterator[tuple[Any, ...]]:
    """Yield the images, labels and random key of each step of an epoch."""
    every = shuffled(data, seed, epoch)
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    for rows, own in zip(every, jax.random.split(key, len(every)), strict=True):
        yield data.train_images[rows], data.train_labels[rows], own


class Progress(NamedTuple):
    """What was trained so far: the state, all reports, and an accuracy an epoch."""

    state: TrainState
    history: History
    accuracies: list[float]

    def save(self, checkpoints: Checkpoints) -> None:
        """Save the end of an epoch."""
        reports = {key: x.tolist() for key, x in self.history.columns.items()}
        told = {"reports": reports, "accuracies": self.accuracies}
        checkpoints.save(len(self.accuracies), self.state, told)

    def resume(self, checkpoints: Checkpoints) -> "Progress":
        """Return the progress at the last end of an epoch that was saved."""
        found = checkpoints.latest(self.state)
        if found is None:
            return self
        epoch, state, told = found
        print(f"Resumed after epoch {epoch}.")
        reports = {key: np.array(x) for key, x in told["reports"].items()}
        return Progress(state, History.from_scan(reports), told["accuracies"])


def train(
    data: Images, clip: Strategy, epochs: int, seed: int, saved: Checkpoints | None
) -> tuple[History, list[float]]:
    """Train, and print one line per epoch.

    Ctrl-C ends it early. With checkpoints, it begins where the last run ended.

    Returns:
      The loss and the report of each step, and the accuracy after each epoch.
    """
    model, params = nnx.split(CNN(data.train_images.shape[1:], nnx.Rngs(seed)))
    optimizer = optax.chain(clip, optax.sgd(0.01, momentum=0.9))
    train_step, test = make_train_step(model, optimizer, data), make_test(model, data)
    new = Progress(TrainState(params, optimizer.init(params)), History(), [])
    state, history, accuracies = new.resume(saved) if saved else new
    steps = len(shuffled(data, seed, 0))
    bar = tqdm(total=epochs * steps, initial=len(history), mininterval=0.5)
    with until_interrupted(history), bar:
        bar.write(EPOCH_HEADER)
        for epoch in range(len(accuracies), epochs):
            start = time.perf_counter()
            for batch in batches(data, seed, epoch):
                state, metrics = train_step(state, *batch)
                history.append(metrics)
                bar.update()
            accuracies.append(test(state.params))
            seconds = time.perf_counter() - start
            bar.write(epoch_line(history, steps, accuracies[-1], seconds))
            if saved:
                Progress(state, history, accuracies).save(saved)
    if saved:
        saved.wait()
    return history, accuracies
