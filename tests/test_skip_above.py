"""Steps above a limit of any kind are skipped, and what the limit learns of them."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from unchecked import unchecked

import optaxclip
from optaxclip import norms, scopes
from optaxclip.thresholds import (
    Ema,
    Greedy,
    HistoricalSigma,
    RollingPercentile,
    Share,
    ZScore,
)

STEPS = 120
LABELS = {"a": "x", "b": "y", "c": "x"}


def gradients():
    """Three leaves, with spikes of the whole and of single leaves, NaN and infinity."""
    rng = np.random.default_rng(0)
    shapes = {"a": (4,), "b": (2, 3), "c": ()}
    tree = {k: rng.standard_normal((STEPS, *s)) + 2 for k, s in shapes.items()}
    for step, factor in ((40, 30), (41, 30), (70, 8), (90, 1e6), (91, 4)):
        for leaf in tree.values():
            leaf[step] *= factor
    tree["b"][55] *= 50
    tree["c"][[20, 60]] = np.nan, np.inf
    return {k: x.astype(np.float32) for k, x in tree.items()}


def by_label(step):
    """The L2 norm of the leaves of each label, in float64."""
    parts = {}
    for key, leaf in step.items():
        parts.setdefault(LABELS[key], []).append(np.ravel(leaf))
    return np.array([np.linalg.norm(np.concatenate(parts[x])) for x in sorted(parts)])


def whole(step):
    """The L2 norm of all leaves."""
    numbers = np.concatenate([np.ravel(leaf) for leaf in step.values()])
    return np.linalg.norm(numbers)[None]


def largest(step):
    """The largest number of each leaf."""
    return np.array([np.abs(leaf).max() for leaf in step.values()])


def constant(sizes, past):
    """The limit 9."""
    return np.full(sizes.shape, 9.0)


def falling(sizes, past):
    """A limit that falls with the finite steps."""
    return np.full(sizes.shape, 20.0 / (1 + len(past) / 50))


def average(sizes, past):
    """Three times the corrected average of what was let through."""
    mean, weight = np.zeros(sizes.shape), 0.0
    for x in past:
        limit = 3 * mean / weight if weight else np.inf
        mean = 0.9 * mean + 0.1 * np.minimum(x, limit)
        weight = 0.9 * weight + 0.1
    return 3 * mean / weight if weight else np.full(sizes.shape, np.inf)


def percentile(sizes, past):
    """The 90th percentile of the last 16, this step included."""
    return np.percentile([*past, sizes][-16:], 90, axis=0)


def sigma(sizes, past):
    """Mean and three deviations of the last 16, from the 8th on."""
    last = np.array(past[-16:])
    if len(last) < 8:
        return np.full(sizes.shape, np.inf)
    return last.mean(0) + 3 * last.std(0)


def spikes(sizes, past):
    """The limit of a z-score of 3, which learns from spikes no more than that."""
    mean = variance = np.zeros(sizes.shape)

    def limit():
        known = step >= 10
        return mean + 3 * np.sqrt(variance) if known else np.full(sizes.shape, np.inf)

    step = 0
    for x in past:
        x, share = np.minimum(x, limit()), (1 / (step + 1) if step < 10 else 0.1)
        if step < 10:
            variance = (1 - share) * variance + share * (1 - share) * (x - mean) ** 2
        else:
            variance = 0.9 * variance + 0.1 * (0.9 * (x - mean)) ** 2
        mean, step = mean + share * (x - mean), step + 1
    return limit()


CASES = {
    "a number": (9.0, constant, whole, scopes.whole(), norms.l2),
    "a schedule": (
        lambda step: 20.0 / (1 + step / 50),
        falling,
        whole,
        scopes.whole(),
        norms.l2,
    ),
    "an average": (Ema(3.0, 0.9), average, by_label, scopes.groups(LABELS), norms.l2),
    "a percentile": (
        RollingPercentile(90.0, 16),
        percentile,
        largest,
        scopes.tensor(),
        norms.linf,
    ),
    "deviations": (
        HistoricalSigma(3.0, 16, min_steps=8),
        sigma,
        whole,
        scopes.whole(),
        norms.l2,
    ),
    "a z-score": (
        ZScore(3.0, optaxclip.thresholds.to_percentile, 0.9, 10, eps=0.0),
        spikes,
        by_label,
        scopes.groups(LABELS),
        norms.l2,
    ),
}


def run(optimizer, grads, params=None):
    """The updates and reports of all steps, in one scan."""
    first = jax.tree.map(lambda x: x[0], grads)

    def step(state, given):
        updates, state = optimizer.update(given, state, params)
        return state, (updates, optaxclip.report(state))

    return jax.jit(lambda grads: jax.lax.scan(step, optimizer.init(first), grads)[1])(
        grads
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_step_is_skipped_if_any_group_is_above_its_limit(case):
    threshold, limits, sizes_of, scope, norm = case
    grads = gradients()
    guard = optaxclip.skip_above(
        optax.trace(0.5), threshold, scope=scope, norm=norm, name="guard"
    )
    updates, report = run(guard, grads)
    past, trace, streak, total = [], dict.fromkeys(grads, 0.0), 0, 0
    for i in range(STEPS):
        step = {k: x[i].astype(np.float64) for k, x in grads.items()}
        sizes = sizes_of(step)
        finite = np.isfinite(sizes).all()
        limit = limits(sizes, past)
        bad = not finite or (sizes > limit).any()
        past += [sizes] if finite else []
        streak, total = (streak + 1, total + 1) if bad else (0, total)
        told = {key.removeprefix("guard/"): x[i] for key, x in report.items()}
        counters = [int(told[key]) for key in ("skipped", "consecutive", "total")]
        assert counters == [bad, streak, total], i
        if finite:
            np.testing.assert_allclose(np.ravel(told["norm"]), sizes, rtol=1e-5)
            np.testing.assert_allclose(np.ravel(told["limit"]), limit, rtol=1e-3)
        if not bad:  # and else the trace stays as it was
            trace = {k: step[k] + 0.5 * trace[k] for k in step}
        for key, x in updates.items():
            wanted = np.zeros_like(x[i]) if bad else trace[key]
            np.testing.assert_allclose(x[i], wanted, rtol=1e-4, atol=1e-6)
    assert 4 < total < STEPS / 2


def test_a_level_that_lasts_is_followed_by_memory_and_never_by_a_number():
    level = jnp.where(jnp.arange(60) < 20, 1.0, 50.0)[:, None]
    _, number = run(optaxclip.skip_above(optax.sgd(1.0), 2.0), level)
    _, memory = run(optaxclip.skip_above(optax.sgd(1.0), Ema(5.0, 0.9)), level)
    assert number["skip_above/consecutive"][-1] == 40
    assert memory["skip_above/skipped"][20:25].all()
    assert memory["skip_above/consecutive"][-1] == 0


def test_a_streak_above_a_number_is_ended_and_named():
    guard = optaxclip.skip_above(optax.sgd(1.0), 2.0, name="gate")
    state, update = guard.init(np.zeros(1, np.float32)), jax.jit(guard.update)
    for _ in range(3):
        optaxclip.stop_on_streak(state, max_consecutive=2)
        _, state = update(np.array([9.0], np.float32), state)
    with pytest.raises(RuntimeError, match="gate has acted in each of the last 3 "):
        optaxclip.stop_on_streak(state, max_consecutive=2)


def test_numbers_whose_norm_no_float_holds_are_judged_by_what_they_are():
    large = {"a": np.full(9, 2e38, np.float32)}
    for limit, skipped in ((jnp.inf, 0), (3e38, 1)):
        guard = optaxclip.skip_above(optax.identity(), limit)
        updates, state = guard.update(large, guard.init(large))
        assert int(optaxclip.report(state)["skip_above/skipped"]) == skipped
        np.testing.assert_array_equal(updates["a"], (1 - skipped) * large["a"])


@cache
def guarded_at(scope):
    """The updates, and the memory before and after, under several thresholds."""

    def guarded(threshold, given):
        guard = optaxclip.skip_above(
            optax.identity(), threshold, scope=getattr(scopes, scope)()
        )
        before = guard.init(given)
        updates, state = guard.update(given, before)
        return updates, before.memory, state.memory

    thresholds = (jnp.inf, 100.0, Ema())
    return jax.jit(lambda given: [guarded(limit, given) for limit in thresholds])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("scope", ["element", "unit", "tensor", "whole"])
def test_what_is_not_finite_is_above_no_limit_at_all(scope, bad):
    given = {
        "a": np.array([1.0, bad], np.float32),
        "b": np.full((2, 2), 5.0, np.float32),
    }
    for updates, before, after in guarded_at(scope)(given):
        assert not any(map(np.any, jax.tree.leaves(updates)))
        assert jax.tree.all(jax.tree.map(np.array_equal, after, before))


def test_stacked_layers_are_judged_one_by_one():
    layers = scopes.tensor(leading_axes=1)
    guard = optaxclip.skip_above(optax.identity(), 4.0, scope=layers)
    stack = jnp.ones((3, 9)).at[1].multiply(1.5)
    _, state = guard.update(stack, guard.init(stack))
    assert optaxclip.report(state)["skip_above/skipped"] == 1
    np.testing.assert_allclose(optaxclip.report(state)["skip_above/norm"], [3, 4.5, 3])
    _, state = guard.update(stack.at[1].set(1.2), state)
    assert optaxclip.report(state)["skip_above/skipped"] == 0


def test_a_limit_may_look_at_the_parameters_and_at_the_loss():
    share = Share(0.5, floor=1e-3)
    guard = optaxclip.skip_above(optax.identity(), share, scope=scopes.tensor())
    params, state = (
        {"a": np.array([4.0], np.float32)},
        guard.init({"a": np.zeros(1, np.float32)}),
    )
    for gradient, skipped in ((1.9, 0), (2.1, 1)):
        _, state = guard.update({"a": np.array([gradient], np.float32)}, state, params)
        assert optaxclip.report(state)["skip_above/skipped"] == skipped
    with pytest.raises(ValueError, match="params"):
        guard.update(params, state)
    guard = optaxclip.skip_above(optax.identity(), Greedy(1.0, growth=2.0))
    state = guard.init(np.zeros(1, np.float32))
    for loss, skipped in ((3.0, 1), (2.0, 0)):
        _, state = guard.update(np.array([1.5], np.float32), state, value=loss)
        assert optaxclip.report(state)["skip_above/skipped"] == skipped


def test_what_is_no_limit_scope_or_norm_is_refused():
    wrong = [
        ({"threshold": -1.0}, ValueError, "threshold must be at least 0"),
        ({"threshold": "a"}, TypeError, "threshold must be a number"),
        ({"threshold": Ema}, TypeError, "threshold must be an object"),
        ({"threshold": 1.0, "scope": scopes.whole}, TypeError, "scope must be an obj"),
        ({"threshold": 1.0, "norm": 2}, TypeError, "norm must be an object"),
    ]
    for given, error, match in wrong:
        with unchecked(), pytest.raises(error, match=match):
            optaxclip.skip_above(optax.sgd(1.0), **given)


def test_the_state_of_another_model_is_refused():
    guard = optaxclip.skip_above(optax.identity(), Ema(), scope=scopes.tensor())
    state = guard.init({"a": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match="skip_above was given a state"):
        guard.update(
            {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}, state
        )


def test_the_report_of_several_groups_names_them():
    params = {"body": np.ones(2, np.float32), "head": np.ones(3, np.float32)}
    guard = optaxclip.skip_above(optax.sgd(0.1), 5.0, scope=scopes.tensor())
    _, state = guard.update(params, guard.init(params), params)
    told = optaxclip.report(state, names=params)
    np.testing.assert_allclose(told["skip_above/norm/head"], 3**0.5, rtol=1e-6)
    np.testing.assert_allclose(told["skip_above/norm/body"], 2**0.5, rtol=1e-6)
