"""Thresholds that remember, each of them at every scope."""

from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from trees import assert_close, assert_same_bits
from unchecked import unchecked

import optaxclip
from optaxclip import norms, responses, scopes, thresholds
from optaxclip.groups import map_groups
from optaxclip.norms.norm import unscaled
from optaxclip.thresholds import (
    Band,
    Constant,
    Ema,
    Greedy,
    HistoricalSigma,
    IgnoringZeros,
    Maximum,
    Minimum,
    Observation,
    RollingPercentile,
    TrackedQuantile,
    Warmup,
    ZScore,
)

# Short memories, so that a few steps go through all of their stages.
THRESHOLDS = {
    "band": Band(),
    "ema": Ema(decay=0.8),
    "ignoring": IgnoringZeros(RollingPercentile(60.0, 3)),
    "greedy": Greedy(Constant(0.7)),
    "maximum": Maximum(RollingPercentile(30.0, 3), Ema(0.5)),
    "minimum": Minimum(Ema(0.5), Constant(5.0)),
    "percentile": RollingPercentile(20.0, 4),
    "quantile": TrackedQuantile(Constant(0.5)),
    "sigma": HistoricalSigma(0.5, 4),
    "sigma_early": HistoricalSigma(0.5, 4, min_steps=2),
    "warmup": Warmup(Constant(1.0), Ema(), 4),
    "z_mean": ZScore(0.5, thresholds.to_mean, warmup_steps=3, decay=0.8),
    "z_percentile": ZScore(0.5, thresholds.to_percentile, warmup_steps=3, decay=0.8),
    "z_scaled": ZScore(0.5, warmup_steps=4, skip_update_on_spike=True),
}


@dataclass(frozen=True)
class AllOfThem:
    """Every threshold beside the others, so that all are compiled at once.

    It does not limit. Its state holds the limits that each of them gave.
    """

    def init(self, groups):
        def none(group):
            return jax.lax.full(group.shape, 0, group.dtype, sharding=group.sharding)

        return {
            name: (threshold.init(groups), jax.tree.map(none, groups))
            for name, threshold in THRESHOLDS.items()
        }

    def update(self, seen, state):
        new = {}
        for name, threshold in THRESHOLDS.items():
            limit, memory = threshold.update(seen, state[name][0])
            new[name] = memory, map_groups(as_many_as, seen.magnitude, limit)
        return jnp.asarray(jnp.inf), new


def as_many_as(size, limit):
    """A limit for each group."""
    return jnp.broadcast_to(limit, size.shape)


SCOPES = {
    "groups": scopes.groups({"a": "x", "b": "y", "c": "x"}),
    "tensor": scopes.tensor(leading_axes={"a": 0, "b": 1}),
    "unit": scopes.unit(),
    "whole": scopes.whole(),
}
every_scope = pytest.mark.parametrize("scope", SCOPES)

STEPS = 14
SHAPES = {"a": (3,), "b": (2, 2), "c": ()}
# What is compiled leaf by leaf; here a vector and a matrix stand for all.
LEAVES = {"tensor": ("a", "b"), "unit": ("a", "b")}


def all_at(scope):
    """All thresholds at a scope."""
    return optaxclip.clipper(scope, norms.l2, AllOfThem(), responses.shrink)


@cache
def all_under(name):
    """The same at a scope of this name, one for all tests."""
    return all_at(SCOPES[name])


def gradients(steps=STEPS):
    """Gradients with spikes and zeros, and with a leading axis."""
    rng = np.random.default_rng(1)
    tree = {}
    for name, shape in SHAPES.items():
        x = rng.normal(size=(steps, *shape)) + 0.5
        x[[2, 8, 12]] *= 30
        x[5] = 0
        tree[name] = x.astype(np.float32)
    return tree


def losses(steps=STEPS):
    """A loss that falls and rises."""
    return np.cos(np.arange(steps, dtype=np.float32))


def run(clip, state, updates, loss):
    """Clip step by step; give the last state, and what came of every step."""

    def step(state, given):
        clipped, state = clip.update(given[0], state, value=given[1])
        return state, (clipped, state)

    return jax.lax.scan(step, state, (updates, loss))


@cache
def run_of(clip):
    """The same from the start, compiled once for all tests that give these shapes."""
    return jax.jit(lambda updates, loss: run(clip, start(clip, updates), updates, loss))


def start(clip, updates):
    """The first state."""
    return clip.init(at(updates, 0))


def gradients_at(name):
    """The usual gradients of the leaves that a scope is asked of."""
    return {
        leaf: x for leaf, x in gradients().items() if leaf in LEAVES.get(name, SHAPES)
    }


@cache
def usual_run(name):
    """The states of all steps with the usual gradients at a scope."""
    clip, updates = all_under(name), gradients_at(name)
    return run_of(clip)(updates, losses())[1][1]


def at(tree, place):
    """A slice of the leading axis."""
    return jax.tree.map(lambda x: x[place], tree)


@every_scope
def test_every_threshold_works_in_scan_under_jit_and_from_a_checkpoint(scope):
    clip, updates, loss = all_under(scope), gradients_at(scope), losses()
    state = jax.jit(partial(start, clip))(updates)
    form = jax.tree.structure(state)
    scanned = usual_run(scope)
    update = jax.jit(lambda u, s, value: clip.update(u, s, value=value)[1])
    for step in range(STEPS):
        state = update(at(updates, step), state, loss[step])
        assert jax.tree.structure(state) == form
        for name in THRESHOLDS:
            for got, want in zip(
                jax.tree.leaves(state.threshold[name]),
                jax.tree.leaves(at(scanned.threshold[name], step)),
                strict=True,
            ):
                assert (got.shape, got.dtype) == (want.shape, want.dtype), name
                np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=name)
        leaves = [np.array(leaf) for leaf in jax.tree.leaves(state)]
        state = jax.tree.unflatten(form, leaves)
    for name, (_, limits) in scanned.threshold.items():
        for limit in jax.tree.leaves(limits):
            assert (np.ptp(np.nan_to_num(limit, posinf=1e9), axis=0) > 0).all(), name


def test_on_a_mesh_the_memory_of_units_is_sharded_as_they_are():
    """Where shardings are types, a scan refuses a state that changes its own."""
    clip, loss = all_at(scopes.unit()), losses()
    updates = np.random.default_rng(6).normal(size=(STEPS, 3, 8)).astype(np.float32)
    _, (wanted, _) = run_of(clip)(updates, loss)
    devices = np.array(jax.devices("cpu")[:4])
    mesh = jax.sharding.Mesh(devices, "x", axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        on_mesh = jax.device_put(updates, NamedSharding(mesh, P(None, None, "x")))
        state = clip.init(on_mesh[0])
        after, (found, _) = jax.jit(lambda s, u: run(clip, s, u, loss))(state, on_mesh)
    assert_close(found, wanted)
    mean = after.threshold["ema"][0].mean
    assert mean.sharding.spec == P(None, "x")


def with_a_bad_step(bad, updates):
    """The same steps with a bad one at each place; the last row has it at the end."""
    loss = losses()
    rows = [
        (
            {name: np.insert(x, place, bad, axis=0) for name, x in updates.items()},
            np.insert(loss, place, np.float32(0.3)),
        )
        for place in range(STEPS + 1)
    ]
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def assert_no_trace(clip, given):
    """Put one bad step at every place, and compare with the steps without it."""

    @jax.jit
    @jax.vmap
    def memories(updates, loss):
        _, (clipped, states) = run(clip, start(clip, updates), updates, loss)
        return clipped, states.threshold, states.report.limit

    for bad in (np.nan, np.inf):
        found = memories(*with_a_bad_step(bad, given))
        clean = at(found, (STEPS, slice(0, STEPS)))
        for place in range(STEPS):
            others = np.delete(np.arange(STEPS + 1), place)
            assert_same_bits(at(at(found, place), others), clean)


@pytest.mark.parametrize("scope", ["tensor", "whole"])
def test_a_bad_step_leaves_no_trace_in_any_threshold_wherever_it_comes(scope):
    assert_no_trace(all_under(scope), gradients_at(scope))


def test_a_bad_step_leaves_no_trace_in_either_stage_of_adagc():
    assert_no_trace(optaxclip.adagc(1.0, warmup_steps=4), gradients())


def test_a_tensor_that_is_not_finite_leaves_no_trace_in_the_warm_up_of_the_others():
    clip = optaxclip.adagc(1.0, warmup_steps=4)
    updates = gradients()
    state, update = clip.init(at(updates, 0)), jax.jit(clip.update)
    for step in range(2):
        _, state = update(at(updates, step), state)
    bad = {**at(updates, 2), "a": np.full(3, np.nan, np.float32)}
    _, after = update(bad, state)
    assert_same_bits(after.threshold, state.threshold)


def test_a_loss_that_is_not_finite_leaves_no_trace():
    clip = optaxclip.greedy_clip(1.0)
    update = jax.jit(
        lambda loss, s: clip.update(np.ones(2, np.float32), s, value=loss)[1]
    )
    state = update(2.0, update(1.0, clip.init(np.ones(2, np.float32))))
    for bad in (np.nan, np.inf, -np.inf):
        after = update(bad, state)
        assert_same_bits(after.threshold, state.threshold)
        assert after.report.limit == state.report.limit


def test_a_finite_extreme_poisons_no_memory_for_ever():
    """All that is remembered stays finite, and every limit comes down again."""
    clip, steps = all_under("whole"), 3000
    loss = np.resize(np.array([1, 2], np.float32), steps)
    states_of = jax.jit(
        lambda updates: run(clip, start(clip, updates), updates, loss)[1][1]
    )
    for size in (1e30, 3e38, 1e-30):
        updates = np.ones(steps, np.float32)
        updates[1] = updates[9] = size
        for name, (memory, limits) in states_of(updates).threshold.items():
            for leaf in jax.tree.leaves(memory):
                full = leaf[8:]  # free places of a window hold infinity
                assert np.isfinite(full).all(), name
            assert not np.isnan(limits).any(), name
            # A z-score limits spikes alone.
            assert (limits[-1] < 100) | (limits[-1] == np.inf), name


def test_a_group_has_no_limit_before_it_has_a_history():
    states = usual_run("whole")
    free = {"band": 1, "ema": 1, "sigma": 4, "z_percentile": 3}
    for name, steps in free.items():
        limits = np.asarray(states.threshold[name][1])
        assert np.isinf(limits[:steps]).all(), name
        assert np.isfinite(limits[steps:]).all(), name


def test_each_group_keeps_its_own_statistics():
    """A tensor gets the same limits whatever stands beside it."""
    updates = gradients_at("tensor")
    only = {**dict.fromkeys(updates), "a": updates["a"]}
    together = usual_run("tensor")
    _, (_, alone) = run_of(all_under("tensor"))(only, losses())
    for name in THRESHOLDS:
        found, wanted = together.threshold[name][1], alone.threshold[name][1]
        found, wanted = found["a"], wanted["a"]
        np.testing.assert_allclose(found, wanted, rtol=1e-6, err_msg=name)


def limits_in_scan(threshold, sizes):
    """The limits that one group of these magnitudes gets, without clipping anything."""

    def step(state, size):
        seen = Observation(
            groups=scopes.whole().arrange(size),
            size=unscaled(size),
            measure_params=lambda: size,
            limits=lambda tree: tree,
            extra_args={},
        )
        limit, state = threshold.update(seen, state)
        return state, limit

    state = threshold.init(jax.ShapeDtypeStruct((), jnp.float32))
    return jax.lax.scan(step, state, sizes)[1]


limits_jitted = partial(jax.jit, static_argnums=0)(limits_in_scan)


def limits_of(threshold, sizes):
    """The same, for NumPy."""
    return np.asarray(limits_jitted(threshold, sizes))


SIZES = np.abs(np.random.default_rng(2).normal(2, 1, 60)).astype(np.float32)


def test_an_ema_is_unbiased_and_takes_in_what_is_let_through():
    total, steps, wanted = 0.0, 0, []
    for size in SIZES.astype(np.float64):
        limit = 1.1 * total / (1 - 0.9**steps) if steps else np.inf
        wanted.append(limit)
        total, steps = 0.9 * total + 0.1 * min(size, limit), steps + 1
    np.testing.assert_allclose(limits_of(Ema(1.1, 0.9), SIZES), wanted, rtol=1e-5)


def test_an_ema_does_not_lock_at_zero():
    sizes = np.where(np.arange(60) % 20 < 10, 0, SIZES).astype(np.float32)
    limits = limits_of(Ema(1.1, 0.9), sizes)
    assert np.isinf(limits[:11]).all()
    assert (limits[11:] > 0.5).all()


IDLE = np.where(np.arange(60) % 20 < 13, 0, SIZES).astype(np.float32)


@pytest.mark.parametrize(
    "threshold",
    [
        RollingPercentile(10.0, 8),
        HistoricalSigma(1.0, 4),
        TrackedQuantile(Constant(1.0)),
        ZScore(warmup_steps=3),
    ],
    ids=lambda threshold: type(threshold).__name__,
)
def test_a_threshold_may_be_told_of_no_zeros(threshold):
    """Where there are zeros, it is as if there were nothing."""
    with_zeros = limits_of(IgnoringZeros(threshold), IDLE)[IDLE > 0]
    np.testing.assert_array_equal(with_zeros, limits_of(threshold, IDLE[IDLE > 0]))


def test_a_z_score_of_zeros_alone_limits_nothing():
    sizes = np.concatenate([np.zeros(30), np.ones(200)]).astype(np.float32)
    limits = limits_of(ZScore(), sizes)
    assert np.isinf(limits[:31]).all()
    assert (limits[-100:] >= 1).all()


def test_historical_sigma_is_mean_plus_k_deviations_of_the_window_before():
    windows = [SIZES[i - 7 : i].astype(np.float64) for i in range(7, 60)]
    wanted = [np.inf] * 7 + [w.mean() + 2 * w.std() for w in windows]
    np.testing.assert_allclose(
        limits_of(HistoricalSigma(2, 7), SIZES), wanted, rtol=1e-5
    )


def test_historical_sigma_limits_from_min_steps_on_as_levanter_does():
    """By the formula of its ``clip_update_by_historical_norm``, which takes n / 2."""
    wanted = [np.inf] * 4
    for i in range(4, 60):
        last = SIZES[max(0, i - 8) : i].astype(np.float64)
        wanted.append(last.mean() + 3 * max(last.std(), 1e-6))
    threshold = HistoricalSigma(3.0, 8, min_steps=4)
    np.testing.assert_allclose(limits_of(threshold, SIZES), wanted, rtol=1e-5)


def test_historical_sigma_waits_for_a_full_window_if_not_told_otherwise():
    told = limits_of(HistoricalSigma(2, 7, min_steps=7), SIZES)
    np.testing.assert_array_equal(limits_of(HistoricalSigma(2, 7), SIZES), told)


def test_a_rolling_percentile_interpolates_as_numpy_does():
    percentiles = np.array([0, 33.3, 50, 99, 100], np.float32)

    def limits_at(percentile):
        return limits_in_scan(RollingPercentile(percentile, 6), SIZES)

    found = jax.jit(lambda several: jax.lax.map(limits_at, several))(percentiles)
    windows = [SIZES[max(0, i - 5) : i + 1] for i in range(60)]
    for percentile, limits in zip(percentiles, found, strict=True):
        wanted = [np.percentile(w, percentile) for w in windows]
        np.testing.assert_allclose(limits, wanted, rtol=1e-5)


def test_a_warm_up_hands_over_after_its_finite_steps():
    sizes = np.insert(SIZES, 3, [np.nan, np.inf])
    early, late = Constant(1.0), Ema(1.1, 0.9)
    limits = limits_of(Warmup(early, late, 10), sizes)
    np.testing.assert_array_equal(limits[:12], 1)
    shown = np.concatenate([np.minimum(SIZES[:10], 1), SIZES[10:]])
    np.testing.assert_allclose(limits[12:], limits_of(late, shown)[10:], rtol=1e-6)


def test_the_smaller_and_the_larger_of_two_limits():
    one, other = RollingPercentile(50.0, 5), HistoricalSigma(0.0, 5)
    both = np.stack([limits_of(one, SIZES), limits_of(other, SIZES)])
    smaller, larger = Minimum(one, other), Maximum(one, other)
    np.testing.assert_allclose(limits_of(smaller, SIZES), both.min(0), rtol=1e-6)
    np.testing.assert_allclose(limits_of(larger, SIZES), both.max(0), rtol=1e-6)
    assert np.isnan(limits_of(Minimum(Constant(1.0), NanLimit()), SIZES[:2])).all()
    assert np.isnan(limits_of(Maximum(Constant(1.0), NanLimit()), SIZES[:2])).all()


class NanLimit:
    """A limit that has become NaN."""

    def init(self, groups):
        return ()

    def update(self, seen, state):
        return jnp.asarray(jnp.nan), state


def test_a_tracked_quantile_ends_where_its_share_of_the_sizes_lies_below():
    sizes = np.abs(np.random.default_rng(4).normal(size=4000)).astype(np.float32)
    limits = limits_of(TrackedQuantile(Constant(1e-3), 0.8, 0.05), sizes)[1000:]
    assert np.mean(sizes[1000:] <= limits) == pytest.approx(0.8, abs=0.01)
    assert np.median(limits) == pytest.approx(np.quantile(sizes, 0.8), rel=0.1)


def test_a_tracked_quantile_comes_back_from_any_run_of_zeros():
    sizes = np.concatenate([np.zeros(2000), np.full(2000, 5)]).astype(np.float32)
    assert limits_of(TrackedQuantile(Constant(1.0)), sizes)[-1] == pytest.approx(
        5, rel=0.3
    )


def state_bytes(state):
    """How much memory a state takes."""
    return sum(x.nbytes for x in jax.tree.leaves(state))


def test_the_memory_of_autoclip_is_its_window():
    clip = optaxclip.autoclip(window=50)
    state = clip.init(np.zeros(4, np.float32))
    before = state_bytes(state)
    update = jax.jit(clip.update)
    for _ in range(120):
        _, state = update(np.ones(4, np.float32), state)
        assert state_bytes(state) == before
    assert before < 4 * 50 + 100


INJECTED = {
    "autoclip": (optaxclip.autoclip, {"percentile": 30.0}, {"window": 9}),
    "zclip": (
        optaxclip.zclip,
        {"z_threshold": 1.0, "decay": 0.9, "warmup_steps": 3, "max_norm": 2.0},
        {},
    ),
    "adagc": (optaxclip.adagc, {"max_norm": 0.5, "factor": 1.2, "warmup_steps": 3}, {}),
    "aggc": (
        optaxclip.aggc,
        {"low": 0.9, "high": 1.1},
        {"labels": {"a": 1, "b": 2, "c": 2}},
    ),
    "quantile_clip": (optaxclip.quantile_clip, {"quantile": 0.7, "init_norm": 0.5}, {}),
    "greedy_clip": (optaxclip.greedy_clip, {"init_norm": 0.5, "growth": 2.0}, {}),
}


@pytest.mark.parametrize("name", INJECTED)
def test_hyperparameters_may_be_traced(name):
    factory, numbers, fixed = INJECTED[name]
    updates, loss = gradients(), losses()
    injected = optax.inject_hyperparams(factory, static_args=tuple(fixed))(
        **numbers, **fixed
    )
    plain = factory(**numbers, **fixed)
    with jax.numpy_dtype_promotion("standard"):

        def step(state, given):
            clipped, state = injected.update(given[0], state, value=given[1])
            return state, clipped

        @jax.jit
        def scanned(updates, loss):
            return jax.lax.scan(step, start(injected, updates), (updates, loss))[1]

        found = scanned(updates, loss)
    _, (wanted, _) = run_of(plain)(updates, loss)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_traced_window_is_refused_with_the_way_out():
    injected = optax.inject_hyperparams(optaxclip.autoclip)(percentile=30.0)
    with unchecked(), pytest.raises(TypeError, match="static_args"):
        injected.init(np.zeros(2, np.float32))


REFUSED = [
    (Ema, {"factor": -1.0}),
    (Ema, {"decay": 1.0}),
    (Ema, {"decay": -0.1}),
    (Band, {"low": np.nan}),
    (Band, {"high": -1.0}),
    (Band, {"floor": -1.0}),
    (ZScore, {"z_threshold": -1.0}),
    (ZScore, {"decay": np.nan}),
    (ZScore, {"warmup_steps": 0}),
    (ZScore, {"eps": -1e-6}),
    (RollingPercentile, {"percentile": 101.0}),
    (RollingPercentile, {"window": 0}),
    (HistoricalSigma, {"sigmas": -1.0}),
    (HistoricalSigma, {"window": -1}),
    (HistoricalSigma, {"min_steps": 0}),
    (HistoricalSigma, {"min_steps": 129}),
    (optaxclip.quantile_clip, {"quantile": 1.1}),
    (optaxclip.quantile_clip, {"learning_rate": -0.1}),
    (optaxclip.quantile_clip, {"init_norm": -0.1}),
    (optaxclip.adagc, {"warmup_steps": -1}),
    (optaxclip.adagc, {"factor": np.nan}),
]


@pytest.mark.parametrize(("make", "given"), REFUSED)
def test_a_number_that_makes_no_sense_is_refused_by_name(make, given):
    (name,) = given
    with pytest.raises(ValueError, match=rf"^{name} must be .*, not .*\.$"):
        make(**given)


@jax.jit
def brought_to_their_averages(several):
    """All steps brought to the averages of two thresholds."""
    return [
        run(clip, start(clip, several), several, np.zeros(len(several), np.float32))
        for clip in (
            optaxclip.clipper(scopes.whole(), norms.linf, average, responses.normalize)
            for average in (Ema(1.0, 0.999), Band(1.0, 1.0, decay=0.9))
        )
    ]


@pytest.mark.parametrize("size", [0.7, 1.1, 3e38])
def test_an_average_of_equal_numbers_is_that_number(size):
    """Not one beside it, which would clip what does not change at all."""
    several = np.full((40, 2), size, np.float32)
    for _, (updates, _) in brought_to_their_averages(several):
        np.testing.assert_array_equal(updates, several)


def test_a_band_ends_above_where_it_begins():
    for low, high in ((2.0, 1.0), (0.5, 0.3), (np.float32(2), jnp.ones(()))):
        sentence = rf"^low must be at most high, but {low} is above {high}\.$"
        for make in (Band, partial(optaxclip.aggc, "all")):
            with pytest.raises(ValueError, match=sentence):
                make(low=low, high=high)
    assert Band(low=1.0, high=1.0).high == 1
    jax.jit(lambda low: Band(low, 1.0).high)(2.0)


@pytest.mark.parametrize("given", [{"growth": 0.9}, {"backoff": 1.5}, {"decay": 1.0}])
def test_greedy_refuses_a_growth_that_shrinks_and_a_backoff_that_grows(given):
    (name,) = given
    with pytest.raises(ValueError, match=f"^{name} must be"):
        optaxclip.greedy_clip(1.0, **given)
