"""Clipping in the middle of a backward pass."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import assert_same_bits, tree_of
from unchecked import unchecked

import optaxclip
from optaxclip import clip_cotangents


def pulled_back(clip, x, cotangent):
    """What flows back to x."""
    return jax.vjp(lambda x: clip_cotangents(x, clip), x)[1](cotangent)[0]


@pytest.mark.parametrize(
    "clip",
    [
        optaxclip.clip_value(0.7),
        optaxclip.clip_global_norm(1.0),
        optaxclip.clip_tensor_norm({"conv": 0.5, "dense": 1.0, "scale": 2.0}),
        optaxclip.clip_group_norm(
            {"a": 0.5, "b": 1.0}, {"conv": "a", "dense": "b", "scale": "a"}
        ),
        optax.chain(optaxclip.clip_value(0.7), optaxclip.clip_global_norm(1.0)),
    ],
    ids=["value", "whole", "tensor", "groups", "chain"],
)
def test_numbers_stay_and_what_flows_back_is_clipped_as_updates_are(clip):
    x, cotangent = tree_of(jnp.float32), tree_of(jnp.float32, seed=1)
    assert_same_bits(jax.jit(lambda x: clip_cotangents(x, clip))(x), x)
    wanted, _ = clip.update(cotangent, clip.init(cotangent))
    assert_same_bits(pulled_back(clip, x, cotangent), wanted)


def test_a_backward_pass_through_scan_is_clipped_at_every_step():
    def loss(h, limit):
        def cell(h, _):
            return 10 * clip_cotangents(h, optaxclip.clip_value(limit)), None

        return jax.lax.scan(cell, h, length=5)[0]

    grad = jax.jit(jax.grad(loss))
    assert grad(1.0, jnp.inf) == 1e5
    assert grad(1.0, 30.0) == 30.0
    sweep = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))
    both = sweep(1.0, jnp.array([7.0, 50.0]))
    np.testing.assert_array_equal(both, [7.0, 50.0])


def test_every_example_of_a_vmap_is_clipped_by_itself():
    def total(x, limits):
        def example(x, limit):
            return jnp.sum(3 * clip_cotangents(x, optaxclip.clip_global_norm(limit)))

        return jnp.sum(jax.vmap(example)(x, limits))

    found = jax.jit(jax.grad(total))(jnp.ones((2, 4)), jnp.array([1.0, 100.0]))
    np.testing.assert_allclose(found, [[0.5] * 4, [3.0] * 4], rtol=1e-6)


def test_the_derivative_of_a_clipped_derivative_is_that_of_clipping():
    clip = optaxclip.clip_value(1.0)

    def slope(x):
        return jax.grad(lambda x: clip_cotangents(x, clip) ** 2)(x)

    assert (slope(0.25), jax.grad(slope)(0.25)) == (0.5, 2.0)
    assert (slope(3.0), jax.grad(slope)(3.0)) == (1.0, 0.0)


def test_a_limit_may_be_computed_inside_of_a_loop():
    def loss(h):
        def cell(h, limit):
            return 10 * clip_cotangents(h, optaxclip.clip_value(2 * limit)), None

        return jax.lax.scan(cell, h, jnp.array([3.0, 1.0, 100.0]))[0]

    # Backward: 10 of 200, 10 * 10 of 2, 10 * 2 of 6.
    assert jax.jit(jax.grad(loss))(1.0) == 6.0


def test_leaves_that_are_no_numbers_pass_through():
    x = {"w": jnp.array([3.0, 4.0]), "n": jnp.arange(2), "none": None}
    clip = optaxclip.clip_global_norm(1.0)

    @jax.jit
    def loss(w, x):
        out = clip_cotangents({**x, "w": w}, clip)
        return jnp.sum(out["w"] ** 2 / 2) + 0 * jnp.sum(out["n"]).astype(float)

    np.testing.assert_allclose(jax.grad(loss)(x["w"], x), [0.6, 0.8], rtol=1e-6)
    assert_same_bits(clip_cotangents(x, clip), x)


def test_half_precision_is_measured_in_float32():
    x = jnp.full(2, 300.0, jnp.float16)
    found = pulled_back(optaxclip.clip_global_norm(1.0), x, x)
    np.testing.assert_allclose(found, [0.7071, 0.7071], rtol=1e-3)


@pytest.mark.parametrize(
    "clip",
    [
        optaxclip.zclip(),
        optaxclip.clip_value(lambda step: 1.0 + step),
        optaxclip.error_feedback(optaxclip.clip_value(1.0)),
        optax.adam(1e-3),
    ],
    ids=["z-score", "schedule", "feedback", "optimizer"],
)
def test_what_remembers_is_refused(clip):
    with pytest.raises(TypeError, match=r"^clip must be a clipper without a memory,"):
        clip_cotangents(jnp.ones(3), clip)


def test_what_is_no_clipper_is_refused():
    number: Any = 1.0
    with unchecked(), pytest.raises(TypeError, match=r"^clip must be a transformation"):
        clip_cotangents(jnp.ones(3), number)
