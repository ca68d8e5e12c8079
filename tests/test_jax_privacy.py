"""jax-privacy's training plan takes our gradients in place of its own."""

import dataclasses
import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxclip

dp_accounting = pytest.importorskip("dp_accounting")
clipping = pytest.importorskip("jax_privacy.clipping")
execution_plan = pytest.importorskip("jax_privacy.experimental.execution_plan")

# What jax-privacy 2.0 calls, Optax has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated")

EXAMPLES = Path(__file__).parent.parent / "examples"
ours = runpy.run_path(str(EXAMPLES / "jax_privacy_clipping.py"))["clipped_grad"]
RELATIONS = dp_accounting.NeighboringRelation
NUMBERS = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(NUMBERS.normal(size=(5, 3)), jnp.float32)}
X = jnp.asarray(NUMBERS.normal(size=(8, 5)), jnp.float32)
Y = jnp.asarray(NUMBERS.integers(0, 3, 8), jnp.int32)


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def loss(params, batch):
    """The mean over a batch, as jax-privacy has it."""
    x, y = batch
    logits = x @ params["w"]
    values = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return values.mean(), {"logits": logits}


def close(actual, desired):
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        *(jax.tree.map(np.asarray, tree) for tree in (actual, desired)),
    )


@pytest.mark.parametrize("rescale", [False, True])
def test_the_adapter_returns_what_jax_privacy_does(rescale):
    options = {
        "l2_clip_norm": 0.4,
        "normalize_by": 5.0,
        "rescale_to_unit_norm": rescale,
    }
    kept = {"has_aux": True, "return_values": True, "return_grad_norms": True}
    padding = jnp.arange(8) > 5
    ask = [make(loss, **options, **kept) for make in (ours, clipping.clipped_grad)]
    (grads, aux), (their_grads, their_aux) = jax.jit(
        lambda: [grad(PARAMS, (X, Y), is_padding_example=padding) for grad in ask]
    )()
    close(grads, their_grads)
    close(aux.values, their_aux.values)
    close(aux.aux, their_aux.aux)
    close(aux.grad_norms[:6], their_aux.grad_norms[:6])
    for relation in (RELATIONS.ADD_OR_REMOVE_ONE, RELATIONS.REPLACE_ONE):
        bounds = [grad.sensitivity(relation) for grad in ask]
        assert np.isclose(*bounds, rtol=1e-6)


@pytest.mark.parametrize("relation", RELATIONS)
def test_our_own_gradient_knows_the_relations_of_dp_accounting(relation):
    found = optaxclip.clipped_grad(loss, 3.0, denominator=2).sensitivity(relation)
    assert found == (3.0 if relation == RELATIONS.REPLACE_ONE else 1.5)


def test_a_training_plan_takes_the_adapter():
    settings = {"l2_clip_norm": 0.4, "normalize_by": 4.0, "rescale_to_unit_norm": False}
    config = execution_plan.BandMFExecutionPlanConfig(
        iterations=3,
        strategy=np.ones(1),
        epsilon=None,
        delta=None,
        noise_multiplier=1e-4,
        sampling_prob=0.5,
        noise_seed=0,
        **settings,
    )
    gradient = partial(ours, dtype=np.float32, **settings)
    plan = dataclasses.replace(config.plan, clipped_grad=gradient)
    step = jax.jit(plan.clipped_grad(loss, has_aux=True))
    theirs = jax.jit(config.plan.clipped_grad(loss, has_aux=True))
    noise = plan.noise_addition_transform
    state = noise.init(PARAMS)
    for indices in plan.batch_selection_strategy.batch_iterator(8, rng=0):
        padded = np.append(indices, np.full(8 - len(indices), -1))
        batch, padding = (X[padded], Y[padded]), jnp.asarray(padded < 0)
        grads, _ = step(PARAMS, batch, is_padding_example=padding)
        close(grads, theirs(PARAMS, batch, is_padding_example=padding)[0])
        noisy, state = noise.update(grads, state)
        moved = np.abs(np.asarray(noisy["w"] - grads["w"])).max()
        assert 0 < moved < 1e-3
