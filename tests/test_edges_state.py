"""The edge table: the state keeps its structure, shapes and dtypes everywhere."""

import copy
import pickle
from contextlib import contextmanager
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from trees import (
    as_limit,
    assert_close,
    assert_same_bits,
    expected,
    params_for,
    result_of,
    start,
    step,
    together,
    tree_of,
)
from zoo import every_kind, every_strategy


def form(state):
    """All of a state but its values."""
    leaves = [
        (x.shape, x.dtype, x.weak_type) for x in map(jax.typeof, jax.tree.leaves(state))
    ]
    return jax.tree.structure(state), leaves


LIMIT = as_limit(0.3)


def started(strategy, dtype=jnp.float32):
    """The transformation, its first state, the params."""
    params = params_for(tree_of(dtype))
    return strategy.make(0.3), start(strategy, params), params


def assert_form_is_kept(strategy, dtype):
    transformation, _, params = started(strategy, dtype)
    state = transformation.init(params)
    first = form(state)
    for seed in range(3):
        _, state = step(strategy, tree_of(dtype, 10.0, seed), state, params, LIMIT)
        assert form(state) == first


@every_strategy
def test_the_state_keeps_its_form_from_init_through_every_update(strategy):
    assert_form_is_kept(strategy, jnp.float32)


@every_kind
def test_the_state_beside_bfloat16_keeps_its_form(strategy):
    assert_form_is_kept(strategy, jnp.bfloat16)


@every_strategy
def test_the_first_state_depends_on_no_value_of_the_params(strategy):
    _, state, params = started(strategy)
    for other in (0.0, -7.0, jnp.nan):
        changed = jax.tree.map(partial(jnp.full_like, fill_value=other), params)
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


SEVERAL = [tree_of(jnp.float32, 2.0, seed) for seed in range(3)]
LIMITS = jnp.array([0.0, 0.1, 0.5, 100.0, jnp.inf])


def scanned(strategy, several, state, params):
    def body(state, updates):
        clipped, state = step(strategy, updates, state, params, LIMIT)
        return state, clipped

    return jax.lax.scan(body, state, several)


def mapped_over_seeds(strategy, several, _, params):
    def run(updates):
        return step(strategy, updates, start(strategy, params), params, LIMIT)

    return jax.vmap(run)(several)


def mapped_over_limits(strategy, several, _, params):
    first = jax.tree.map(lambda x: x[0], several)

    def run(limit):
        return step(strategy, first, start(strategy, params), params, limit)

    return jax.vmap(run)(LIMITS)


@cache
def in_loops(strategy):
    """Scan and both vmaps, as one program."""
    loops = (scanned, mapped_over_limits, mapped_over_seeds)
    programs = {loop: partial(loop, strategy) for loop in loops}
    _, state, params = started(strategy)
    return together(programs, stacked(SEVERAL), state, params)


@every_kind
def test_a_scan_gives_what_a_loop_gives(strategy):
    _, state, params = started(strategy)
    looped = []
    for updates in SEVERAL:
        clipped, state = step(strategy, updates, state, params, LIMIT)
        looped.append(clipped)
    assert_close(result_of(in_loops(strategy), scanned), (state, stacked(looped)))


@every_kind
def test_a_vmap_over_seeds_gives_what_a_loop_gives(strategy):
    _, state, params = started(strategy)
    looped = [step(strategy, each, state, params, LIMIT) for each in SEVERAL]
    assert_close(result_of(in_loops(strategy), mapped_over_seeds), stacked(looped))


@every_kind
def test_a_vmap_over_limits_gives_what_a_loop_gives(strategy):
    _, state, params = started(strategy)
    looped = [step(strategy, SEVERAL[0], state, params, limit) for limit in LIMITS]
    assert_close(result_of(in_loops(strategy), mapped_over_limits), stacked(looped))


@every_strategy
def test_the_state_can_be_donated(strategy):
    """No two of its arrays share memory, and each update makes one for each of them."""
    _, state, params = started(strategy)
    donating = jax.jit(step, static_argnums=0, donate_argnums=(1, 2))
    _, state = step(strategy, tree_of(jnp.float32), state, params, LIMIT)
    arrays = jax.tree.leaves(state)
    assert len({x.unsafe_buffer_pointer() for x in arrays}) == len(arrays)
    donating.lower(strategy, tree_of(jnp.float32), state, params, LIMIT)


@every_kind
def test_a_donated_state_goes_on_as_a_kept_one(strategy):
    _, state, params = started(strategy)
    wanted, wanted_state = tree_of(jnp.float32), state
    for _ in range(2):
        wanted, wanted_state = step(strategy, wanted, wanted_state, params, LIMIT)

    @partial(jax.jit, donate_argnums=(0, 1))
    def donating(updates, state):
        return step(strategy, updates, state, params, LIMIT)

    clipped, state = donating(*donating(tree_of(jnp.float32), state))
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
        clipped, state = step(strategy, updates, state, params, as_limit(limit))
        assert_close(clipped, expected(strategy, updates, limit))
        assert form(state) == first


@every_strategy
def test_trees_without_numbers_keep_the_form_of_the_state_with_x64(strategy):
    with jax.enable_x64(True):
        tree = {"empty": jnp.zeros((0, 3), jnp.float32)}
        state = start(strategy, tree)
        assert form(step(strategy, tree, state, tree, LIMIT)[1]) == form(state)
