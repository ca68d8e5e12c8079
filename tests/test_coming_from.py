"""The formulas of PyTorch, Keras and TensorFlow, and what replaces them here."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxclip

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(5, 4)) * np.array([0.1, 1.0, 2.0, 30.0])
GRADS = {"kernel": KERNEL, "bias": RNG.normal(size=4)}


def norm(x, axis=None):
    """The Euclidean norm, along axes that stay."""
    return np.sqrt((x**2).sum(axis, keepdims=True))


def total(tree):
    """The norm of a tree."""
    return np.sqrt(sum((x**2).sum() for x in tree.values()))


def each(function):
    """The same function of every leaf."""
    return {key: function(x) for key, x in GRADS.items()}


def clip_by_norm(x, limit, axis=None):
    """TensorFlow's, which Keras takes for ``clipnorm``."""
    return x * limit / np.maximum(norm(x, axis), limit)


# What replaces it, what it is there, and by how much they may differ.
CLIPS = {
    "torch.nn.utils.clip_grad_norm_": (
        optaxclip.clip_global_norm(2.0),
        each(lambda x: x * min(1, 2.0 / (total(GRADS) + 1e-6))),
    ),
    "torch.nn.utils.clip_grad_norm_(norm_type=inf)": (
        optaxclip.clip_global_norm(2.0, ord=jnp.inf),
        each(lambda x: x * min(1, 2.0 / (np.abs(KERNEL).max() + 1e-6))),
    ),
    "torch.nn.utils.clip_grad_value_": (
        optaxclip.clip_value(0.5),
        each(lambda x: np.clip(x, -0.5, 0.5)),
    ),
    "keras clipnorm": (
        optaxclip.clip_tensor_norm(2.0),
        each(lambda x: clip_by_norm(x, 2.0)),
    ),
    "keras global_clipnorm, tf.clip_by_global_norm": (
        optaxclip.clip_global_norm(2.0),
        each(lambda x: x * 2.0 * min(1 / total(GRADS), 1 / 2.0)),
    ),
    "tf.clip_by_value": (
        optaxclip.clip_value(0.5, min_value=-0.1),
        each(lambda x: np.clip(x, -0.1, 0.5)),
    ),
    "tf.clip_by_norm(axes)": (
        optaxclip.clip_unit_norm(2.0, axis=0),
        each(lambda x: clip_by_norm(x, 2.0, 0)),
    ),
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_of_gradients_gives_what_the_other_library_does(name):
    clip, wanted = CLIPS[name]
    grads = jax.tree.map(jnp.float32, GRADS)
    clipped: Any = jax.jit(clip.update)(grads, clip.init(grads))[0]
    for key, want in wanted.items():
        np.testing.assert_allclose(clipped[key], want, rtol=1e-6)


def constrained(low, high):
    """Keras' MinMaxNorm, and with the same number twice its UnitNorm."""
    size = norm(KERNEL, 0)
    return KERNEL * np.clip(size, low, high) / (1e-7 + size)


CONSTRAINTS = {
    "MaxNorm": (optaxclip.clip_weight_unit_norm(2.0, axis=0), constrained(0.0, 2.0)),
    "MinMaxNorm": (
        optaxclip.clip_weight_unit_norm(2.0, min_norm=1.0, axis=0),
        constrained(1.0, 2.0),
    ),
    "UnitNorm": (optaxclip.normalize_weights(axis=0), constrained(1.0, 1.0)),
    "NonNeg": (
        optaxclip.clip_weights(jnp.inf, min_value=0.0),
        KERNEL * (KERNEL >= 0),
    ),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_bound_on_weights_gives_what_the_constraint_of_keras_does(name):
    clip, wanted = CONSTRAINTS[name]
    params = jnp.float32(KERNEL)
    zeros = jnp.zeros_like(params)
    step, _ = jax.jit(clip.update)(zeros, clip.init(params), params)
    bounded: Any = optax.apply_updates(params, step)
    np.testing.assert_allclose(bounded, wanted, rtol=2e-6, atol=1e-7)


def test_the_functions_of_a_norm_and_a_limit_agree():
    """get_total_norm, clip_grads_with_norm_, and TensorFlow's ``use_norm``."""
    grads = jax.tree.map(jnp.float32, GRADS)
    for order in (1.0, 2.0, 3.0):
        wanted = sum((np.abs(x) ** order).sum() for x in GRADS.values()) ** (1 / order)
        np.testing.assert_allclose(optaxclip.tree_norm(grads, order), wanted, rtol=1e-6)
    shrunk, told = optaxclip.shrink_tree(grads, 2.0, 50.0)
    assert told == 50
    np.testing.assert_allclose(shrunk["kernel"], KERNEL * (2.0 / 50.0), rtol=1e-6)
