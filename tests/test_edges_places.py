"""The edge table: every place where optax may put a transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import assert_close, assert_same_bits, expected, params_for, tree_of
from zoo import every_strategy

import optaxclip

LIMIT = 0.3


def promoting():
    """Optax's own arithmetic does not pass under strict promotion."""
    return jax.numpy_dtype_promotion("standard")


def updated(transformation, updates):
    """One update from a fresh state."""
    params = params_for(updates)
    with promoting():
        return transformation.update(updates, transformation.init(params), params)[0]


@every_strategy
def test_in_a_chain_it_clips_what_the_earlier_ones_give(strategy):
    updates = tree_of(jnp.float32)
    chain = optax.chain(optax.scale(2.0), strategy.make(LIMIT), optax.scale(-0.5))
    doubled = jax.tree.map(lambda x: 2 * x, updates)
    wanted = [-0.5 * x for x in expected(strategy, doubled, LIMIT)]
    assert_close(updated(chain, updates), wanted)


@every_strategy
def test_under_masked_it_measures_and_clips_the_chosen_leaves_alone(strategy):
    updates = tree_of(jnp.float32)
    mask = {"conv": False, "dense": True, "scale": True}
    for chosen in (mask, lambda _: mask):
        clipped = updated(optax.masked(strategy.make(LIMIT), chosen), updates)
        assert_same_bits(clipped.pop("conv"), updates["conv"])
        inside = {key: updates[key] for key in ("dense", "scale")}
        assert_close(clipped, expected(strategy, inside, LIMIT))


@every_strategy
def test_under_partition_each_part_is_clipped_alone(strategy):
    updates = tree_of(jnp.float32)
    labels = {"conv": "tight", "dense": "loose", "scale": "tight"}
    parts = optax.partition(
        {"tight": strategy.make(0.1), "loose": strategy.make(0.4)}, labels
    )
    clipped = updated(parts, updates)
    for limit, keys in ((0.1, ("conv", "scale")), (0.4, ("dense",))):
        part = {key: updates[key] for key in keys}
        assert_close(
            {key: clipped[key] for key in keys}, expected(strategy, part, limit)
        )


@every_strategy
def test_inject_hyperparams_sets_the_limit(strategy):
    updates = tree_of(jnp.float32)
    params = params_for(updates)
    with promoting():
        injected = optax.inject_hyperparams(lambda limit: strategy.make(limit))(LIMIT)
        state, update = injected.init(params), jax.jit(injected.update)
        clipped, state = update(updates, state, params)
        assert_close(clipped, expected(strategy, updates, LIMIT))
        state.hyperparams["limit"] = jnp.asarray(0.05, jnp.float32)
        clipped, state = update(updates, state, params)
    assert_close(clipped, expected(strategy, updates, 0.05))


LABELS = {"conv": "a", "dense": "b", "scale": "a"}
FACTORIES = [
    (optaxclip.clip_value, {"max_value": LIMIT}),
    (optaxclip.clip_value, {"max_value": LIMIT, "min_value": -0.1}),
    (optaxclip.clip_scaled_value, {"scale": LIMIT}),
    (optaxclip.clip_global_norm, {"max_norm": LIMIT}),
    (optaxclip.clip_tensor_norm, {"max_norm": LIMIT}),
    (optaxclip.clip_tensor_rms, {"max_rms": LIMIT}),
    (optaxclip.clip_unit_norm, {"max_norm": LIMIT}),
    (optaxclip.clip_group_norm, {"max_norms": LIMIT, "labels": LABELS}),
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
    updates = tree_of(jnp.float32)
    injected = updated(optax.inject_hyperparams(factory)(**limit), updates)
    assert_close(injected, updated(factory(**limit), updates))


@every_strategy
def test_under_multi_steps_the_mean_is_clipped(strategy):
    several = [tree_of(jnp.float32), tree_of(jnp.float32, 2.0)]
    params = params_for(several[0])
    mean = jax.tree.map(lambda x: 1.5 * x, several[0])
    with promoting():
        steps = optax.MultiSteps(strategy.make(LIMIT), every_k_schedule=2)
        state, update = steps.init(params), jax.jit(steps.update)
        clipped, state = update(several[0], state, params)
        for leaf in jax.tree.leaves(clipped):
            np.testing.assert_array_equal(leaf, 0.0)
        clipped, state = update(several[1], state, params)
    assert_close(clipped, expected(strategy, mean, LIMIT))


@every_strategy
def test_under_apply_if_finite_a_bad_step_leaves_no_trace(strategy):
    updates = tree_of(jnp.float32)
    params = params_for(updates)
    bad = {**updates, "scale": jnp.asarray(jnp.nan)}
    with promoting():
        guarded = optax.apply_if_finite(strategy.make(LIMIT), 3)
        state, update = guarded.init(params), jax.jit(guarded.update)
        clipped, state = update(updates, state, params)
        assert_close(clipped, expected(strategy, updates, LIMIT))
        inner = state.inner_state
        skipped, state = update(bad, state, params)
        for leaf in jax.tree.leaves(skipped):
            np.testing.assert_array_equal(leaf, 0.0)
        assert_same_bits(state.inner_state, inner)


@every_strategy
def test_before_an_optimizer_it_trains(strategy):
    """The whole way: chain, jit, apply_updates."""
    params = tree_of(jnp.float32, 2.0)
    optimizer = optax.chain(strategy.make(1.0), optax.adam(0.1))

    def loss(params):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    before = loss(params)
    with promoting():
        state = optimizer.init(params)
        for _ in range(5):
            params, state = step(params, state)
    assert loss(params) < before / 2
