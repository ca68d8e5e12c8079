"""The oracle of per-example clipping: JAX's own gradients, clipped in float64."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from quickly import jit_quickly


def stacked_gradients(loss, params, batch, in_axes=None, has_aux=False):
    """The gradient of every example, a list of float64 arrays."""
    return values_and_gradients(loss, params, batch, in_axes, has_aux)[1]


def values_and_gradients(loss, params, batch, in_axes=None, has_aux=False):
    """The loss of every example, and the gradients."""
    if in_axes is None:
        oracle = _oracle(loss, len(batch), has_aux)
    else:
        oracle = jit_quickly(jax.vmap(_both(loss, has_aux), (None, *in_axes)))
    values, found = oracle(params, *batch)
    return values, [np.asarray(g, np.float64) for g in jax.tree.leaves(found)]


def _both(loss, has_aux):
    return jax.value_and_grad(loss, has_aux=has_aux)


@cache
def _oracle(loss, arguments, has_aux):
    """Compiled once for each loss."""
    return jit_quickly(jax.vmap(_both(loss, has_aux), (None, *(0,) * arguments)))


def norms_of(gradients):
    """The norm of each example."""
    return np.sqrt(sum((g.reshape(len(g), -1) ** 2).sum(1) for g in gradients))


def clipped_mean(gradients, limit):
    """The mean of the gradients, each shrunk to the limit."""
    factors = np.minimum(1, limit / np.maximum(norms_of(gradients), 1e-300))
    return [np.einsum("n,n...->...", factors, g) / len(g) for g in gradients]


def clipped_one_by_one(loss):
    """A function that holds all gradients in one array, and clips them to 1."""

    def clipped(params, x):
        gradients = jax.vmap(jax.grad(loss), (None, 0))(params, x)
        norms = jnp.sqrt(jnp.sum(gradients.reshape(len(x), -1) ** 2, 1))
        factors = jnp.minimum(1, 1 / norms)
        return jnp.einsum("n,n...->...", factors, gradients) / len(x)

    return clipped


def temporary_memory(function, *arrays):
    """The bytes that a compiled function takes beside arguments and results."""
    compiled = jit_quickly(function).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def distance(actual, desired):
    """The largest error of a leaf relative to the norm of all leaves."""
    got = [np.asarray(x, np.float64) for x in jax.tree.leaves(actual)]
    whole = np.sqrt(sum((x**2).sum() for x in desired))
    pairs = zip(got, desired, strict=True)
    return max(np.linalg.norm(a - b) for a, b in pairs) / whole


def numbers(seed, *shape):
    """Normal numbers, in float64."""
    return np.random.default_rng(seed).normal(size=shape)


def random(seed, *shape, scale=1.0):
    """Normal numbers."""
    return jnp.asarray(numbers(seed, *shape) * scale, jnp.float32)


def integers(seed, high, *shape):
    """Whole numbers from 0 on."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, high, shape), jnp.int32)
