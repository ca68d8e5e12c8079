"""The edge table: every dtype is kept, and the arithmetic is float32 or better."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from trees import (
    FEW,
    assert_close,
    assert_same_bits,
    clip,
    constant_clip,
    expected,
    in_case,
    mixed_tree,
    params_for,
    traced_clip,
    tree_of,
    wide,
)
from zoo import every_kind, every_kind_with_params, every_scope, every_strategy

KNOWN_LIMITS = [1000, np.float64(0.5)]
TRACED_LIMITS = [np.asarray(0.5, jnp.bfloat16), np.int32(1)]


def dtypes(tree):
    """The dtype of every leaf."""
    return jax.tree.map(lambda x: x.dtype, tree)


@every_strategy
def test_each_leaf_keeps_its_dtype(strategy):
    updates = mixed_tree()
    for limit in (0.5, 0.0):
        clipped = traced_clip(strategy, updates, limit)
        assert dtypes(clipped) == dtypes(updates)
        assert_close(clipped, expected(strategy, updates, limit))


def few_of_each(**dtypes):
    """A tree that is mixed, too, but of few leaves."""
    trees = {name: tree_of(dtype, shapes=FEW) for name, dtype in dtypes.items()}
    return {name: tree[name] for name, tree in trees.items()}


FEW_MIXED = {
    **few_of_each(bias=jnp.complex64, kernel=jnp.bfloat16),
    "half": np.float16(0.75),
    "single": np.float32(-0.6),
}


@cache
def mixed_clipped(strategy):
    """A mixed tree, clipped to each limit."""

    @jax.jit
    def to_each(updates, traced):
        return [clip(strategy, updates, limit) for limit in (*KNOWN_LIMITS, *traced)]

    return to_each(FEW_MIXED, TRACED_LIMITS)


@every_scope
def test_a_limit_of_any_dtype_works_on_leaves_of_any_dtype(strategy):
    limits = (*KNOWN_LIMITS, *TRACED_LIMITS)
    for limit, clipped in zip(limits, mixed_clipped(strategy), strict=True):
        with in_case(limit):
            assert dtypes(clipped) == dtypes(FEW_MIXED)
            assert_close(clipped, expected(strategy, FEW_MIXED, float(limit)))


@every_strategy
def test_a_group_within_its_limit_keeps_its_bits_in_every_dtype(strategy):
    for limit in (1e3, np.inf):
        assert_same_bits(traced_clip(strategy, mixed_tree(), limit), mixed_tree())


@every_scope
def test_a_mixed_tree_within_its_limit_keeps_its_bits(strategy):
    assert_same_bits(mixed_clipped(strategy)[KNOWN_LIMITS.index(1000)], FEW_MIXED)


@every_kind_with_params
def test_params_may_have_another_dtype_than_the_updates(strategy):
    updates = tree_of(jnp.bfloat16, shapes=FEW)
    params = params_for(tree_of(jnp.float32, shapes=FEW))
    clipped = constant_clip(strategy, updates, 0.3, params)
    assert dtypes(clipped) == dtypes(updates)
    assert_close(clipped, expected(strategy, updates, 0.3, params))


@every_kind
def test_float64_is_clipped_in_float64(strategy):
    with jax.enable_x64(True):
        for size in (1.0, 1e200, 1e-200):
            updates = tree_of(jnp.float64, size, shapes=FEW)
            limit = jax.device_put(np.float64(0.3 * size))
            clipped = traced_clip(strategy, updates, limit)
            assert dtypes(clipped) == dtypes(updates)
            wanted = expected(strategy, updates, 0.3 * size)
            assert_close(clipped, wanted, working=jnp.float64)


@every_scope
def test_float64_beside_float16_keeps_both(strategy):
    with jax.enable_x64(True):
        updates = few_of_each(bias=jnp.float64, kernel=jnp.float16)

        @jax.jit
        def clipped_to_both(updates, limit):
            return [clip(strategy, updates, one) for one in (0.3, limit)]

        for clipped in clipped_to_both(updates, np.float64(0.3)):
            assert dtypes(clipped) == dtypes(updates)
            assert_close(clipped, expected(strategy, updates, 0.3))


@every_scope
def test_the_norm_of_many_small_leaves_is_not_rounded_to_their_dtype(strategy):
    """In bfloat16 a sum of ones stops at 256."""
    ones = [np.ones((), jnp.bfloat16)] * 8
    trees = [[np.full((), 16, jnp.bfloat16), *ones], np.ones(300, jnp.bfloat16)]

    @jax.jit
    def each_clipped(trees, limit):
        return [clip(strategy, updates, limit) for updates in trees]

    for clipped, updates in zip(each_clipped(trees, 0.5), trees, strict=True):
        assert_close(clipped, expected(strategy, updates, 0.5))


@every_strategy
def test_a_complex_number_is_clipped_by_its_modulus_and_keeps_its_phase(strategy):
    updates = mixed_tree()
    clipped = traced_clip(strategy, updates, 0.05)
    ratio = wide(clipped["scale"]) / wide(updates["scale"])
    assert (ratio.real < 1).all()
    np.testing.assert_allclose(ratio.imag, 0.0, atol=1e-6)


ONE_DTYPE = {
    jnp.float16: (1.0, 300.0, 6e4),
    jnp.bfloat16: (1.0, 1e20, 3e38),
    jnp.complex64: (1.0, 1e20, 1e20),
}


@every_scope
def test_all_leaves_may_be_of_few_bits_or_complex(strategy):
    @jax.jit
    def each_clipped(trees, limit):
        return [clip(strategy, updates, limit) for updates in trees]

    for i, limit in enumerate((0.3, 1.0, 1.0)):
        trees = [tree_of(d, sizes[i], shapes=FEW) for d, sizes in ONE_DTYPE.items()]
        for clipped, updates in zip(each_clipped(trees, limit), trees, strict=True):
            assert dtypes(clipped) == dtypes(updates)
            assert_close(clipped, expected(strategy, updates, limit))
