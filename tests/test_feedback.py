"""Error feedback: nothing is lost, and nothing broken is kept."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import assert_same_bits, tree_of

import optaxclip

STEPS = 330


def gradients():
    """Steps with spikes, zeros and what is not finite, in two leaves."""
    rng = np.random.default_rng(0)
    steps = {
        "a": rng.standard_normal((STEPS, 4)),
        "b": rng.standard_normal((STEPS, 2, 3)),
    }
    for x in steps.values():
        x[[20, 160]] *= 50
        x[[5, 6, 200]] = 0
    for step, bad in {0: np.nan, 70: np.inf, 71: np.nan, 300: -np.inf}.items():
        steps["a"][step, 1] = bad
    return {name: x.astype(np.float32) for name, x in steps.items()}


def shrink_all(leaves):
    """The global norm to at most 1."""
    norm = np.sqrt(sum((x**2).sum() for x in leaves))
    factor = min(1.0, 1.0 / norm) if np.isfinite(norm) and norm > 0 else 1.0
    return [
        x * factor if np.isfinite(norm) else np.full_like(x, np.nan) for x in leaves
    ]


def shrink_each(leaves):
    """Each leaf's norm to at most 1."""
    return [shrink_all([x])[0] for x in leaves]


def clamp(leaves):
    """Each number to [-1, 1]."""
    return [np.clip(x, -1, 1) for x in leaves]


CLIPS = {
    "clip_global_norm": (optaxclip.clip_global_norm(1.0), shrink_all),
    "clip_tensor_norm": (optaxclip.clip_tensor_norm(1.0), shrink_each),
    "clip_value": (optaxclip.clip_value(1.0), clamp),
}


@pytest.mark.parametrize(("clip", "oracle"), CLIPS.values(), ids=CLIPS)
def test_u_clip_follows_its_paper(clip, oracle):
    transformation, steps = optaxclip.error_feedback(clip), gradients()

    def step(state, grads):
        updates, state = transformation.update(grads, state)
        return state, (updates, state.carry)

    start = transformation.init({"a": jnp.zeros(4), "b": jnp.zeros((2, 3))})
    updates, carry = jax.jit(lambda x: jax.lax.scan(step, start, x)[1])(steps)
    kept = [np.zeros(4), np.zeros((2, 3))]
    for i in range(STEPS):
        wanted = [x[i] + c for x, c in zip(steps.values(), kept, strict=True)]
        given = oracle(wanted)
        rest = [w - g for w, g in zip(wanted, given, strict=True)]
        kept = [np.where(np.isfinite(r), r, c) for r, c in zip(rest, kept, strict=True)]
        for name, u, c in zip(steps, given, kept, strict=True):
            np.testing.assert_allclose(updates[name][i], u, 1e-4, 1e-4, err_msg=str(i))
            np.testing.assert_allclose(carry[name][i], c, 1e-4, 1e-4, err_msg=str(i))


def test_what_comes_out_and_the_carry_are_what_came_in():
    """Also what rounding to bfloat16 takes off, and over a thousand steps."""
    transformation = optaxclip.error_feedback(optaxclip.clip_value(0.3))
    grads = 0.3 * np.random.default_rng(1).standard_normal((1000, 5))
    grads = jnp.asarray(grads, jnp.bfloat16)

    def step(state, grad):
        updates, state = transformation.update(grad, state)
        return state, updates

    state, updates = jax.lax.scan(step, transformation.init(grads[0]), grads)
    assert updates.dtype == jnp.bfloat16
    assert state.carry.dtype == jnp.float32
    limit = float(jnp.asarray(0.3, jnp.bfloat16))
    assert np.abs(np.asarray(updates, np.float32)).max() <= limit
    total = np.asarray(updates, np.float64).sum(0) + np.asarray(state.carry, np.float64)
    np.testing.assert_allclose(total, np.asarray(grads, np.float64).sum(0), atol=1e-4)


def carried(clip_carry, gradient, steps=100):
    """The norm of the carry after steps of one gradient."""
    transformation = optaxclip.error_feedback(
        optaxclip.clip_global_norm(1.0), clip_carry=clip_carry
    )
    state = transformation.init(gradient)
    update = jax.jit(transformation.update)
    for _ in range(steps):
        _, state = update(gradient, state)
    return float(jnp.linalg.norm(state.carry)), state


def test_the_carry_of_a_gradient_above_the_limit_grows_unless_it_is_bounded():
    gradient = jnp.array([3.0, 4.0])
    assert carried(None, gradient)[0] == pytest.approx(100 * 4.0, rel=1e-5)
    norm, state = carried(optaxclip.clip_global_norm(10.0), gradient)
    assert norm == pytest.approx(10.0, rel=1e-6)
    report = optaxclip.report(state)
    assert report["clip_global_norm/limit"] == 1.0
    assert report["clip_global_norm_2/limit"] == 10.0
    assert carried(optax.scale(0.5), gradient)[0] == pytest.approx(4.0, rel=1e-5)
    norm, state = carried(optaxclip.clip_global_norm(jnp.inf), gradient)
    found = optaxclip.report(state)["clip_global_norm_2/pre_norm"]
    assert found == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_bad_step_is_loud_once_and_leaves_no_trace(bad):
    transformation = optaxclip.error_feedback(
        optaxclip.clip_global_norm(1.0), clip_carry=optaxclip.clip_global_norm(3.0)
    )
    params = tree_of(jnp.float32)
    state, update = transformation.init(params), jax.jit(transformation.update)
    for seed in range(3):
        _, state = update(tree_of(jnp.float32, seed=seed), state)
    broken = {**params, "scale": jnp.asarray(bad, jnp.float32)}
    updates, after = update(broken, state)
    assert all(jnp.isnan(x).all() for x in jax.tree.leaves(updates))
    assert_same_bits(after.carry, state.carry)
    assert_same_bits(update(params, after)[0], update(params, state)[0])


def test_only_leaves_that_count_have_a_buffer():
    tree = {"w": jnp.array([3.0, 4.0]), "n": jnp.arange(3), "key": jax.random.key(0)}
    transformation = optaxclip.error_feedback(optaxclip.clip_global_norm(1.0))
    state = transformation.init(tree)
    assert [x.shape for x in jax.tree.leaves(state.carry)] == [(2,)]
    updates, state = transformation.update(tree, state)
    assert updates["key"] is tree["key"]
    assert_same_bits(updates["n"], tree["n"])
    with pytest.raises(ValueError, match="init it with params like the updates"):
        transformation.update({"w": jnp.ones(3)}, state)


def test_params_and_extra_arguments_reach_both():
    seen = []

    def update(updates, state, params: Any = None, *, value=None, **extra):
        seen.append((params["w"].shape, value))
        return updates, state

    needy = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )
    transformation = optaxclip.error_feedback(needy, clip_carry=needy)
    tree = {"w": jnp.ones(2)}
    transformation.update(tree, transformation.init(tree), tree, value=1.0)
    assert seen == [((2,), 1.0)] * 2
