"""What a task is: a model, its data, and the score that says how well it learned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = Any
Examples = Any
Logits = Callable[[Params, jax.Array], jax.Array]  # of one input


@dataclass(frozen=True)
class Task:
    """Something to learn.

    Attributes:
      name: its name, for files and commands.
      title: what it is, for people.
      init: makes parameters from a key.
      batch: makes examples, with a leading axis, from a key and a variant's numbers.
      loss: the loss of one example.
      score: how well it was learned, from parameters and a key; the lower, the better,
        and zero is perfect.
      measured: what the score is.
      direction: makes the optimizer without its learning rate.
      rates: the learning rates to try.
      steps: how many steps to train.
      failed: a score at or above this counts as diverged, and so does NaN.
      solved: a score at or below this counts as learned.
      variants: the numbers that `batch` takes, by the variant's name.
      part: the entry of the parameters that strategies act on; all by default.
      rest: the learning rate of the other parameters, as a share.
    """

    name: str
    title: str
    init: Callable[[jax.Array], Params]
    batch: Callable[[jax.Array, jax.Array], Examples]
    loss: Callable[[Params, Any], jax.Array]
    score: Callable[[Params, jax.Array], jax.Array]
    measured: str
    direction: Callable[[], optax.GradientTransformation]
    rates: tuple[float, ...]
    steps: int
    failed: float
    solved: float
    variants: Mapping[str, tuple[float, ...]] = field(
        default_factory=lambda: {"clean": ()}
    )
    part: str | None = None
    rest: float = 1.0


def half_decades(lowest: int, highest: int) -> tuple[float, ...]:
    """Return the powers of √10 between two exponents of it."""
    return tuple(float(f"{10 ** (k / 2):.3g}") for k in range(lowest, highest + 1))


def normal(key: jax.Array, *shape: int, gain: float = 1.0) -> jax.Array:
    """Draw a matrix whose outputs are as large as its inputs, times a gain."""
    fan_in = 1
    for size in shape[:-1]:
        fan_in *= size
    return gain * jax.random.normal(key, shape) / jnp.sqrt(fan_in)


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    return -jax.nn.log_softmax(logits.astype(jnp.float32))[label]


def loss_of(logits: Logits) -> Callable[[Params, Any], jax.Array]:
    """The loss of one pair of an input and its label."""

    def loss(params: Params, example: tuple[jax.Array, jax.Array]) -> jax.Array:
        given, label = example
        return cross_entropy(logits(params, given), label)

    return loss


def error_rate(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of wrong answers, or NaN where an answer is not finite."""
    wrong = jnp.mean(jnp.argmax(logits, -1) != labels)
    return jnp.where(jnp.isfinite(logits).all(), wrong, jnp.nan)
