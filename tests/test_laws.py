"""What is true of clipping whatever the numbers are."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from trees import SHAPES, in_case, params_for, traced_clip, tree_of, wide
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


@dataclass(frozen=True)
class Case:
    """What a law is asked of, and the number of the case."""

    number: int
    updates: Any
    limit: float
    factor: float


@cache
def cases():
    """What hypothesis finds to try, found once for all strategies."""
    drawn = []

    @given(
        updates=with_shapes(SHAPES),
        limit=st.floats(2.0**-10, 2.0**14, width=32),
        factor=st.floats(2**-4, 2**4, width=32),
    )
    def draw(**case):
        drawn.append(Case(len(drawn), **case))

    draw()
    return drawn


def in_each_case(law):
    """Hold a law to every case, and say in which it failed."""

    def row(strategy):
        for case in cases():
            with in_case(case):
                law(strategy, case)

    row.__name__, row.__doc__ = law.__name__, law.__doc__
    return row


@cache
def once(strategy):
    """Every case, clipped: the same for all laws."""
    return [traced_clip(strategy, case.updates, case.limit) for case in cases()]


PARAMS = [wide(x) for x in jax.tree.leaves(params_for(tree_of(jnp.float32)))]


def leaves(tree):
    """The leaves in float64."""
    return [wide(x) for x in jax.tree.leaves(tree)]


def sized(strategy, tree):
    """How big every number's group is."""
    return strategy.oracle.sizes(leaves(tree))


@every_strategy
@in_each_case
def test_no_group_exceeds_its_limit(strategy, case):
    clipped = once(strategy)[case.number]
    bounds = strategy.oracle.limits(PARAMS, case.limit)
    for size, bound in zip(sized(strategy, clipped), bounds, strict=True):
        assert (size <= bound * (1 + 16 * EPS)).all()


@every_strategy
@in_each_case
def test_clipping_twice_is_clipping_once(strategy, case):
    clipped = once(strategy)[case.number]
    twice = traced_clip(strategy, clipped, case.limit)
    for first, second in zip(leaves(clipped), leaves(twice), strict=True):
        np.testing.assert_allclose(second, first, rtol=16 * EPS, atol=0)


@every_strategy
@in_each_case
def test_a_group_keeps_its_direction_and_does_not_grow(strategy, case):
    clipped = once(strategy)[case.number]
    for before, after, old, new in zip(
        leaves(case.updates),
        leaves(clipped),
        sized(strategy, case.updates),
        sized(strategy, clipped),
        strict=True,
    ):
        assert (np.sign(after) == np.sign(before)).all()
        assert (np.abs(after) <= np.abs(before) * (1 + 16 * EPS)).all()
        np.testing.assert_allclose(after * old, before * new, rtol=32 * EPS, atol=0)


@every_strategy
@in_each_case
def test_what_is_within_the_limit_keeps_its_bits(strategy, case):
    for before, after, size, bound in zip(
        leaves(case.updates),
        leaves(once(strategy)[case.number]),
        sized(strategy, case.updates),
        strategy.oracle.limits(PARAMS, case.limit),
        strict=True,
    ):
        within = np.broadcast_to(size <= bound * (1 - 16 * EPS), before.shape)
        assert (after == before)[within].all()


@every_strategy
@in_each_case
def test_clipping_commutes_with_a_change_of_unit(strategy, case):
    scaled = jax.tree.map(lambda x: np.float32(case.factor) * x, case.updates)
    twice = traced_clip(strategy, scaled, case.factor * case.limit)
    for small, large in zip(
        leaves(once(strategy)[case.number]), leaves(twice), strict=True
    ):
        np.testing.assert_allclose(large, case.factor * small, rtol=32 * EPS, atol=0)
