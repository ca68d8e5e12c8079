"""What is true of clipping whatever the numbers are."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from trees import SHAPES, params_for, traced_clip, tree_of, wide
from zoo import every_strategy

EPS = float(jnp.finfo(jnp.float32).eps)

numbers = st.one_of(
    st.just(0.0),
    st.floats(2.0**-10, 2.0**10, width=32),
    st.floats(-(2.0**10), -(2.0**-10), width=32),
)


def with_shapes(tree):
    """The tree of the other rows, whose compiled programs serve here too."""
    if isinstance(tree, dict):
        return st.fixed_dictionaries({k: with_shapes(v) for k, v in tree.items()})
    return arrays(np.float32, tree, elements=numbers)


updates_of_any_size = with_shapes(SHAPES)
limits = st.floats(2.0**-10, 2.0**14, width=32)
anything = given(updates=updates_of_any_size, limit=limits)


PARAMS = [wide(x) for x in jax.tree.leaves(params_for(tree_of(jnp.float32)))]


def leaves(tree):
    """The leaves in float64."""
    return [wide(x) for x in jax.tree.leaves(tree)]


def sized(strategy, tree):
    """How big every number's group is."""
    return strategy.oracle.sizes(leaves(tree))


@every_strategy
@anything
def test_no_group_exceeds_its_limit(strategy, updates, limit):
    clipped = traced_clip(strategy, updates, limit)
    bounds = strategy.oracle.limits(PARAMS, limit)
    for size, bound in zip(sized(strategy, clipped), bounds, strict=True):
        assert (size <= bound * (1 + 16 * EPS)).all()


@every_strategy
@anything
def test_clipping_twice_is_clipping_once(strategy, updates, limit):
    once = traced_clip(strategy, updates, limit)
    twice = traced_clip(strategy, once, limit)
    for first, second in zip(leaves(once), leaves(twice), strict=True):
        np.testing.assert_allclose(second, first, rtol=16 * EPS, atol=0)


@every_strategy
@anything
def test_a_group_keeps_its_direction_and_does_not_grow(strategy, updates, limit):
    clipped = traced_clip(strategy, updates, limit)
    for before, after, old, new in zip(
        leaves(updates),
        leaves(clipped),
        sized(strategy, updates),
        sized(strategy, clipped),
        strict=True,
    ):
        assert (np.sign(after) == np.sign(before)).all()
        assert (np.abs(after) <= np.abs(before) * (1 + 16 * EPS)).all()
        np.testing.assert_allclose(after * old, before * new, rtol=32 * EPS, atol=0)


@every_strategy
@anything
def test_what_is_within_the_limit_keeps_its_bits(strategy, updates, limit):
    clipped = traced_clip(strategy, updates, limit)
    for before, after, size, bound in zip(
        leaves(updates),
        leaves(clipped),
        sized(strategy, updates),
        strategy.oracle.limits(PARAMS, limit),
        strict=True,
    ):
        within = np.broadcast_to(size <= bound * (1 - 16 * EPS), before.shape)
        assert (after == before)[within].all()


@every_strategy
@given(
    updates=updates_of_any_size, limit=limits, factor=st.floats(2**-4, 2**4, width=32)
)
def test_clipping_commutes_with_a_change_of_unit(strategy, updates, limit, factor):
    scaled = jax.tree.map(lambda x: np.float32(factor) * x, updates)
    once = traced_clip(strategy, updates, limit)
    twice = traced_clip(strategy, scaled, factor * limit)
    for small, large in zip(leaves(once), leaves(twice), strict=True):
        np.testing.assert_allclose(large, factor * small, rtol=32 * EPS, atol=0)
