"""The edge table: what happens to the numbers."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import (
    FEW,
    as_limit,
    assert_close,
    assert_same_bits,
    clip,
    expected,
    in_case,
    mixed_tree,
    params_for,
    step,
    traced_clip,
    tree_of,
    wide,
)
from zoo import every_kind, every_scope, every_strategy

import optaxclip


@every_strategy
def test_ordinary_values_are_clipped_as_float64_would(strategy):
    updates = tree_of(jnp.float32)
    for limit in (0.3, 1.0, 30.0):
        with in_case(limit):
            clipped = traced_clip(strategy, updates, limit)
            assert_close(clipped, expected(strategy, updates, limit))


@every_strategy
def test_a_group_within_its_limit_keeps_its_bits(strategy):
    updates = tree_of(jnp.float32)
    assert_same_bits(traced_clip(strategy, updates, 1e3), updates)


@every_strategy
def test_zero_updates_stay_zero(strategy):
    zeros = jax.tree.map(np.zeros_like, tree_of(jnp.float32))
    for limit in (0.0, 1.0, np.inf):
        with in_case(limit):
            assert_same_bits(traced_clip(strategy, zeros, limit), zeros)


@partial(jax.jit, static_argnums=0)
def pulled_back(strategy, updates, limit, cotangent):
    """The derivative of clipping, applied backward."""
    clipped = partial(clip, strategy, limit=limit, params=params_for(updates))
    return jax.vjp(clipped, updates)[1](cotangent)[0]


@every_kind
def test_the_derivative_at_zero_updates_is_the_identity(strategy):
    cotangent = tree_of(jnp.float32, seed=1, shapes=FEW)
    zeros = jax.tree.map(np.zeros_like, cotangent)
    assert_close(pulled_back(strategy, zeros, 1.0, cotangent), cotangent)


@every_kind
def test_the_derivative_is_finite_at_limit_zero_and_at_a_zero_leaf(strategy):
    updates = tree_of(jnp.float32, shapes=FEW)
    updates["bias"] = np.zeros_like(updates["bias"])
    cotangent = tree_of(jnp.float32, seed=1, shapes=FEW)
    for limit in (0.0, 0.1, np.inf):
        for leaf in jax.tree.leaves(pulled_back(strategy, updates, limit, cotangent)):
            assert np.isfinite(leaf).all(), limit


@every_strategy
def test_limit_zero_gives_zeros(strategy):
    for leaf in jax.tree.leaves(traced_clip(strategy, tree_of(jnp.float32), 0.0)):
        np.testing.assert_array_equal(leaf, 0.0)


@every_strategy
def test_limit_inf_changes_no_bit_even_of_inf_and_nan(strategy):
    updates = jax.tree.map(np.array, tree_of(jnp.float32))
    assert_same_bits(traced_clip(strategy, updates, np.inf), updates)
    updates["conv"][0, 0, 0] = np.inf
    updates["dense"]["bias"][1] = -np.inf
    assert_same_bits(traced_clip(strategy, updates, np.inf), updates)
    updates["scale"] = np.float32(np.nan)
    clipped = traced_clip(strategy, updates, np.inf)
    # A GPU's arithmetic turns every NaN into one and the same.
    assert np.isnan(clipped.pop("scale"))
    del updates["scale"]
    assert_same_bits(clipped, updates)


@every_strategy
def test_a_negative_or_nan_limit_is_refused_at_construction(strategy):
    for limit in (-1.0, -1, float("-inf"), float("nan")):
        with in_case(limit), pytest.raises(ValueError, match=strategy.limit):
            strategy.make(limit)


@every_strategy
def test_a_traced_negative_limit_acts_as_zero(strategy):
    for leaf in jax.tree.leaves(traced_clip(strategy, tree_of(jnp.float32), -1.0)):
        np.testing.assert_array_equal(leaf, 0.0)


@every_strategy
def test_a_traced_nan_limit_makes_the_update_nan(strategy):
    for leaf in jax.tree.leaves(traced_clip(strategy, tree_of(jnp.float32), np.nan)):
        assert np.isnan(leaf).all()


EXTREMES = [
    (1e20, 1.0),
    (3e38, 1.0),  # the norm itself is past float32
    (3e38, 1e30),
    (1e20, 1e-30),  # so is the factor, by which it is clipped
    (1e-30, 1e-32),
]
NARROW_AND_COMPLEX_EXTREMES = [
    (jnp.float16, 300.0),
    (jnp.float16, 6e4),
    (jnp.bfloat16, 1e20),
    (jnp.bfloat16, 3e38),
    (jnp.complex64, 1e20),
]


def assert_clipped_as_float64_would(strategy, updates, limit):
    clipped = traced_clip(strategy, updates, limit)
    assert_close(clipped, expected(strategy, updates, limit))


@every_strategy
def test_finite_extremes_are_clipped_as_float64_would(strategy):
    for size, limit in EXTREMES:
        with in_case((size, limit)):
            updates = tree_of(jnp.float32, size)
            assert_clipped_as_float64_would(strategy, updates, limit)


def alone(dtype, size):
    """Numbers of one dtype and of this size, beside zeros of others."""

    def leaf(x):
        return np.asarray(wide(x) * (size if x.dtype == dtype else 0), x.dtype)

    return jax.tree.map(leaf, mixed_tree())


@every_kind
def test_extremes_of_few_bits_or_complex_are_clipped_as_float64_would(strategy):
    """Beside other dtypes; test_edges_dtypes has them among themselves."""
    for dtype, size in NARROW_AND_COMPLEX_EXTREMES:
        with in_case((dtype, size)):
            assert_clipped_as_float64_would(strategy, alone(dtype, size), 1.0)


@every_strategy
def test_a_huge_leaf_beside_an_ordinary_one_is_clipped_as_float64_would(strategy):
    updates = tree_of(jnp.float32)
    updates["conv"] = tree_of(jnp.float32, 1e20)["conv"]
    clipped = traced_clip(strategy, updates, 1.0)
    assert_close(clipped, expected(strategy, updates, 1.0))


@every_strategy
def test_tiny_values_within_the_limit_keep_their_bits(strategy):
    updates = tree_of(jnp.float32, 1e-30)
    assert_same_bits(traced_clip(strategy, updates, 1.0), updates)


def with_a_bad_element(bad):
    """An ordinary tree but for one number."""
    updates = tree_of(jnp.float32)
    conv = np.array(updates["conv"])
    conv[0, 1, 2] = bad
    return {**updates, "conv": conv}


@every_strategy
def test_a_bad_element_makes_its_whole_group_nan_and_no_other(strategy):
    for bad in (np.nan, np.inf, -np.inf):
        updates = with_a_bad_element(bad)
        for limit in (0.5, 1e3):
            with in_case((bad, limit)):
                clipped = traced_clip(strategy, updates, limit)
                assert_close(clipped, expected(strategy, updates, limit))


@every_strategy
def test_what_a_bad_element_leaves_alone_keeps_its_bits(strategy):
    for bad in (np.nan, np.inf):
        updates = with_a_bad_element(bad)
        for got, had, want in zip(
            jax.tree.leaves(traced_clip(strategy, updates, 1e3)),
            jax.tree.leaves(updates),
            expected(strategy, updates, 1e3),
            strict=True,
        ):
            alone = np.isfinite(had) & ~np.isnan(want)
            kept, own = np.asarray(got)[alone], np.asarray(had)[alone]
            np.testing.assert_array_equal(kept, own, str(bad))


@every_scope
def test_a_clip_by_hand_gives_what_a_jitted_one_gives(strategy):
    """Eagerly, as one tries things out: every step of it is a program of its own."""
    ordinary, bad = tree_of(jnp.float32), with_a_bad_element(jnp.nan)
    transformation = strategy.make(0.3)
    params = params_for(ordinary)
    state = traced = transformation.init(params)
    for updates in (ordinary, bad):
        clipped, state = transformation.update(updates, state, params)
        wanted, traced = step(strategy, updates, traced, params, as_limit(0.3))
        assert_close(clipped, wanted)
        assert_close(state, traced)


ORDERS = (1, 1.0, 1.5, 2, 3, 7.5, np.inf)


@cache
def clipped_by_each_order():
    """By every order, in one program."""

    @jax.jit
    def each_clipped(updates):
        clips = [optaxclip.clip_global_norm(0.5, ord=order) for order in ORDERS]
        return [clip.update(updates, clip.init(updates))[0] for clip in clips]

    return dict(zip(map(str, ORDERS), each_clipped(tree_of(jnp.float32)), strict=True))


@pytest.mark.parametrize("order", ORDERS)
def test_ord_is_any_number_from_one_to_infinity(order):
    updates = tree_of(jnp.float32)
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(updates)])
    norm = np.linalg.norm(flat.astype(np.float64), order)
    wanted = jax.tree.map(lambda x: wide(x) * 0.5 / norm, updates)
    assert_close(clipped_by_each_order()[str(order)], wanted)


@pytest.mark.parametrize("order", [0.5, 0, -1, float("nan")])
def test_ord_below_one_is_refused(order):
    with pytest.raises(ValueError, match="ord"):
        optaxclip.clip_global_norm(1.0, ord=order)


def test_clip_value_takes_two_different_bounds():
    updates = np.array([-np.inf, -3.0, -0.5, 0.0, 1.5, 3.0, np.inf, np.nan], np.float32)
    clip_value = optaxclip.clip_value(2.0, min_value=-1.0)
    clipped = jax.jit(lambda u: clip_value.update(u, clip_value.init(u))[0])(updates)
    np.testing.assert_array_equal(
        clipped, [-1.0, -1.0, -0.5, 0.0, 1.5, 2.0, 2.0, np.nan]
    )


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.0), (-1.0, -0.5)])
def test_clip_value_refuses_bounds_that_exclude_zero(low, high):
    with pytest.raises(ValueError, match="value"):
        optaxclip.clip_value(high, min_value=low)


@pytest.mark.parametrize("make", [optaxclip.clip_value, optaxclip.clip_weights])
def test_a_smallest_value_above_zero_is_named_with_its_value(make):
    wanted = r"^min_value must be at most 0, not 0.5; use -infinity for no limit.$"
    with pytest.raises(ValueError, match=wanted):
        make(1.0, min_value=0.5)
    with pytest.raises(ValueError, match=r"^min_value must be at most 0, not nan;"):
        make(1.0, min_value=jnp.nan)


def test_the_limit_itself_is_within_the_limit():
    updates = {"w": np.array([3.0, 4.0], np.float32)}

    @jax.jit
    def clipped(updates):
        clips = optaxclip.clip_global_norm(5.0), optaxclip.clip_tensor_norm(5.0)
        return [clip.update(updates, clip.init(updates))[0] for clip in clips]

    assert_same_bits(clipped(updates), [updates, updates])
