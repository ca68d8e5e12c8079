"""The edge table: on a mesh of devices the answer is that of one device."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from trees import (
    FEW,
    as_limit,
    assert_close,
    donating_step,
    expected,
    params_for,
    start,
    tree_of,
)
from zoo import every_kind

import optaxclip

# Sharded along an axis that a unit sums over, so that each unit spans the mesh.
SPECS = {"bias": P(), "kernel": P("x")}
AXES = {"bias": (), "kernel": "x"}
UPDATES = jax.tree.map(np.asarray, tree_of(jnp.float32, shapes=FEW))
PARAMS = params_for(UPDATES)


def mesh_of(axis_type):
    """Two devices in a row, among which the sharded leaves divide."""
    devices = np.array(jax.devices("cpu")[:2])
    return jax.sharding.Mesh(devices, ("x",), axis_types=(axis_type,))


@cache
def on_one_device(strategy):
    """What clipping gives where there is no mesh: updates and state."""
    state = start(strategy, PARAMS)
    return donating_step(strategy, UPDATES, state, PARAMS, as_limit(0.2))


def all_reduces(compiled):
    """How many times the devices add something up."""
    return len(re.findall(r" all-reduce(?:-start)?\(", compiled.as_text()))


def test_the_global_norm_of_many_sharded_leaves_is_one_all_reduce():
    mesh = mesh_of(AxisType.Auto)
    sharding = NamedSharding(mesh, P("x"))
    ones = np.ones((8, 3), np.float32)
    updates = [jax.device_put(ones, sharding) for _ in range(20)]
    transformation = optaxclip.clip_global_norm(1.0)
    state = transformation.init(updates)
    update = jax.jit(transformation.update)
    assert all_reduces(update.lower(updates, state).compile()) == 1


def in_shard_map(transformation, **options):
    """Clip with every device holding its own shards; the state is the same on all."""

    def update(updates, params):
        return transformation.update(updates, transformation.init(params), params)

    state = jax.eval_shape(transformation.init, PARAMS)
    return jax.jit(
        jax.shard_map(
            update,
            mesh=mesh_of(AxisType.Auto),
            in_specs=(SPECS, SPECS),
            out_specs=(SPECS, jax.tree.map(lambda _: P(), state)),
            **options,
        )
    )


@cache
def checked(strategy):
    """Clip in shard_map, where JAX knows what varies; compiled once."""
    return in_shard_map(strategy.make(0.2, axis_name="x"))


@every_kind
def test_in_shard_map_an_axis_name_counts_every_leaf_once(strategy):
    assert_close(checked(strategy)(UPDATES, PARAMS), on_one_device(strategy))


@every_kind
def test_in_shard_map_unchecked_a_tree_of_axis_names_counts_every_leaf_once(strategy):
    update = in_shard_map(strategy.make(0.2, axis_name=AXES), check_vma=False)
    assert_close(update(UPDATES, PARAMS), on_one_device(strategy))


@every_kind
def test_in_shard_map_extremes_and_nan_are_as_on_one_device(strategy):
    """Of which only the second device sees the NaN."""
    updates = {**UPDATES, "kernel": UPDATES["kernel"] * np.float32(1e20)}
    for _ in range(2):
        clipped, _ = checked(strategy)(updates, PARAMS)
        assert_close(clipped, expected(strategy, updates, 0.2))
        updates["kernel"][3, 0] = np.nan


@pytest.mark.parametrize("make", [optaxclip.clip_unit_norm, optaxclip.clip_value])
def test_in_shard_map_the_report_on_many_groups_is_that_of_the_whole_mesh(make):
    """Also where units are whole on each device."""
    updates = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    transformation = make(1.0, axis_name=P(None, "x"))
    alone = make(1.0)
    wanted, wanted_state = jax.jit(alone.update)(updates, alone.init(updates))
    clipped, state = jax.jit(
        jax.shard_map(
            lambda x: transformation.update(x, transformation.init(x)),
            mesh=mesh_of(AxisType.Auto),
            in_specs=P(None, "x"),
            out_specs=(P(None, "x"), jax.tree.map(lambda _: P(), wanted_state)),
        )
    )(updates)
    assert_close(clipped, wanted)
    assert_close(state, wanted_state)
