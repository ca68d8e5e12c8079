"""Leaves of 8 bits: measured in float32 like others, rounded once to what they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import FEW, assert_close, assert_same_bits, expected, traced_clip, tree_of
from zoo import ONE_OF_EACH_SCOPE, STRATEGIES, named

import optaxclip

# Of weights, few sums of 8 bits can be brought to a bound exactly: see the last test.
ASKED = [s for s in STRATEGIES if s.name in ONE_OF_EACH_SCOPE]
NARROW = (jnp.float8_e4m3fn, jnp.float8_e5m2)


def narrow_tree():
    """Both kinds of 8 bits beside single precision."""
    vector, matrix = (tree_of(dtype, shapes=FEW) for dtype in NARROW)
    return [vector["bias"], matrix["kernel"], np.float32(0.75)]


@pytest.mark.parametrize("strategy", ASKED, ids=named)
def test_leaves_of_8_bits_are_clipped_like_others(strategy):
    updates = narrow_tree()
    for limit in (0.25, 1e3):
        clipped = traced_clip(strategy, updates, limit)
        assert [x.dtype for x in jax.tree.leaves(clipped)] == [
            x.dtype for x in jax.tree.leaves(updates)
        ]
        assert_close(clipped, expected(strategy, updates, limit))
        row = "test_a_group_within_its_limit_keeps_its_bits"
        if limit == 1e3 and row not in strategy.exempt:
            assert_same_bits(clipped, updates)


@pytest.mark.parametrize("dtype", NARROW)
def test_what_is_not_finite_in_8_bits_is_loud(dtype):
    updates = np.asarray([1.0, np.nan], dtype)
    for limit in (1.0, jnp.asarray(1.0, dtype)):
        assert np.isnan(optaxclip.shrink_tree(updates, limit)[0]).all()


@pytest.mark.parametrize("dtype", NARROW)
def test_a_norm_beyond_8_bits_is_none_beyond_float32(dtype):
    updates = np.full(100, jnp.finfo(dtype).max, dtype)
    wanted = 10 * float(jnp.finfo(dtype).max)
    np.testing.assert_allclose(optaxclip.tree_norm(updates), wanted, rtol=1e-6)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    ("make", "size"),
    [
        (optaxclip.clip_weights, lambda x: np.abs(x).max()),
        (optaxclip.clip_weight_norm, np.linalg.norm),
        (optaxclip.clip_weight_spectral_norm, lambda x: np.linalg.norm(x, 2)),
    ],
)
def test_weights_of_8_bits_are_within_their_bound(make, size, dtype):
    bound = make(2.0)
    params, updates = (
        jnp.arange(1, 7).reshape(2, 3).astype(dtype),
        np.ones((2, 3), dtype),
    )
    update, _ = jax.jit(bound.update)(updates, bound.init(params), params)
    assert update.dtype == dtype
    after = np.asarray(params + update, np.float64)
    assert size(after) <= 2.0
    assert (after > 0).all()
