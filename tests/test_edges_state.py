"""The edge table: the state keeps its structure, shapes and dtypes everywhere."""

import copy
import pickle
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from trees import assert_close, assert_same_bits, expected, params_for, tree_of
from zoo import every_strategy


def form(state):
    """All of a state but its values."""
    leaves = [
        (x.shape, x.dtype, x.weak_type) for x in map(jax.typeof, jax.tree.leaves(state))
    ]
    return jax.tree.structure(state), leaves


@cache
def made(strategy):
    """One transformation for all tests of this file, so that they share `jitted`."""
    return strategy.make(0.3)


@cache
def jitted(strategy):
    """Its update under jit, compiled once."""
    return jax.jit(made(strategy).update)


def started(strategy, dtype=jnp.float32):
    """The transformation, its first state, the params."""
    params = params_for(tree_of(dtype))
    return made(strategy), made(strategy).init(params), params


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@every_strategy
def test_the_state_keeps_its_form_from_init_through_every_update(strategy, dtype):
    _, state, params = started(strategy, dtype)
    first = form(state)
    for seed in range(3):
        _, state = jitted(strategy)(tree_of(dtype, 10.0, seed), state, params)
        assert form(state) == first


@every_strategy
def test_the_first_state_depends_on_no_value_of_the_params(strategy):
    transformation, state, params = started(strategy)
    for other in (0.0, -7.0, jnp.nan):
        changed = jax.tree.map(partial(jnp.full_like, fill_value=other), params)
        assert_same_bits(transformation.init(changed), state)
    assert_same_bits(transformation.init(params_for(tree_of(jnp.bfloat16))), state)


@every_strategy
def test_the_state_can_be_made_abstractly_and_under_jit(strategy):
    transformation, state, params = started(strategy)
    abstract = jax.eval_shape(transformation.init, params)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    assert_same_bits(jax.jit(transformation.init)(params), state)


@every_strategy
def test_many_steps_compile_once(strategy):
    transformation, state, params = started(strategy)
    chex.clear_trace_counter()  # it takes all strategies for one function
    step = jax.jit(chex.assert_max_traces(transformation.update, n=1))
    for seed in range(4):
        _, state = step(tree_of(jnp.float32, 10.0**seed, seed), state, params)


def stacked(several):
    """One tree with a leading axis, of several."""
    return jax.tree.map(lambda *x: np.stack(x), *several)


@every_strategy
def test_a_scan_gives_what_a_loop_gives(strategy):
    transformation, state, params = started(strategy)
    several = [tree_of(jnp.float32, 2.0, seed) for seed in range(3)]
    looped_state, looped = state, []
    for updates in several:
        clipped, looped_state = jitted(strategy)(updates, looped_state, params)
        looped.append(clipped)

    def step(state, updates):
        clipped, state = transformation.update(updates, state, params)
        return state, clipped

    scanned_state, scanned = jax.lax.scan(step, state, stacked(several))
    assert_close(scanned, stacked(looped))
    assert_close(scanned_state, looped_state)


@every_strategy
def test_a_vmap_over_seeds_gives_what_a_loop_gives(strategy):
    transformation, state, params = started(strategy)

    def run(updates):
        return transformation.update(updates, transformation.init(params), params)

    several = [tree_of(jnp.float32, 2.0, seed) for seed in range(3)]
    looped = [jitted(strategy)(each, state, params) for each in several]
    assert_close(jax.jit(jax.vmap(run))(stacked(several)), stacked(looped))


@every_strategy
def test_a_vmap_over_limits_gives_what_a_loop_gives(strategy):
    updates = tree_of(jnp.float32)
    params = params_for(updates)

    def run(limit):
        transformation = strategy.make(limit)
        return transformation.update(updates, transformation.init(params), params)

    limits = jnp.array([0.0, 0.1, 0.5, 100.0, jnp.inf])
    one_by_one = jax.jit(run)
    looped = stacked([one_by_one(limit) for limit in limits])
    assert_close(jax.jit(jax.vmap(run))(limits), looped)


@every_strategy
def test_the_state_can_be_donated(strategy):
    transformation, state, params = started(strategy)
    step = jax.jit(transformation.update, donate_argnums=(0, 1))
    wanted, wanted_state = jitted(strategy)(tree_of(jnp.float32), state, params)
    wanted, wanted_state = jitted(strategy)(wanted, wanted_state, params)
    clipped, state = step(tree_of(jnp.float32), state, params)
    clipped, state = step(clipped, state, params)
    assert_close(clipped, wanted)
    assert_close(state, wanted_state)


def by_flattening(state):
    leaves, structure = jax.tree.flatten(state)
    return jax.tree.unflatten(structure, leaves)


def by_flax(state):
    fresh = jax.tree.map(jnp.zeros_like, state)
    return serialization.from_bytes(fresh, serialization.to_bytes(state))


def by_pickle(state):
    return pickle.loads(pickle.dumps(state))


@every_strategy
def test_a_saved_state_goes_on_as_if_it_had_not_been_saved(strategy):
    _, state, params = started(strategy)
    _, state = jitted(strategy)(tree_of(jnp.float32), state, params)
    again = tree_of(jnp.float32, 3.0, seed=1)
    wanted = jitted(strategy)(again, state, params)
    for copied in (by_flattening, by_flax, by_pickle, copy.deepcopy):
        restored = copied(state)
        assert type(restored) is type(state)
        assert_same_bits(restored, state)
        assert_same_bits(jitted(strategy)(again, restored, params), wanted)


@every_strategy
def test_unexpected_extra_arguments_are_ignored(strategy):
    transformation, state, params = started(strategy)

    def program(**extra):
        @jax.jit
        def update(updates, state, params):
            return transformation.update(updates, state, params, **extra)

        return update.lower(tree_of(jnp.float32), state, params).as_text()

    value = jnp.asarray(1.0)  # the one that strategies may know
    wanted = program(value=value)
    assert program(value=value, other=value, unexpected="anything") == wanted


@every_strategy
def test_the_transformation_may_be_built_anew_at_every_step(strategy):
    """As inject_hyperparams does it, on a state of an earlier one."""
    _, state, params = started(strategy)
    updates = tree_of(jnp.float32)
    first = form(state)
    for limit in (0.1, 0.3):
        clipped, state = strategy.make(limit).update(updates, state, params)
        assert_close(clipped, expected(strategy, updates, limit))
        assert form(state) == first


@every_strategy
def test_trees_without_numbers_keep_the_form_of_the_state_with_x64(strategy):
    with jax.enable_x64(True):
        tree = {"integers": jnp.arange(3)}
        transformation = strategy.make(0.3)
        state = transformation.init(tree)
        assert form(transformation.update(tree, state, tree)[1]) == form(state)
