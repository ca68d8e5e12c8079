"""The arithmetic of clipping without optax."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_close, assert_same_bits, tree_of, wide
from unchecked import unchecked

import optaxclip


def flat(tree):
    """All numbers of a tree, in float64."""
    return np.concatenate([wide(x).ravel() for x in jax.tree.leaves(tree)])


shrink_tree = jax.jit(optaxclip.shrink_tree)


@pytest.mark.parametrize("order", [1, 2, 3.5, np.inf])
def test_tree_norm_is_the_norm_of_all_numbers(order):
    tree = tree_of(jnp.float32)
    wanted = np.linalg.norm(flat(tree), order)
    found = jax.jit(lambda tree: optaxclip.tree_norm(tree, order))(tree)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_tree_norm_takes_a_norm_as_well_as_an_order():
    tree = tree_of(jnp.float32)
    rms = optaxclip.tree_norm(tree, optaxclip.norms.rms)
    wanted = np.sqrt(np.mean(flat(tree) ** 2))
    np.testing.assert_allclose(rms, wanted, rtol=1e-6)


def test_tree_norm_is_float32_at_least_and_the_widest_type_at_most():
    half = tree_of(jnp.float16)
    type_of = partial(jax.eval_shape, optaxclip.tree_norm)
    assert type_of(half).dtype == jnp.float32
    assert optaxclip.tree_norm({}).dtype == jnp.float32
    with jax.enable_x64(True):
        assert type_of([half, np.ones(2)]).dtype == jnp.float64


def test_tree_norm_does_not_count_what_is_no_floating_point_number():
    tree = {"w": jnp.array([3.0, 4.0]), "step": jnp.asarray(7), "none": None}
    assert optaxclip.tree_norm(tree) == 5


@pytest.mark.parametrize("max_norm", [0.0, 0.3, 1, np.float64(2), np.inf])
def test_shrink_tree_measures_shrinks_and_tells_the_norm(max_norm):
    tree = tree_of(jnp.float32)
    norm = np.linalg.norm(flat(tree))
    shrunk, told = shrink_tree(tree, max_norm)
    np.testing.assert_allclose(told, norm, rtol=1e-6)
    factor = min(1.0, max_norm / norm)
    assert_close(shrunk, jax.tree.map(lambda x: wide(x) * factor, tree))


def test_a_factor_that_only_float64_holds_shrinks_float32_leaves_too():
    with jax.enable_x64(True):
        tree = {"single": jnp.full(2, 1e38, jnp.float32), "double": jnp.full(2, 1e80)}
        for clip in (optaxclip.clip_global_norm, optaxclip.soft_clip_global_norm):
            transformation = clip(1e38)
            state = transformation.init(tree)
            clipped, _ = jax.jit(transformation.update)(tree, state)
            assert clipped["single"].dtype == jnp.float32
            np.testing.assert_allclose(clipped["single"], 1e-4 * 0.5**0.5, rtol=1e-6)
            np.testing.assert_allclose(clipped["double"], 1e38 * 0.5**0.5)


def test_shrink_tree_uses_a_norm_that_is_known():
    """A norm of 10, as of a tree of which this is a part."""
    tree = {"w": jnp.array([3.0, 4.0])}
    for known in (10, 10.0, np.float32(10), jnp.asarray(10, jnp.bfloat16)):
        shrunk, told = optaxclip.shrink_tree(tree, 1.0, known)
        np.testing.assert_allclose(shrunk["w"], [0.3, 0.4], rtol=1e-6)
        assert told == 10
        assert told.dtype == jnp.float32


def test_shrink_tree_with_the_norm_that_tree_norm_gives_is_one_call():
    tree = tree_of(jnp.float32)
    norm = optaxclip.tree_norm(tree)
    assert_same_bits(
        optaxclip.shrink_tree(tree, 0.3, norm), optaxclip.shrink_tree(tree, 0.3)
    )


def test_shrink_tree_within_the_limit_gives_the_same_bits():
    for dtype in (jnp.bfloat16, jnp.float32, jnp.complex64):
        tree = {**tree_of(dtype), "step": jnp.asarray(7), "none": None}
        assert_same_bits(shrink_tree(tree, 1e3)[0], tree)


def test_shrink_tree_is_clip_global_norm_without_a_state():
    tree = tree_of(jnp.bfloat16)
    clip = optaxclip.clip_global_norm(0.3)
    clipped, _ = clip.update(tree, clip.init(tree))
    assert_same_bits(optaxclip.shrink_tree(tree, 0.3)[0], clipped)


def test_shrink_tree_shrinks_what_has_a_norm_beyond_float32():
    tree = jnp.full(4, 3e38)
    shrunk, told = optaxclip.shrink_tree(tree, 1.0)
    np.testing.assert_allclose(shrunk, 0.5, rtol=1e-6)
    assert told == np.inf


@pytest.mark.parametrize("known", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_makes_the_tree_nan(known):
    shrunk, told = optaxclip.shrink_tree(jnp.ones(2), 1.0, known)
    assert np.isnan(shrunk).all()
    np.testing.assert_array_equal(told, known)


def test_a_norm_of_zero_is_within_every_limit():
    tree = jnp.ones(2)
    for max_norm in (0.0, 1.0, np.inf):
        shrunk, told = optaxclip.shrink_tree(tree, max_norm, 0.0)
        assert_same_bits(shrunk, tree)
        assert told == 0


@pytest.mark.parametrize("known", [-1, -1e-3, -np.inf, np.float32(-1), jnp.float32(-1)])
def test_a_negative_norm_is_refused_and_traced_makes_the_tree_nan(known):
    with pytest.raises(ValueError, match=r"^norm must be a number of at least 0, not"):
        optaxclip.shrink_tree(jnp.ones(2), 1.0, known)
    shrunk, told = jax.jit(optaxclip.shrink_tree)(jnp.ones(2), 1.0, known)
    assert np.isnan(shrunk).all()
    assert np.isnan(told)


@pytest.mark.parametrize("known", [np.ones(2), jnp.ones((1, 1))])
def test_several_norms_are_refused(known):
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"^norm must be a number of .* not an array"),
    ):
        optaxclip.shrink_tree(jnp.ones(2), 1.0, known)


@pytest.mark.parametrize("known", ["1", [1.0], 1j])
def test_a_norm_that_is_no_number_is_refused(known):
    with unchecked(), pytest.raises(TypeError, match=r"^norm must be a number.*not "):
        optaxclip.shrink_tree(jnp.ones(2), 1.0, known)


def test_a_traced_limit_may_be_negative_and_acts_as_zero():
    shrunk, norm = jax.jit(optaxclip.shrink_tree)(jnp.array([3.0, 4.0]), -1.0)
    np.testing.assert_array_equal(shrunk, 0)
    assert norm == 5


def test_under_jit_the_same_comes_back():
    tree = tree_of(jnp.float32)
    assert_close(
        jax.jit(optaxclip.shrink_tree)(tree, 0.3), optaxclip.shrink_tree(tree, 0.3)
    )


@pytest.mark.parametrize("max_norm", [-1.0, np.nan, jnp.asarray(-1.0)])
def test_a_limit_below_zero_is_refused(max_norm):
    with pytest.raises(ValueError, match=r"^max_norm must be at least 0, not"):
        optaxclip.shrink_tree(jnp.ones(2), max_norm)


def test_a_limit_that_is_no_number_is_refused():
    wrong: Any = "1"
    with (
        unchecked(),
        pytest.raises(TypeError, match=r"^max_norm must be a number.*'1'"),
    ):
        optaxclip.shrink_tree(jnp.ones(2), wrong)


@pytest.mark.parametrize("order", [0.5, -1, np.nan])
def test_an_order_below_one_is_refused(order):
    with pytest.raises(ValueError, match=r"^ord must be at least 1"):
        optaxclip.tree_norm(jnp.ones(2), order)
