"""Updates and weights on spheres, beside the formulae of those who use them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import tree_of, wide

import optaxclip
from optaxclip import norms


def normal(shape, seed, dtype=jnp.float32):
    """Normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


STACKED = {"layers": (3, 5, 4), "head": (4, 6)}
AXES = {"layers": 1, "head": 0}


def random_tree(seed):
    """A matrix, and a stack of them as scanned layers have it."""
    return {k: normal(shape, seed + i) for i, (k, shape) in enumerate(STACKED.items())}


def muonh(param, update, rate):
    """A step of Levanter's MuonH for one matrix or a stack of them, in float64."""
    axes = (-2, -1)

    def length(x):
        return np.maximum(np.sqrt((x**2).sum(axes, keepdims=True)), 1e-10)

    moved = param - rate * update * length(param) / length(update)
    return moved / length(moved) * length(param)


def test_hyperball_takes_the_steps_of_the_public_formula_in_stacks_too():
    rates = optax.linear_schedule(0.5, 0.1, 5)
    step = optaxclip.hyperball(rates, leading_axes=AXES)
    params = random_tree(0)
    wanted, state = jax.tree.map(wide, params), step.init(params)
    update = jax.jit(step.update)
    for t in range(6):
        grads = random_tree(10 + t)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        rate = float(np.asarray(rates(t)))
        wanted = jax.tree.map(lambda w, g, r=rate: muonh(w, wide(g), r), wanted, grads)
        for key, want in wanted.items():
            np.testing.assert_allclose(wide(params[key]), want, atol=1e-6)


def test_hyperball_brings_weights_to_the_radius_that_is_given():
    params = random_tree(0)
    radius = {"layers": jnp.array([1.0, 2.0, 3.0]), "head": 4.0}
    step = optaxclip.hyperball(0.1, radius=radius, leading_axes=AXES)
    updates, _ = step.update(random_tree(1), step.init(params), params)
    after = optax.apply_updates(params, updates)
    sizes = np.linalg.norm(wide(after["layers"]), axis=(1, 2))
    np.testing.assert_allclose(sizes, [1.0, 2.0, 3.0], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(wide(after["head"])), 4.0, rtol=1e-6)


def test_hyperball_goes_downhill_and_has_a_report_of_step_and_sphere():
    optimizer = optax.chain(optax.trace(0.5), optaxclip.hyperball(0.05))
    target = normal((8, 8), 1)
    params = normal((8, 8), 0)
    target *= jnp.linalg.norm(params) / jnp.linalg.norm(target)
    state: Any = optimizer.init(params)

    @jax.jit
    def train(params, state):
        grads = params - target
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    start = float(jnp.linalg.norm(params - target))
    for _ in range(30):
        params, state = train(params, state)
    assert jnp.linalg.norm(params - target) < start / 4
    assert {type(s).__name__ for s in state[1] if hasattr(s, "report")} == {
        "hyperball",
        "hyperball_step",
    }


def test_a_sphere_in_bfloat16_hardly_drifts_and_one_of_given_radius_does_not():
    params = normal((64, 64), 0, jnp.bfloat16)
    start = np.linalg.norm(wide(params))
    for radius, drift in ((None, 2e-3), (float(start), 3e-4)):
        step = optaxclip.hyperball(0.01, radius=radius)

        def one(carry, key, step=step):
            params, state = carry
            grads = jax.random.normal(key, params.shape, params.dtype)
            updates, state = step.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(0), 200)
        (after, _), _ = jax.lax.scan(one, (params, step.init(params)), keys)
        assert abs(np.linalg.norm(wide(after)) / start - 1) < drift


def test_relative_updates_are_as_long_as_the_parameters():
    params, updates = tree_of(jnp.float32, seed=1), tree_of(jnp.float32, 1e-4)
    clip = optaxclip.relative_update(0.5)
    found, _ = clip.update(updates, clip.init(params), params)

    def wanted(u, w):
        u, w = wide(u), wide(w)
        return 0.5 * u * np.sqrt((w**2).sum() / (u**2).sum())

    for got, want in zip(
        jax.tree.leaves(found),
        jax.tree.leaves(jax.tree.map(wanted, updates, params)),
        strict=True,
    ):
        np.testing.assert_allclose(wide(got), want, rtol=1e-6)


def test_a_floor_lets_parameters_of_zero_move():
    params, updates = np.zeros(2, np.float32), np.array([3.0, 4.0], np.float32)
    for floor, wanted in ((0.0, [0.0, 0.0]), (0.5, [0.3, 0.4])):
        clip = optaxclip.relative_update(floor=floor)
        found, _ = clip.update(updates, clip.init(params), params)
        np.testing.assert_allclose(wide(found), wanted, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_or_columns_have_norm_one_after_every_step(axis, dtype):
    params = normal((40, 30), 0, dtype).at[:, 3].set(0).at[5].set(0)
    bound = optaxclip.normalize_weights(axis=axis)
    state = bound.init(params)
    for seed in (1, 2):
        updates = normal((40, 30), seed, dtype).at[:, 3].set(0).at[5].set(0) * 0.1
        updates, state = bound.update(updates, state, params)
        params = optax.apply_updates(params, updates)
        sizes = np.linalg.norm(wide(params), axis=axis)
        zero = 3 if axis == 0 else 5
        assert sizes[zero] == 0
        rounding = 4 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.delete(sizes, zero), 1.0, rtol=rounding)


def test_columns_have_root_mean_square_one_as_edm2_has_them():
    params = normal((40, 30), 0)
    bound = optaxclip.normalize_weights(ord=norms.rms)
    updates, _ = bound.update(np.zeros_like(params), bound.init(params), params)
    after = wide(optax.apply_updates(params, updates))
    np.testing.assert_allclose(np.sqrt((after**2).mean(0)), 1.0, rtol=1e-6)


def test_norms_of_weights_are_brought_into_a_band_from_both_sides():
    sizes = np.array([0.0, 0.1, 0.5, 1.0, 2.0, 2.5, 9.0])
    columns = wide(normal((20, 7), 0))
    params = jnp.asarray(columns / np.linalg.norm(columns, axis=0) * sizes, jnp.float32)
    bound = optaxclip.clip_weight_unit_norm(2.0, min_norm=0.5)
    updates, state = bound.update(np.zeros_like(params), bound.init(params), params)
    after = optax.apply_updates(params, updates)
    found = np.linalg.norm(wide(after), axis=0)
    np.testing.assert_allclose(found, [0.0, 0.5, 0.5, 1.0, 2.0, 2.0, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(updates[:, 3], 0.0)
    np.testing.assert_allclose(
        optaxclip.report(state)["clip_weight_unit_norm/limit"], 2.0
    )


def test_a_band_of_weights_without_an_upper_edge_raises_alone():
    params = {
        "small": np.full(4, 0.1, np.float32),
        "large": np.full(4, 1e30, np.float32),
    }
    bound = optaxclip.clip_weight_norm(jnp.inf, min_norm=1.0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = bound.update(zeros, bound.init(params), params)
    after: Any = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after["small"], 0.5, rtol=1e-6)
    np.testing.assert_array_equal(after["large"], params["large"])


def test_a_band_of_weights_that_is_upside_down_is_refused():
    wanted = "^min_norm must be at most max_norm, but 2.0 is above 1.0.$"
    with pytest.raises(ValueError, match=wanted):
        optaxclip.clip_weight_norm(1.0, min_norm=2.0)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e20, 3e38])
def test_delta_clip_never_shrinks_by_more_than_its_smallest_factor(size):
    updates = tree_of(jnp.float32, size)
    clip = optaxclip.delta_clip(2.0, 0.25)
    found, _ = clip.update(updates, clip.init(updates))
    flat = np.concatenate([np.ravel(wide(x)) for x in jax.tree.leaves(updates)])
    factor = min(1.0, max(0.25, 2.0 / np.linalg.norm(flat)))
    for got, had in zip(jax.tree.leaves(found), jax.tree.leaves(updates), strict=True):
        np.testing.assert_allclose(wide(got), factor * wide(had), rtol=1e-6)
