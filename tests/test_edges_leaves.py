"""The edge table: leaves and trees that are not ordinary arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import assert_close, assert_same_bits, clip, expected, traced_clip, tree_of
from zoo import STRATEGIES, every_strategy, named

OTHERS = {
    "integer": lambda: jnp.arange(3),
    "integer scalar": lambda: jnp.asarray(7),
    "unsigned": lambda: jnp.arange(3, dtype=jnp.uint8),
    "bool": lambda: jnp.array([True, False]),
    "float0": lambda: np.zeros((3,), jax.dtypes.float0),
    "key": lambda: jax.random.key(0),
    "keys": lambda: jax.random.split(jax.random.key(0), 2),
    "None": lambda: None,
    "MaskedNode": optax.MaskedNode,
    "Python int": lambda: 7,
    "Python bool": lambda: True,
}
EMPTY_TREES = {
    "dict": dict,
    "tuple": tuple,
    "None": lambda: [None],
    "MaskedNode": optax.MaskedNode,
    "nested": lambda: {"a": {}, "b": [()]},
    "zero-size": lambda: {"a": jnp.zeros((0, 3)), "b": jnp.zeros((0,))},
    "integers": lambda: {"a": jnp.arange(3), "b": jnp.arange(4).reshape(2, 2)},
}


def without_keys(leaf):
    """The data of a random key, which has no bits to compare itself."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )
    return jax.random.key_data(leaf) if is_key else leaf


@every_strategy
def test_leaves_that_cannot_be_clipped_pass_through_uncounted(strategy):
    updates = tree_of(jnp.float32)
    others = {name: other() for name, other in OTHERS.items()}
    for limit in (0.3, 0.0):
        clipped = clip(strategy, {**updates, "others": others}, limit)
        passed = clipped.pop("others")
        for name, other in others.items():
            assert_same_bits(without_keys(passed[name]), without_keys(other))
        assert_close(clipped, expected(strategy, updates, limit))


@every_strategy
def test_zero_size_leaves_pass_through_uncounted(strategy):
    updates = tree_of(jnp.float32)
    empty = [jnp.zeros(shape) for shape in ((0,), (0, 3), (3, 0), (2, 0, 3))]
    clipped = clip(strategy, {**updates, "other": empty}, 0.3)
    assert_same_bits(clipped.pop("other"), empty)
    assert_close(clipped, expected(strategy, updates, 0.3))


@pytest.mark.parametrize("tree", EMPTY_TREES.values(), ids=EMPTY_TREES)
@every_strategy
def test_a_tree_without_numbers_comes_back_as_it_was(strategy, tree):
    for limit in (0.0, 1.0, jnp.inf):
        assert_same_bits(clip(strategy, tree(), limit), tree())
    assert_same_bits(traced_clip(strategy, tree(), 0.0), tree())


@every_strategy
def test_a_bare_array_is_a_tree(strategy):
    for array in (jnp.asarray(-2.0), jnp.arange(1.0, 4.0), jnp.ones((3, 2))):
        for limit in (0.3, 100.0):
            clipped = clip(strategy, array, limit)
            assert clipped.shape == array.shape
            assert_close(clipped, expected(strategy, array, limit))


@every_strategy
def test_a_python_float_is_a_scalar_leaf(strategy):
    updates = {"gain": -0.75, "w": jnp.arange(1.0, 4.0)}
    assert_close(clip(strategy, updates, 0.3), expected(strategy, updates, 0.3))


@every_strategy
def test_numpy_leaves_are_clipped_like_others(strategy):
    updates = tree_of(jnp.float32)
    as_numpy = jax.tree.map(np.asarray, updates)
    assert_close(clip(strategy, as_numpy, 0.3), expected(strategy, updates, 0.3))


needing_params = pytest.mark.parametrize(
    "strategy", [s for s in STRATEGIES if s.needs_params], ids=named
)


@needing_params
def test_missing_params_are_asked_for(strategy):
    updates, transformation = tree_of(jnp.float32), strategy.make(1.0)
    state = transformation.init(updates)
    with pytest.raises(ValueError, match="params"):
        transformation.update(updates, state)


@needing_params
def test_params_of_another_structure_are_refused(strategy):
    updates, transformation = tree_of(jnp.float32), strategy.make(1.0)
    state = transformation.init(updates)
    deeper = {**updates, "conv": {"kernel": updates["conv"]}}
    fewer = {"conv": updates["conv"]}
    for params in (fewer, deeper, [updates], list(updates.values()), updates["conv"]):
        with pytest.raises(ValueError, match="params"):
            transformation.update(updates, state, params)


@needing_params
def test_params_in_a_container_are_no_params_of_a_bare_array(strategy):
    array, transformation = jnp.ones((3, 2)), strategy.make(1.0)
    state = transformation.init(array)
    with pytest.raises(ValueError, match="needs params of the same structure as the "):
        transformation.update(array, state, {"w": array})


@pytest.mark.parametrize(
    "strategy", [s for s in STRATEGIES if not s.needs_params], ids=named
)
def test_a_strategy_that_needs_no_params_takes_none(strategy):
    updates, transformation = tree_of(jnp.float32), strategy.make(0.3)
    clipped, _ = transformation.update(updates, transformation.init(updates))
    assert_close(clipped, expected(strategy, updates, 0.3))
