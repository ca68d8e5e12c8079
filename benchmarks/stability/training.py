"""Train many runs of one task with one strategy as one program."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optaxclip
from benchmarks.stability.strategies import Strategy
from benchmarks.stability.task import Params, Task


class Runs(NamedTuple):
    """What tells runs apart; every array has one entry for each run."""

    variant: np.ndarray
    limit: np.ndarray
    rate: np.ndarray
    seed: np.ndarray


class Results(NamedTuple):
    """What came of each run; the last three have one entry for each step."""

    score: Any
    loss: Any
    norm: Any
    clipped: Any


def optimizer_of(
    task: Task, strategy: Strategy, limit: jax.Array, rate: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """The task's optimizer with the strategy, and a rate that falls to zero."""

    def falling(factor: float) -> Callable[[Any], Any]:
        return lambda step: factor * rate * (1 - step / task.steps)

    optimizer = strategy.build(limit, task.direction(), falling(1.0))
    if task.part is not None:
        rest = optax.chain(
            task.direction(), optax.scale_by_learning_rate(falling(task.rest))
        )
        labels = partial(labels_of, task.part)
        optimizer = optax.partition({"part": optimizer, "rest": rest}, labels)
    return optax.with_extra_args_support(optimizer)


def labels_of(part: str, tree: Params) -> Params:
    """Label the leaves of one entry, and all others."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "part" if path[0].key == part else "rest", tree
    )


def acted(opt_state: Any) -> jax.Array:
    """Whether this step was clipped, in any group, or skipped."""
    told = optaxclip.report(opt_state)
    fields = ("clipped_fraction", "skipped")
    numbers = [x for key, x in told.items() if key.rpartition("/")[2] in fields]
    return jnp.max(jnp.stack([jnp.float32(x) for x in numbers] or [jnp.zeros(())])) > 0


def gradient_of(
    task: Task, strategy: Strategy, limit: jax.Array
) -> Callable[..., tuple[jax.Array, jax.Array, Params]]:
    """A function that gives the loss, the share of clipped examples, the gradient."""

    def mean_loss(params: Params, examples: Any) -> jax.Array:
        return jnp.mean(jax.vmap(task.loss, (None, 0))(params, examples))

    def of_batch(params: Params, examples: Any):
        loss, grads = jax.value_and_grad(mean_loss)(params, examples)
        return loss, jnp.zeros(()), grads

    def of_examples(params: Params, examples: Any):
        clipped = optaxclip.clipped_value_and_grad(task.loss, limit)
        told, grads = clipped(params, examples)
        return jnp.mean(told.value), jnp.mean(told.norm > limit), grads

    return of_examples if strategy.per_example else of_batch


def train(
    task: Task,
    strategy: Strategy,
    variant: jax.Array,
    limit: jax.Array,
    rate: jax.Array,
    key: jax.Array,
) -> Results:
    """Train once."""
    init_key, data_key, test_key = jax.random.split(key, 3)
    optimizer = optimizer_of(task, strategy, limit, rate)
    gradient = gradient_of(task, strategy, limit)

    def step(carry: tuple[Params, Any], key: jax.Array):
        params, state = carry
        loss, share, grads = gradient(params, task.batch(key, variant))
        norm = optax.tree.norm(jax.tree.map(jnp.float32, grads))
        updates, state = optimizer.update(grads, state, params, value=loss)
        clipped = jnp.maximum(share, acted(state))
        after = optax.apply_updates(params, updates), state
        return after, (jnp.float32(loss), norm, clipped)

    params = task.init(init_key)
    start = params, optimizer.init(params)
    keys = jax.random.split(data_key, task.steps)
    (params, _), curves = jax.lax.scan(step, start, keys)
    return Results(task.score(params, test_key), *curves)


class Program:
    """One compiled program for all runs of a task and a strategy, `chunk` at a time."""

    def __init__(self, task: Task, strategy: Strategy, chunk: int):
        self.chunk, self.variants = chunk, list(task.variants.values())
        self.run_seconds, self.trained = 0.0, 0

        def run(variant: jax.Array, limit: jax.Array, rate: jax.Array, seed: jax.Array):
            return train(task, strategy, variant, limit, rate, jax.random.key(seed))

        start = time.perf_counter()
        shapes = self._arguments(Runs(*np.zeros((4, chunk))))
        self.compiled = jax.jit(jax.vmap(run)).lower(*shapes).compile()
        self.compile_seconds = time.perf_counter() - start

    def _arguments(self, runs: Runs) -> tuple[np.ndarray, ...]:
        variants = np.asarray(self.variants, np.float32)[runs.variant.astype(int)]
        limit, rate = runs.limit.astype(np.float32), runs.rate.astype(np.float32)
        return variants, limit, rate, runs.seed.astype(np.uint32)

    def __call__(self, runs: Runs) -> Results:
        """Train all of these."""
        number, found = len(runs.seed), []
        start = time.perf_counter()
        for begin in range(0, number, self.chunk):
            rows = np.arange(begin, begin + self.chunk) % number
            part = Runs(*(column[rows] for column in runs))
            found.append(jax.device_get(self.compiled(*self._arguments(part))))
        self.run_seconds += time.perf_counter() - start
        self.trained += len(found) * self.chunk
        return Results(*(np.concatenate(x)[:number] for x in zip(*found, strict=True)))
