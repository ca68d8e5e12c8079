"""The edge table: the state keeps its structure, shapes and dtypes everywhere."""

import copy
import itertools
import pickle
from contextlib import contextmanager
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from flax import serialization
from trees import (
    FEW,
    as_limit,
    assert_close,
    assert_same_bits,
    donating_step,
    expected,
    in_case,
    params_for,
    start,
    step,
    tree_of,
)
from zoo import every_kind, every_strategy


def form(state):
    """All of a state, or of what is known of it without computing, but its values."""
    leaves = [
        (x.shape, x.dtype, x.weak_type)
        for x in jax.tree.leaves(jax.eval_shape(lambda state: state, state))
    ]
    return jax.tree.structure(state), leaves


LIMIT = as_limit(0.3)


def started(strategy):
    """The transformation, its first state, the params."""
    params = params_for(tree_of(jnp.float32))
    return strategy.make(0.3), start(strategy, params), params


@every_strategy
def test_the_state_keeps_its_form_from_init_through_every_update(strategy):
    transformation, _, params = started(strategy)
    state = transformation.init(params)
    first = form(state)
    for seed in range(3):
        updates = tree_of(jnp.float32, 10.0, seed)
        _, state = step(strategy, updates, state, params, LIMIT)
        assert form(state) == first


@every_kind
def test_the_state_beside_bfloat16_keeps_its_form(strategy):
    """Which is known before anything is computed."""
    updates = tree_of(jnp.bfloat16, shapes=FEW)
    params = params_for(updates)
    first = start.eval_shape(strategy, params)
    _, after = step.eval_shape(strategy, updates, first, params, LIMIT)
    assert form(after) == form(first)


@every_strategy
def test_the_first_state_depends_on_no_value_of_the_params(strategy):
    _, state, params = started(strategy)
    for other in (0.0, -7.0, np.nan):
        changed = jax.tree.map(partial(np.full_like, fill_value=other), params)
        assert_same_bits(start(strategy, changed), state)
    assert_same_bits(start(strategy, params_for(tree_of(jnp.bfloat16))), state)


@every_strategy
def test_the_state_can_be_made_abstractly_and_under_jit(strategy):
    transformation, state, params = started(strategy)
    abstract = jax.eval_shape(transformation.init, params)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    assert_same_bits(transformation.init(params), state)


@contextmanager
def no_tracing():
    """Fail where JAX would trace something anew."""
    jax.config.update("jax_no_tracing", True)
    try:
        yield
    finally:
        jax.config.update("jax_no_tracing", False)


@every_strategy
def test_many_steps_compile_once(strategy):
    _, state, params = started(strategy)
    several = [tree_of(jnp.float32, 10.0**seed, seed) for seed in range(4)]
    _, state = step(strategy, several[0], state, params, LIMIT)
    with no_tracing():
        for updates in several[1:]:
            _, state = step(strategy, updates, state, params, LIMIT)


def stacked(several):
    """One tree with a leading axis, of several."""
    return jax.tree.map(lambda *x: np.stack(x), *several)


FEW_PARAMS = params_for(tree_of(jnp.float32, shapes=FEW))
SEVERAL = [
    jax.tree.map(np.asarray, tree_of(jnp.float32, 2.0, seed, FEW)) for seed in range(3)
]
ORDERS = [(0, 1, 2), (2, 0, 1)]
LIMITS = np.array([0.0, 0.1, 0.5, 100.0, np.inf], np.float32)


@cache
def looped(strategy, order, limit):
    """The last state and all updates of a loop in Python.

    Each step gives its state away. So what all loops are compared with are donated
    states, and those of the loops themselves are kept.
    """
    state, results = start(strategy, FEW_PARAMS), []
    for place in order:
        clipped, state = donating_step(
            strategy, SEVERAL[place], state, FEW_PARAMS, as_limit(limit)
        )
        results.append(clipped)
    return jax.tree.map(np.asarray, state), rounded(strategy, stacked(results))


def rounded(strategy, steps):
    """Steps on a sphere are differences of weights, and rounded as these are."""
    if strategy.oracle is not oracles.hyperball:
        return steps

    def within(step, weights):
        step = step.view(oracles.Within)
        step.error = 2 * np.finfo(np.float32).eps * np.max(np.abs(weights))
        return step

    return jax.tree.map(within, steps, FEW_PARAMS)


@cache
def in_loops(strategy):
    """A scan, mapped over two orders of its steps, and that mapped over limits."""

    def scanned(several, state, limit):
        def body(state, updates):
            clipped, state = step(strategy, updates, state, FEW_PARAMS, limit)
            return state, clipped

        return jax.lax.scan(body, state, several)

    over_seeds = jax.vmap(scanned, (0, None, None))
    over_limits = jax.jit(jax.vmap(over_seeds, (None, None, 0)))
    orders = [stacked([SEVERAL[place] for place in order]) for order in ORDERS]
    return over_limits(stacked(orders), start(strategy, FEW_PARAMS), LIMITS)


def assert_as_looped(strategy, limits, orders):
    """At some places of the limits, and some of the orders."""
    for i, j in itertools.product(limits, orders):
        found = jax.tree.map(
            lambda x, i=i, j=j: np.asarray(x)[i, j], in_loops(strategy)
        )
        with in_case((LIMITS[i], ORDERS[j])):
            assert_close(found, looped(strategy, ORDERS[j], float(LIMITS[i])))


@every_kind
def test_a_scan_gives_what_a_loop_gives(strategy):
    assert_as_looped(strategy, [1], [0])


@every_kind
def test_a_vmap_over_seeds_gives_what_a_loop_gives(strategy):
    assert_as_looped(strategy, [1], range(len(ORDERS)))


@every_kind
def test_a_vmap_over_limits_gives_what_a_loop_gives(strategy):
    assert_as_looped(strategy, range(len(LIMITS)), [0])


@every_strategy
def test_the_state_can_be_donated(strategy):
    """No two of its arrays share memory, and each update makes one for each of them."""
    _, state, params = started(strategy)
    _, state = step(strategy, tree_of(jnp.float32), state, params, LIMIT)
    arrays = jax.tree.leaves(state)
    assert len({x.unsafe_buffer_pointer() for x in arrays}) == len(arrays)
    first = start.eval_shape(strategy, FEW_PARAMS)
    donating_step.lower(strategy, SEVERAL[0], first, FEW_PARAMS, LIMIT)


@every_kind
def test_a_donated_state_goes_on_as_a_kept_one(strategy):
    """The loop gives its states away, and the scan within vmap keeps them."""
    donated, _ = looped(strategy, ORDERS[0], float(LIMITS[2]))
    (kept, _) = jax.tree.map(lambda x: np.asarray(x)[2, 0], in_loops(strategy))
    assert_close(donated, kept)


def by_flattening(state):
    leaves, structure = jax.tree.flatten(state)
    return jax.tree.unflatten(structure, leaves)


def by_flax(state):
    fresh = jax.tree.map(np.zeros_like, state)
    return serialization.from_bytes(fresh, serialization.to_bytes(state))


def by_pickle(state):
    return pickle.loads(pickle.dumps(state))


@every_strategy
def test_a_saved_state_goes_on_as_if_it_had_not_been_saved(strategy):
    _, state, params = started(strategy)
    _, state = step(strategy, tree_of(jnp.float32), state, params, LIMIT)
    again = tree_of(jnp.float32, 3.0, seed=1)
    wanted = step(strategy, again, state, params, LIMIT)
    for copied in (by_flattening, by_flax, by_pickle, copy.deepcopy):
        restored = copied(state)
        assert type(restored) is type(state)
        assert_same_bits(restored, state)
        assert_same_bits(step(strategy, again, restored, params, LIMIT), wanted)


@every_strategy
def test_unexpected_extra_arguments_are_ignored(strategy):
    transformation = strategy.make(0.3)
    state = start.eval_shape(strategy, FEW_PARAMS)

    def program(**extra):
        @jax.jit
        def update(updates, state, params):
            return transformation.update(updates, state, params, **extra)

        return update.lower(SEVERAL[0], state, FEW_PARAMS).as_text()

    value = np.float32(1.0)  # the one that strategies may know
    wanted = program(value=value)
    assert program(value=value, other=value, unexpected="anything") == wanted


@every_strategy
def test_the_transformation_may_be_built_anew_at_every_step(strategy):
    """As inject_hyperparams does it, on a state of an earlier one."""
    _, state, params = started(strategy)
    updates = tree_of(jnp.float32)
    first = form(state)
    for limit in (0.1, 0.3):
        clipped, state = step(strategy, updates, state, params, as_limit(limit))
        assert_close(clipped, expected(strategy, updates, limit))
        assert form(state) == first


@every_strategy
def test_trees_without_numbers_keep_the_form_of_the_state_with_x64(strategy):
    with jax.enable_x64(True):
        tree = {"empty": np.zeros((0, 3), np.float32)}
        state = start.eval_shape(strategy, tree)
        after = step.eval_shape(strategy, tree, state, tree, LIMIT)[1]
        assert form(after) == form(state)
