"""A matrix that cannot fail is worth nothing: a naive clip must fall in its rows."""

import inspect
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
from zoo import Strategy


def naive_clip(max_norm, *, axis_name=None):
    """The global norm as one writes it first.

    It sums squares in the leaves' own dtype, takes whatever leaf comes, divides with no
    guard, keeps a state that has the dtype and the values of its input, and does not
    look beyond its own device.
    """
    del axis_name

    def init(params):
        return jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(params)))

    def update(updates, state, params=None):
        del state, params
        norm = init(updates)
        factor = jnp.minimum(1.0, max_norm / norm)
        return jax.tree.map(lambda x: x * factor, updates), norm

    return optax.GradientTransformation(init, update)


NAIVE = Strategy("naive_clip", naive_clip, "max_norm", oracles.global_norm(2))

# What the naive clip does well; every other row must catch it.
SOUND = set()

ROWS = [
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
    if name.startswith("test_") and "strategy" in inspect.signature(row).parameters
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


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_the_row_catches_a_naive_clip(row):
    assert catches(row, NAIVE) == (row.__name__ not in SOUND)
