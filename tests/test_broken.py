"""A matrix that cannot fail is worth nothing: a naive clip must fall in its rows."""

import itertools

import jax
import jax.numpy as jnp
import optax
import oracles
import pytest
import test_edges_dtypes
import test_edges_leaves
import test_edges_mesh
import test_edges_places
import test_edges_state
import test_edges_values
from zoo import ROWS, Strategy


def naive_clip(max_norm, *, axis_name=None):
    """The global norm as one writes it first.

    It sums squares in the leaves' own dtype, takes whatever leaf comes, divides with no
    guard, keeps a state that has the values of its input and grows at the first step,
    and does not look beyond its own device.
    """
    del axis_name

    def init(params):
        leaves = jax.tree.leaves(params)
        return {"norm": jnp.sqrt(sum(jnp.sum(x * x) for x in leaves))}

    def update(updates, state, params=None):
        del state, params
        state = init(updates)
        factor = jnp.minimum(1.0, max_norm / state["norm"])
        state["clipped"] = factor < 1
        return jax.tree.map(lambda x: x * factor, updates), state

    return optax.GradientTransformation(init, update)


NAIVE = Strategy(
    "naive_clip", naive_clip, "max_norm", oracles.Groupwise(oracles.global_norm(2))
)


# What the naive clip does well; every other row must catch it.
SOUND = {
    "test_a_saved_state_goes_on_as_if_it_had_not_been_saved",
    "test_ordinary_values_are_clipped_as_float64_would",
    "test_a_group_within_its_limit_keeps_its_bits",
    "test_tiny_values_within_the_limit_keep_their_bits",
    "test_what_a_bad_element_leaves_alone_keeps_its_bits",
    "test_limit_zero_gives_zeros",
    "test_a_traced_nan_limit_makes_the_update_nan",
    "test_params_may_have_another_dtype_than_the_updates",
    "test_a_bare_array_is_a_tree",
    "test_a_tree_without_numbers_comes_back_as_it_was",
    "test_a_tree_without_numbers_comes_back_by_hand_too",
    "test_a_python_float_is_a_scalar_leaf",
    "test_numpy_leaves_are_clipped_like_others",
    "test_the_state_can_be_made_abstractly_and_under_jit",
    "test_the_state_can_be_donated",
    "test_in_a_chain_it_clips_what_the_earlier_ones_give",
    "test_under_masked_it_measures_and_clips_the_chosen_leaves_alone",
    "test_under_partition_each_part_is_clipped_alone",
    "test_a_clip_by_hand_gives_what_a_jitted_one_gives",
}

EDGE_ROWS = [
    row
    for module in (
        test_edges_dtypes,
        test_edges_leaves,
        test_edges_mesh,
        test_edges_places,
        test_edges_state,
        test_edges_values,
    )
    for name, row in vars(module).items()
    if name in ROWS
]


def cases(row):
    """Every combination of a row's parameters but the strategy."""
    choices = []
    for mark in row.pytestmark:
        names, values = mark.args
        if names == "strategy":
            continue
        if isinstance(names, str):
            choices.append([{names: value} for value in values])
        else:
            choices.append([dict(zip(names, value, strict=True)) for value in values])
    for chosen in itertools.product(*choices):
        yield {name: value for part in chosen for name, value in part.items()}


def catches(row, strategy):
    """Whether any case of the row fails."""
    for case in cases(row):
        try:
            row(strategy=strategy, **case)
        except (Exception, pytest.fail.Exception):
            return True
    return False


@pytest.mark.parametrize("row", EDGE_ROWS, ids=lambda row: row.__name__)
def test_the_row_catches_a_naive_clip(row):
    assert catches(row, NAIVE) == (row.__name__ not in SOUND)
