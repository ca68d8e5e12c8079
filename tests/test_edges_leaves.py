"""The edge table: leaves and trees that are not ordinary arrays."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import (
    FEW,
    assert_close,
    assert_same_bits,
    clip,
    expected,
    in_case,
    params_for,
    start,
    traced_clip,
    tree_of,
)
from zoo import STRATEGIES, every_kind, every_scope, is_a_kind, named


def zeros(*shape):
    return np.zeros(shape, np.float32)


OTHERS = {
    "integer": lambda: jax.device_put(np.arange(3, dtype=np.int32)),
    "integer scalar": lambda: jax.device_put(np.int32(7)),
    "unsigned": lambda: jax.device_put(np.arange(3, dtype=np.uint8)),
    "bool": lambda: jax.device_put(np.array([True, False])),
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
    "zero-size": lambda: {"a": zeros(0, 3), "b": zeros(0)},
}


def without_keys(leaf):
    """The data of a random key, which has no bits to compare itself."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )
    return jax.random.key_data(leaf) if is_key else leaf


def assert_passed(passed, others):
    """Leaves that nobody clips are the same."""
    for name, other in others.items():
        with in_case(name):
            assert_same_bits(without_keys(passed[name]), without_keys(other))


@cache
def others():
    """One leaf of each kind, made once."""
    return {name: other() for name, other in OTHERS.items()}


def with_others():
    """Ordinary leaves, and beside them all that cannot be clipped.

    What jit takes as an argument becomes an array.
    """
    arrays = jax.tree.map(
        lambda x: jax.device_put(x) if isinstance(x, int) else x, others()
    )
    empty = [zeros(*shape) for shape in ((0,), (0, 3), (3, 0), (2, 0, 3))]
    return {**few_numbers(), "others": arrays, "zero-size": empty}


def few_numbers():
    return tree_of(jnp.float32, shapes=FEW)


@every_kind
def test_leaves_that_cannot_be_clipped_pass_through_uncounted(strategy):
    updates = with_others()
    for limit in (0.3, 0.0):
        clipped = traced_clip(strategy, updates, limit)
        assert_passed(clipped.pop("others"), updates["others"])
        del clipped["zero-size"]
        assert_close(clipped, expected(strategy, few_numbers(), limit))


@every_kind
def test_zero_size_leaves_pass_through_uncounted(strategy):
    updates = with_others()
    clipped = traced_clip(strategy, updates, 0.3)
    assert_same_bits(clipped["zero-size"], updates["zero-size"])
    numbers = {key: clipped[key] for key in FEW}
    assert_close(numbers, expected(strategy, few_numbers(), 0.3))


@every_scope
def test_leaves_that_cannot_be_clipped_pass_through_by_hand_too(strategy):
    updates = {"x": np.ones(2, np.float32), "others": others()}
    clipped = clip(strategy, updates, 0.3)
    assert_passed(clipped["others"], others())


@every_kind
def test_a_tree_without_numbers_comes_back_as_it_was(strategy):
    trees = {name: tree() for name, tree in EMPTY_TREES.items()}

    @jax.jit
    def all_clipped(limit):
        return {name: clip(strategy, tree, limit) for name, tree in trees.items()}

    for limit in (0.0, 1.0, jnp.inf):
        for name, clipped in all_clipped(limit).items():
            with in_case((name, limit)):
                assert_same_bits(clipped, trees[name])


@every_scope
def test_a_tree_without_numbers_comes_back_by_hand_too(strategy):
    for name, tree in EMPTY_TREES.items():
        with in_case(name):
            assert_same_bits(clip(strategy, tree(), 1.0), tree())


ARRAYS = [
    np.float32(-2) * np.ones((), np.float32),
    np.arange(1, 4, dtype=np.float32),
    np.ones((3, 2), np.float32),
]


@cache
def bare_clipped(strategy):
    """Arrays alone, clipped to a traced limit; with params where they are needed."""

    def clipped(array, limit):
        transformation = strategy.make(limit)
        params = params_for(array) if strategy.needs_params else None
        return transformation.update(array, transformation.init(array), params)[0]

    return jax.jit(lambda arrays, limit: [clipped(array, limit) for array in arrays])


def assert_bare_arrays_are_clipped(strategy, limits):
    for limit in limits:
        given = bare_clipped(strategy)(ARRAYS, np.float32(limit))
        for clipped, array in zip(given, ARRAYS, strict=True):
            assert clipped.shape == array.shape
            assert_close(clipped, expected(strategy, array, limit))


@every_kind
def test_a_bare_array_is_a_tree(strategy):
    assert_bare_arrays_are_clipped(strategy, (0.3, 100.0))


@cache
def with_constants(strategy):
    """Clip what is known while the program is traced, and so is no traced array.

    One program for the two rows below, each of which looks at what is its own.
    """
    updates = {**jax.tree.map(np.asarray, few_numbers()), "gain": -0.75}
    clipped = jax.jit(lambda limit: clip(strategy, updates, limit))(0.3)
    wanted = expected(strategy, updates, 0.3)
    return list(zip(sorted(updates), jax.tree.leaves(clipped), wanted, strict=True))


@every_kind
def test_a_python_float_is_a_scalar_leaf(strategy):
    ((got, want),) = [(a, b) for n, a, b in with_constants(strategy) if n == "gain"]
    assert_close(got, want)


@every_kind
def test_numpy_leaves_are_clipped_like_others(strategy):
    for name, got, want in with_constants(strategy):
        if name != "gain":
            assert_close(got, want)


needing_params = pytest.mark.parametrize(
    "strategy", [s for s in STRATEGIES if s.needs_params], ids=named
)


@needing_params
def test_missing_params_are_asked_for(strategy):
    updates, transformation = tree_of(jnp.float32), strategy.make(1.0)
    state = start(strategy, updates)
    with pytest.raises(ValueError, match="params"):
        transformation.update(updates, state)


@needing_params
def test_params_of_another_structure_are_refused(strategy):
    updates, transformation = tree_of(jnp.float32), strategy.make(1.0)
    state = start(strategy, updates)
    deeper = {**updates, "conv": {"kernel": updates["conv"]}}
    fewer = {"conv": updates["conv"]}
    for params in (fewer, deeper, [updates], list(updates.values()), updates["conv"]):
        with pytest.raises(ValueError, match="params"):
            transformation.update(updates, state, params)


@needing_params
def test_params_in_a_container_are_no_params_of_a_bare_array(strategy):
    array, transformation = ARRAYS[-1], strategy.make(1.0)
    state = start(strategy, array)
    with pytest.raises(ValueError, match="needs params of the same structure as the "):
        transformation.update(array, state, {"w": array})


@pytest.mark.parametrize(
    "strategy",
    [s for s in STRATEGIES if is_a_kind(s) and not s.needs_params],
    ids=named,
)
def test_a_strategy_that_needs_no_params_takes_none(strategy):
    assert_bare_arrays_are_clipped(strategy, (0.3,))
