"""Clipped per-example gradients equal JAX's own, clipped in float64, on any model."""

from functools import cache, wraps

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from per_example import (
    clipped_mean,
    distance,
    norms_of,
    stacked_gradients,
    values_and_gradients,
)
from per_example_models import MODELS, lstm, mlp, tied
from quickly import jit_quickly

import optaxclip


def at_ease(function):
    """Libraries promote ranks and types; what is tested must not."""

    @wraps(function)
    def wrapped(*args, **kwargs):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return wrapped


@cache
def example(model):
    """A model, and the values and gradients of its examples."""
    loss, params, batch = at_ease(model)()
    loss = at_ease(loss)
    return loss, params, batch, *values_and_gradients(loss, params, batch)


every_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)


@every_model
def test_gradients_and_norms_equal_those_of_every_example_clipped(model):
    loss, params, batch, values, gradients = example(model)
    norms = norms_of(gradients)

    @jit_quickly
    def step(limit, params, *batch):
        return optaxclip.clipped_value_and_grad(loss, limit)(params, *batch)

    for limit in (float(np.median(norms)), 1e30):  # the last leaves all as they are
        examples, grads = step(limit, params, *batch)
        np.testing.assert_allclose(examples.norm, norms, rtol=1e-5)
        assert distance(grads, clipped_mean(gradients, limit)) < 1e-5
    np.testing.assert_allclose(examples.value, values, rtol=1e-5)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    kinds = [[(x.shape, x.dtype) for x in jax.tree.leaves(t)] for t in (grads, params)]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("model", [mlp, tied, lstm], ids=lambda m: m.__name__)
def test_bfloat16_parameters_keep_their_type_and_are_summed_up_in_float32(model):
    loss, params, batch, *_ = example(model)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)

    def mixed(params, *rest):
        return loss(jax.tree.map(lambda x: x.astype(jnp.float32), params), *rest)

    gradients = stacked_gradients(loss, wide, batch)
    limit = float(np.median(norms_of(gradients)))
    grads = jit_quickly(optaxclip.clipped_grad(mixed, limit))(narrow, *batch)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}
    assert distance(grads, clipped_mean(gradients, limit)) < 2**-8
