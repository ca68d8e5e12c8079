"""Gradients that someone stacked, clipped one by one by a transformation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec
from per_example import clipped_mean, distance, norms_of, random

import optaxclip
from optaxclip import responses

PARAMS = {"w": jnp.ones((3, 4)), "b": jnp.ones(4), "n": None}
UPDATES = {"w": random(0, 6, 3, 4), "b": random(1, 6, 4), "n": None}
GRADIENTS = [np.asarray(g, np.float64) for g in jax.tree.leaves(UPDATES)]
LIMIT = float(np.median(norms_of(GRADIENTS)))


def clip(max_norm: Any = LIMIT, updates=UPDATES, **options):
    """The mean, and what was reported."""
    transformation = optaxclip.clip_per_example(max_norm, **options)
    mean, state = jax.jit(transformation.update)(updates, transformation.init(PARAMS))
    return mean, optaxclip.report(state)


def test_the_mean_of_the_clipped_comes_back_with_a_report():
    mean, report = clip()
    assert distance(mean, clipped_mean(GRADIENTS, LIMIT)) < 1e-6
    assert jax.tree.structure(mean) == jax.tree.structure(PARAMS)
    norms = norms_of(GRADIENTS)
    np.testing.assert_allclose(
        report["clip_per_example/pre_norm"], norms.max(), rtol=1e-6
    )
    np.testing.assert_allclose(report["clip_per_example/post_norm"], LIMIT, rtol=1e-6)
    np.testing.assert_allclose(report["clip_per_example/limit"], LIMIT, rtol=1e-6)
    assert report["clip_per_example/clipped_fraction"] == np.mean(norms > LIMIT)
    assert report["clip_per_example/clipped_steps"] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_example_counts_as_zeros(value):
    updates = UPDATES | {"b": UPDATES["b"].at[2, 1].set(value)}
    mean, report = clip(updates=updates)
    kept = [
        np.where(np.arange(6).reshape(6, *[1] * (g.ndim - 1)) == 2, 0, g)
        for g in GRADIENTS
    ]
    assert distance(mean, clipped_mean(kept, LIMIT)) < 1e-6
    norms = norms_of(kept)
    np.testing.assert_allclose(
        report["clip_per_example/pre_norm"], norms.max(), rtol=1e-6
    )
    assert report["clip_per_example/clipped_fraction"] == np.mean(norms > LIMIT)


def test_limits_for_parts_schedules_and_responses():
    mean, _ = clip({"w": 0.5, "b": lambda step: 0.25 + step.astype(jnp.float32)})
    leaves = dict(zip(["b", "w"], GRADIENTS, strict=True))
    expected = [*clipped_mean([leaves["b"]], 0.25), *clipped_mean([leaves["w"]], 0.5)]
    assert distance(mean, expected) < 1e-6
    mean, _ = clip(np.asarray([0.25, 0.5], np.float32))
    assert distance(mean, expected) < 1e-6
    mean, _ = clip(response=responses.drop)
    kept = norms_of(GRADIENTS) <= LIMIT
    expected = [np.einsum("n,n...->...", kept, g) / 6 for g in GRADIENTS]
    assert distance(mean, expected) < 1e-6


def test_a_report_of_several_limits_is_of_the_part_that_is_the_most_above_its_own():
    parts = {"b": norms_of(GRADIENTS[:1]), "w": norms_of(GRADIENTS[1:])}
    limits = {"b": float(np.median(parts["b"])), "w": float(parts["w"].max()) + 1}
    _, report = clip(limits)
    np.testing.assert_allclose(
        report["clip_per_example/pre_norm"], parts["b"].max(), rtol=1e-6
    )
    np.testing.assert_allclose(report["clip_per_example/limit"], limits["b"], rtol=1e-6)
    assert (
        report["clip_per_example/clipped_fraction"] == 0.25
    )  # half of one of two parts


def test_a_limit_may_be_of_a_part_without_numbers():
    updates = UPDATES | {"n": jnp.ones((6, 2), jnp.int32)}
    mean, _ = clip({"w": 0.5, "b": 0.25, "n": 1.0}, updates)
    wanted, _ = clip({"w": 0.5, "b": 0.25})
    np.testing.assert_array_equal(mean["w"], wanted["w"])
    np.testing.assert_array_equal(mean["n"], updates["n"])


def test_narrow_types_are_summed_in_float32_and_extreme_ones_clipped():
    ones = {"w": jnp.full((4096, 2), 1.0, jnp.bfloat16), "n": None}
    mean, _ = clip(1.0, ones)
    assert mean["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(mean["w"], float), 0.5**0.5, rtol=2**-8)
    huge = {"w": jnp.full((3, 4), 1e30)}
    np.testing.assert_allclose(clip(1.0, huge)[0]["w"], 0.5, rtol=1e-6)


def test_the_largest_of_all_gradients_are_clipped_and_reported():
    mean, report = clip(1.0, {"w": jnp.asarray([[3e38, 0.0]]), "n": None})
    np.testing.assert_allclose(mean["w"], [1.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(report["clip_per_example/pre_norm"], 3e38, rtol=1e-6)
    np.testing.assert_allclose(report["clip_per_example/post_norm"], 1, rtol=1e-6)
    mean, report = clip(1e-20, {"w": jnp.full((1, 4), 3e38), "n": None})
    np.testing.assert_allclose(mean["w"] / 1e-20, 0.5, rtol=1e-6)
    np.testing.assert_allclose(
        report["clip_per_example/post_norm"] / 1e-20, 1, rtol=1e-6
    )
    mean, _ = clip(jnp.inf, {"w": jnp.full((2, 1), 3e38), "n": None})
    np.testing.assert_allclose(mean["w"], 3e38, rtol=1e-6)


@pytest.mark.parametrize(
    "updates",
    [{}, {"w": jnp.zeros((0, 3))}, {"w": None}],
)
def test_updates_that_hold_nothing_to_clip_pass_through(updates):
    mean, report = clip(1.0, updates)
    assert jax.tree.structure(mean) == jax.tree.structure(updates)
    for before, after in zip(*map(jax.tree.leaves, (updates, mean)), strict=True):
        np.testing.assert_array_equal(before, after)
    assert report["clip_per_example/clipped_steps"] == 0


def test_a_schedule_goes_on_where_nothing_is_clipped():
    clip = optaxclip.clip_per_example(optax.linear_schedule(1.0, 2.0, 9))
    nothing = {"w": jnp.zeros((3, 0))}
    _, state = clip.update(nothing, clip.init(nothing))
    assert state.threshold.step == 1


def test_the_state_keeps_its_kind_in_a_chain_and_a_scan():
    optimizer = optax.chain(optaxclip.clip_per_example(LIMIT), optax.sgd(1.0))

    def step(state, updates):
        updates, state = optimizer.update(updates, state)
        return state, updates

    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), UPDATES)
    state, _ = jax.lax.scan(step, optimizer.init(PARAMS), many)
    assert optaxclip.report(state)["clip_per_example/clipped_steps"] == 2


def test_examples_may_be_spread_over_a_mesh():
    clip = optaxclip.clip_per_example(LIMIT, axis_name="data")
    updates = jax.tree.map(lambda x: x[:4], UPDATES)
    step = jax.shard_map(
        clip.update,
        mesh=Mesh(np.asarray(jax.devices()[:4]), ("data",)),
        in_specs=(PartitionSpec("data"), PartitionSpec()),
        out_specs=PartitionSpec(),
    )
    mean, state = jax.jit(step)(updates, clip.init(PARAMS))
    assert distance(mean, clipped_mean([g[:4] for g in GRADIENTS], LIMIT)) < 1e-6
    norms = norms_of([g[:4] for g in GRADIENTS])
    np.testing.assert_allclose(state.report.clipped_fraction, np.mean(norms > LIMIT))


def test_an_axis_over_which_examples_vary_has_to_be_named():
    def step(axis_name, updates):
        clip = optaxclip.clip_per_example(LIMIT, axis_name=axis_name)
        return clip.update(updates, clip.init(PARAMS))[0]["b"][None]

    def of_devices(axis_name):
        mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
        spread = PartitionSpec("data")
        step_there = functools.partial(step, axis_name)
        return jax.shard_map(step_there, mesh=mesh, in_specs=spread, out_specs=spread)

    with pytest.raises(ValueError, match=r"axis_name must name \['data'\]"):
        of_devices(None)(UPDATES)
    each = jax.jit(of_devices(()))(UPDATES)
    for mean, rows in zip(each, (slice(3), slice(3, 6)), strict=True):
        wanted = clipped_mean([g[rows] for g in GRADIENTS], LIMIT)
        assert distance(mean, wanted[:1]) < 1e-6


def test_wrong_input_gets_a_sentence():
    with pytest.raises(ValueError, match="max_norm must be at least 0, not -1"):
        optaxclip.clip_per_example(-1.0)
    limit = optaxclip.thresholds.PerRootSize(optaxclip.thresholds.as_threshold(1.0))
    with pytest.raises(TypeError, match="max_norm must be a number, an array"):
        optaxclip.clip_per_example(limit)
    steps = optaxclip.clip_per_example(optax.constant_schedule(1.0)).init(PARAMS)
    with pytest.raises(ValueError, match="clip_per_example was given a state of"):
        optaxclip.clip_per_example(1.0).update(UPDATES, steps)
    with pytest.raises(TypeError, match="response must multiply"):
        optaxclip.clip_per_example(1.0, response=responses.clamp)
    with pytest.raises(
        ValueError, match="updates must have the same number of examples"
    ):
        clip(updates={"w": jnp.ones((3, 4)), "b": jnp.ones(2)})
