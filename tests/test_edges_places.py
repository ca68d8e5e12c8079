"""The edge table: every place where optax may put a transformation."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import (
    FEW,
    assert_close,
    assert_same_bits,
    expected,
    params_for,
    result_of,
    together,
    tree_of,
)
from zoo import every_kind, every_scope

import optaxclip

LIMIT = 0.3


def promoting():
    """Optax's own arithmetic does not pass under strict promotion."""
    return jax.numpy_dtype_promotion("standard")


def once(transformation, updates, params):
    """One update from a fresh state."""
    return transformation.update(updates, transformation.init(params), params)[0]


def apart(stacked):
    """The results of two steps of a scan."""
    return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(2)]


def scaled(tree, factor):
    return jax.tree.map(lambda x: factor * x, tree)


UPDATES = jax.tree.map(np.asarray, tree_of(jnp.float32, shapes=FEW))
MASK = {"bias": False, "kernel": True}
LABELS_OF_PARTS = {"bias": "tight", "kernel": "loose"}


def in_a_chain(strategy, updates, params):
    chain = optax.chain(optax.scale(2.0), strategy.make(LIMIT), optax.scale(-0.5))
    return once(chain, updates, params)


def masked(strategy, updates, params):
    """By a function, whose tree optax takes as it is."""
    return once(optax.masked(strategy.make(LIMIT), lambda _: MASK), updates, params)


def partitioned(strategy, updates, params):
    tight, loose = strategy.make(0.1), strategy.make(0.4)
    parts = optax.partition({"tight": tight, "loose": loose}, LABELS_OF_PARTS)
    return once(parts, updates, params)


def injected(strategy, updates, params):
    """With the first limit, and with another one that was set in the state."""
    outer = optax.inject_hyperparams(lambda limit: strategy.make(limit))(LIMIT)

    def step(state, limit):
        state.hyperparams["limit"] = limit
        clipped, state = outer.update(updates, state, params)
        return state, clipped

    first = outer.init(params)
    limits = jnp.stack([first.hyperparams["limit"], 0.05])
    return apart(jax.lax.scan(step, first, limits)[1])


def in_multi_steps(strategy, updates, params):
    """Of two steps, the second with updates twice as large."""
    outer = optax.MultiSteps(strategy.make(LIMIT), every_k_schedule=2)

    def step(state, factor):
        clipped, state = outer.update(scaled(updates, factor), state, params)
        return state, clipped

    factors = np.array([1.0, 2.0], np.float32)
    return apart(jax.lax.scan(step, outer.init(params), factors)[1])


def applied_if_finite(strategy, updates, params):
    """A good step and a bad one, and the state before and after the bad one."""
    outer = optax.apply_if_finite(strategy.make(LIMIT), 3)

    def step(state, number):
        bias = jnp.full_like(updates["bias"], number)
        clipped, state = outer.update({**updates, "bias": bias}, state, params)
        return state, (clipped, state.inner_state)

    numbers = np.array([0.7, np.nan], np.float32)
    (good_step, before), (bad_step, after) = apart(
        jax.lax.scan(step, outer.init(params), numbers)[1]
    )
    return good_step, bad_step, before, after


def loss(params):
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


def trained(strategy, updates, params):
    """The loss before and after five steps: chain, jit, apply_updates."""
    del params
    optimizer = optax.chain(strategy.make(1.0), optax.adam(0.1))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    first = scaled(updates, 2)
    (last, _), _ = jax.lax.scan(step, (first, optimizer.init(first)), length=5)
    return loss(first), loss(last)


# Those that are asked of the same strategies.
IN_A_WRAPPER = (masked, partitioned, injected, in_multi_steps, applied_if_finite)


@cache
def in_each(places, strategy):
    """What the strategy does in some places, as one program."""
    programs = {place: partial(place, strategy) for place in places}
    with promoting():
        return together(programs, UPDATES, params_for(UPDATES))


def found(place, strategy):
    """What the strategy does in one place."""
    places = IN_A_WRAPPER if place in IN_A_WRAPPER else (place,)
    return result_of(in_each(places, strategy), place)


@every_scope
def test_in_a_chain_it_clips_what_the_earlier_ones_give(strategy):
    wanted = [-0.5 * x for x in expected(strategy, scaled(UPDATES, 2), LIMIT)]
    assert_close(found(in_a_chain, strategy), wanted)


@every_kind
def test_under_masked_it_measures_and_clips_the_chosen_leaves_alone(strategy):
    clipped = found(masked, strategy)
    assert_same_bits(clipped["bias"], UPDATES["bias"])
    kernel = UPDATES["kernel"]
    assert_close(clipped["kernel"], expected(strategy, kernel, LIMIT))


@every_kind
def test_under_partition_each_part_is_clipped_alone(strategy):
    clipped = found(partitioned, strategy)
    for key, limit in {"bias": 0.1, "kernel": 0.4}.items():
        assert_close(clipped[key], expected(strategy, UPDATES[key], limit))


@every_kind
def test_inject_hyperparams_sets_the_limit(strategy):
    for clipped, limit in zip(found(injected, strategy), (LIMIT, 0.05), strict=True):
        assert_close(clipped, expected(strategy, UPDATES, limit))


@every_kind
def test_under_multi_steps_the_mean_is_clipped(strategy):
    first, second = found(in_multi_steps, strategy)
    for leaf in jax.tree.leaves(first):
        np.testing.assert_array_equal(leaf, 0.0)
    assert_close(second, expected(strategy, scaled(UPDATES, 1.5), LIMIT))


@every_kind
def test_under_apply_if_finite_a_bad_step_leaves_no_trace(strategy):
    good_step, bad_step, before, after = found(applied_if_finite, strategy)
    good = {**UPDATES, "bias": np.full(4, 0.7, np.float32)}
    assert_close(good_step, expected(strategy, good, LIMIT))
    for leaf in jax.tree.leaves(bad_step):
        np.testing.assert_array_equal(leaf, 0.0)
    assert_same_bits(after, before)


@every_scope
def test_before_an_optimizer_it_trains(strategy):
    before, after = found(trained, strategy)
    assert after < before / 2


LABELS = {"bias": "a", "kernel": "b"}
FACTORIES = [
    (optaxclip.clip_value, {"max_value": LIMIT}),
    (optaxclip.clip_value, {"max_value": LIMIT, "min_value": -0.1}),
    (optaxclip.clip_scaled_value, {"scale": LIMIT}),
    (optaxclip.clip_global_norm, {"max_norm": LIMIT}),
    (optaxclip.clip_tensor_norm, {"max_norm": LIMIT}),
    (optaxclip.clip_tensor_rms, {"max_rms": LIMIT}),
    (optaxclip.clip_unit_norm, {"max_norm": LIMIT}),
    (optaxclip.clip_group_norm, {"max_norm": LIMIT, "labels": LABELS}),
    (optaxclip.soft_clip_value, {"max_value": LIMIT}),
    (optaxclip.soft_clip_global_norm, {"max_norm": LIMIT}),
    (optaxclip.agc, {}),
    (optaxclip.agc, {"clipping": LIMIT}),
    (optaxclip.zclip, {}),
    (optaxclip.zclip, {"max_norm": LIMIT}),
    (optaxclip.adagc, {}),
    (optaxclip.aggc, {"labels": LABELS}),
    (optaxclip.quantile_clip, {}),
]


@pytest.mark.parametrize(
    ("factory", "limit"),
    FACTORIES,
    ids=[f"{factory.__name__}-{'-'.join(limit)}" for factory, limit in FACTORIES],
)
def test_inject_hyperparams_takes_a_factory_as_it_is(factory, limit):
    """With every default in place and no static_args."""
    injected = optax.inject_hyperparams(factory)(**limit)

    @jax.jit
    def both(updates, params):
        return once(injected, updates, params), once(factory(**limit), updates, params)

    with promoting():
        assert_close(*both(UPDATES, params_for(UPDATES)))
