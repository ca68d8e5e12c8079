"""Which steps stand out: the rolling statistics of `skip_spikes`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxclip

STEPS = 400


def seen():
    """Losses and gradients with spikes, dips, zeros and what is not finite."""
    rng = np.random.default_rng(1)
    loss = 3 * np.exp(-np.arange(STEPS) / 300) + 0.05 * rng.standard_normal(STEPS)
    grads = rng.standard_normal((STEPS, 6)) * np.exp(
        0.2 * rng.standard_normal((STEPS, 1))
    )
    loss[[15, 90, 91, 200]] += [50.0, 2.0, 9.0, 1.0]
    loss[[120, 300]] -= 2.0
    loss[[30, 210]] = np.nan, np.inf
    grads[[12, 100, 101, 102, 250]] *= np.array([30, 20, 5, 2, 1e30])[:, None]
    grads[[140, 220, 221]] = 0
    grads[[0, 33, 230], 2] = np.nan, np.inf, -np.inf
    return loss.astype(np.float32), grads.astype(np.float32)


def scored(kept, x, window, min_steps, floor):
    """By how many standard deviations x lies above what was kept, from the formula."""
    last = np.array(kept[-window:])
    if len(last) < min_steps:
        return 0.0
    least = floor * np.abs(last).max()
    return (x - last.mean()) / max(last.std(), least)


def judged(losses, grads, above, below, window, min_steps, floor=0.01):
    """Each step's verdict and scores, in float64, from the docstring's formula."""
    kept_losses, kept_norms, verdicts = [], [], []
    for loss, grad in zip(
        losses.astype(np.float64), grads.astype(np.float64), strict=True
    ):
        norm = np.sqrt((grad**2).sum())
        if not (np.isfinite(loss) and np.isfinite(norm)):
            verdicts.append((True, None, None))
            continue
        scores = (
            scored(kept_norms, norm, window, min_steps, floor),
            scored(kept_losses, loss, window, min_steps, floor),
        )
        bad = max(scores) > above or min(scores) < -below
        if not bad:  # zeros tell no scale
            kept_losses += [loss] if loss != 0 else []
            kept_norms += [norm] if norm != 0 else []
        verdicts.append((bad, *scores))
    return verdicts


def run(optimizer, losses, grads):
    """The updates and reports of all steps, in one scan."""

    def step(state, given):
        loss, grad = given
        updates, state = optimizer.update(grad, state, value=loss)
        return state, (updates, optaxclip.report(state))

    start = optimizer.init(np.zeros(grads.shape[1:], np.float32))
    return jax.jit(lambda *given: jax.lax.scan(step, start, given)[1])(losses, grads)


OPTIONS = {
    "defaults": (6.0, np.inf, 128, 64),
    "both sides": (6.0, 6.0, 128, 64),
    "tight": (3.0, 3.0, 16, 8),
    "at once": (4.0, np.inf, 32, 1),
}


@pytest.mark.parametrize(
    ("above", "below", "window", "least"), OPTIONS.values(), ids=OPTIONS
)
def test_every_step_is_judged_as_the_formula_says(above, below, window, least):
    losses, grads = seen()
    guard = optaxclip.skip_spikes(
        optax.sgd(1.0), sigmas=above, sigmas_below=below, window=window, min_steps=least
    )
    updates, report = run(guard, losses, grads)
    verdicts = judged(losses, grads, above, below, window, least)
    streak = total = 0
    for i, (bad, norm_score, value_score) in enumerate(verdicts):
        streak, total = (streak + 1, total + 1) if bad else (0, total)
        wanted = np.zeros(6) if bad else -grads[i]
        np.testing.assert_array_equal(updates[i], wanted, f"step {i}")
        got = {key.split("/")[1]: value[i] for key, value in report.items()}
        counters = [int(got[key]) for key in ("skipped", "consecutive", "total")]
        assert counters == [bad, streak, total], i
        if norm_score is not None:
            np.testing.assert_allclose(
                got["norm_score"], norm_score, rtol=1e-3, atol=1e-4
            )
            np.testing.assert_allclose(
                got["value_score"], value_score, rtol=1e-3, atol=1e-4
            )
    assert 5 < total < 60  # five are not finite


def test_a_constant_loss_and_a_constant_gradient_are_never_skipped():
    losses = np.array([0.0, 2.5, -1e-30, 1e30, 1.0], np.float32)
    sizes = np.array([0.0, 1.0, 1e-20, 1e30, 3e38], np.float32)
    guard = optaxclip.skip_spikes(
        optax.sgd(1.0), sigmas_below=6.0, window=16, min_steps=4
    )

    def total(loss, size):
        losses, grads = jnp.full(200, loss), jnp.full((200, 3), size)
        return run(guard, losses, grads)[1]["skip_spikes/total"][-1]

    over_sizes = jax.vmap(total, in_axes=(None, 0))
    totals = jax.jit(jax.vmap(over_sizes, in_axes=(0, None)))(losses, sizes)
    np.testing.assert_array_equal(totals, np.zeros((5, 5)))


def test_zeros_do_not_make_all_that_follows_a_spike():
    sizes = np.array([0.0] * 70 + [1e-6] * 10, np.float32)
    _, told = run(optaxclip.skip_spikes(optax.sgd(1.0)), sizes * 0, sizes[:, None])
    assert not told["skip_spikes/skipped"].any()


def test_a_loss_that_bfloat16_rounds_does_not_jump_by_a_rounding():
    losses = np.full(300, 2.5, np.float32)
    losses[100::7] = float(
        jnp.asarray(2.5, jnp.bfloat16) + jnp.asarray(2**-6, jnp.bfloat16)
    )
    _, report = run(
        optaxclip.skip_spikes(optax.sgd(1.0)), losses, np.ones((300, 3), np.float32)
    )
    assert report["skip_spikes/total"][-1] == 0


def test_a_level_that_lasts_is_skipped_for_as_long_as_it_lasts():
    """Optimizers that keep skipped losses in their statistics accept it soon."""
    losses = np.r_[np.full(100, 1.0), np.full(2000, 10.0), np.full(10, 1.0)]
    losses = (losses + 0.1 * np.sin(np.arange(2110))).astype(np.float32)
    grads = np.ones((2110, 3), np.float32)
    _, report = run(optaxclip.skip_spikes(optax.sgd(1.0)), losses, grads)
    assert report["skip_spikes/consecutive"][2099] == 2000
    assert report["skip_spikes/total"][-1] == 2000
    assert report["skip_spikes/consecutive"][-1] == 0


@jax.jit
def memories(losses, grads):
    """What a guard remembers after each step, in one program for all that is asked."""
    guard = optaxclip.skip_spikes(optax.sgd(1.0), window=16, min_steps=8)

    def step(state, given):
        loss, grad = given
        _, state = guard.update(grad, state, value=loss)
        return state, state.memory

    return jax.lax.scan(step, guard.init(np.zeros(6, np.float32)), (losses, grads))[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_step_at_any_point_leaves_no_trace(bad):
    losses, grads = seen()
    losses, grads = losses[40:90], grads[40:90]
    clean = memories(np.r_[losses, 1.0].astype(np.float32), np.r_[grads, grads[:1]])
    for place in (0, 1, 7, 8, 9, 30, 50):
        with_loss = memories(
            np.insert(losses, place, bad), np.insert(grads, place, 1.0, 0)
        )
        with_grad = memories(
            np.insert(losses, place, 1.0), np.insert(grads, place, bad, 0)
        )
        for after in (with_loss, with_grad):
            for got, want in zip(
                jax.tree.leaves(after), jax.tree.leaves(clean), strict=True
            ):
                np.testing.assert_array_equal(got[place + 1 :], want[place:-1])


def test_without_a_value_the_norm_alone_is_judged():
    guard = optaxclip.skip_spikes(optax.sgd(1.0), window=8, min_steps=4)
    state, update = guard.init(np.zeros((), np.float32)), jax.jit(guard.update)
    for gradient, skipped in (
        (1.0, 0),
        (1.1, 0),
        (0.9, 0),
        (1.0, 0),
        (9.0, 1),
        (1.0, 0),
    ):
        _, state = update(np.float32(gradient), state)
        assert state.report.skipped == skipped
    assert state.report.value_score == 0


def test_the_report_tells_whether_a_loss_was_given():
    guard = optaxclip.skip_spikes(optax.sgd(1.0))
    state = guard.init(np.zeros((), np.float32))
    for given, told in (({}, 0), ({"value": 2.5}, 1), ({"value": None}, 0)):
        _, state = guard.update(np.float32(1.0), state, **given)
        assert optaxclip.report(state)["skip_spikes/value_given"] == told


@pytest.mark.parametrize("jitted", [False, True])
def test_a_loss_under_another_name_is_not_overlooked(jitted):
    guard = optaxclip.skip_spikes(optax.sgd(1.0))
    greedy = optaxclip.greedy_clip(1.0)
    one = np.ones(2, np.float32)
    for transform in (guard, greedy):
        update = jax.jit(transform.update) if jitted else transform.update
        state = transform.init(one)
        with pytest.raises(TypeError, match=r"^loss must be .* as value.*value=loss"):
            update(one, state, loss=np.float32(1.0))
        update(one, state, loss=np.float32(1.0), value=np.float32(1.0))


def test_a_value_of_any_type_is_judged_in_float32():
    for value in (
        2,
        2.5,
        np.float64(2.5),
        jnp.asarray(2.5, jnp.bfloat16),
        jnp.asarray(2),
    ):
        guard = optaxclip.skip_spikes(optax.sgd(1.0), window=4, min_steps=2)
        state = guard.init(np.zeros((), np.float32))
        _, state = guard.update(np.float32(1.0), state, value=value)
        assert state.memory.loss.values.dtype == jnp.float32
        assert state.report.total == 0
        _, state = guard.update(np.float32(1.0), state, value=np.nan)
        assert state.report.total == 1
    with pytest.raises(ValueError, match="value must be a scalar"):
        guard.update(np.float32(1.0), state, value=np.ones(3, np.float32))


def test_sigmas_may_be_traced_and_injected():
    def total(sigmas):
        guard = optaxclip.skip_spikes(
            optax.sgd(1.0), sigmas=sigmas, window=16, min_steps=8
        )
        losses, grads = seen()
        return run(guard, losses[40:100], grads[40:100])[1]["skip_spikes/total"][-1]

    several = np.array([-1.0, 0.0, 3.0, np.inf], np.float32)
    totals = jax.jit(jax.vmap(total))(several)
    assert totals[0] == totals[1] > totals[2] > totals[3] == 0
    injected = optax.inject_hyperparams(
        optaxclip.skip_spikes, static_args=("window", "min_steps")
    )(inner=optax.sgd(1.0))
    updates, _ = injected.update(
        np.ones(2, np.float32), injected.init(np.ones(2, np.float32))
    )
    np.testing.assert_array_equal(updates, -1)


def test_wrong_options_are_refused():
    refused: list[dict[str, Any]] = [
        {"sigmas": -1.0},
        {"sigmas_below": np.nan},
        {"min_std": -0.1},
        {"window": 0},
        {"min_steps": 0},
        {"window": 8, "min_steps": 9},
    ]
    for wrong in refused:
        with pytest.raises(ValueError, match=list(wrong)[-1]):
            optaxclip.skip_spikes(optax.sgd(1.0), **wrong)
