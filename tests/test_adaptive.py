"""The adaptive strategies, step by step beside the papers in plain NumPy."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import wide

import optaxclip
from optaxclip import thresholds

STEPS = 340
SHAPES = {"a": (3,), "b": (2, 2), "c": (2,)}
# Spikes, zeros and broken steps within every warm-up, round its end, and later.
SPIKES = [7, 24, 60, 61, 99, 130, 200, 201, 202, 300]
HUGE_SPIKES = [150, 290]
ZEROS = [3, 26, 101, 180, 181, 310]
BROKEN = {0: jnp.nan, 5: jnp.inf, 25: jnp.nan, 27: -jnp.inf, 100: jnp.inf, 140: jnp.nan}
UNUSED_C = [*range(104), *range(220, 250)]  # one tensor is zero until the warm-up ends


def gradients(unused=()):
    """Gradients of the training, with a leading axis, in float32."""
    rng = np.random.default_rng(3)
    tree = {}
    for name, shape in SHAPES.items():
        x = rng.normal(size=(STEPS, *shape))
        x *= np.exp(0.3 * rng.normal(size=STEPS)).reshape(-1, *(1,) * len(shape))
        x[SPIKES] *= 40
        x[HUGE_SPIKES] *= 1e25
        x[ZEROS] = 0
        tree[name] = x
    if len(unused):
        tree["c"][list(unused)] = 0
    for step, bad in BROKEN.items():
        tree["b"][step, 0, 1] = bad
    return jax.tree.map(lambda x: np.asarray(x, jnp.float32), tree)


@dataclass
class Trace:
    """What a strategy gave in each step."""

    clipped: dict
    limits: np.ndarray


def losses():
    """A loss that falls, fluctuates, and twice is not finite."""
    rng = np.random.default_rng(5)
    value = 3 * np.exp(-np.arange(STEPS) / 100) + 0.2 * rng.normal(size=STEPS)
    value[[40, 250]] = np.nan, np.inf
    return value.astype(np.float32)


def trace(clip, updates):
    """Run a strategy over all steps under jit and scan."""

    def step(state, given):
        grads, loss = given
        clipped, state = clip.update(grads, state, value=loss)
        return state, (clipped, state.report.limit)

    @jax.jit
    def scanned(updates, losses):
        start = clip.init(jax.tree.map(lambda x: x[0], updates))
        return jax.lax.scan(step, start, (updates, losses))[1]

    clipped, limits = scanned(updates, losses())
    return Trace(clipped, np.asarray(limits))


def norms_of(updates):
    """The norms of the three tensors in each step, in float64."""
    return np.stack(
        [np.linalg.norm(wide(x).reshape(STEPS, -1), axis=1) for x in updates.values()],
        axis=1,
    )


def factors(sizes, limits):
    """By what each group is multiplied; what is not finite must become NaN."""
    with np.errstate(all="ignore"):
        factor = np.where(sizes > limits, limits / sizes, 1.0)
    return np.where(np.isfinite(sizes) | (limits == np.inf), factor, np.nan)


def assert_multiplied(clip, updates, factor, rtol=2e-5):
    """Run a strategy, and compare with the factors for each of the three tensors."""
    found = trace(clip, updates)
    factor = np.broadcast_to(factor, (STEPS, 3))
    for i, name in enumerate(SHAPES):
        had = wide(updates[name]).reshape(STEPS, -1)
        got = wide(found.clipped[name]).reshape(STEPS, -1)
        np.testing.assert_allclose(got, had * factor[:, i : i + 1], rtol=rtol, atol=0)
    return found


def whole(updates):
    """The norm of the whole tree in each step, as a column."""
    with np.errstate(over="ignore"):
        return np.linalg.norm(norms_of(updates), axis=1, keepdims=True)


def each_step(sizes, step):
    """The limits that a function gives, group by group."""
    return np.stack([step(group) for group in sizes.T], axis=1)


@pytest.mark.parametrize(("percentile", "window"), [(10.0, 1000), (50, 37), (95.0, 8)])
def test_autoclip_is_a_percentile_of_the_norms_so_far(percentile, window):
    def oracle(sizes):
        history, limits = [], []
        for size in sizes:
            history += [size] if np.isfinite(size) else []
            known = history[-window:]
            limits.append(np.percentile(known, percentile) if known else np.inf)
        return limits

    updates = gradients()
    sizes = whole(updates)
    clip = optaxclip.autoclip(percentile, window=window)
    assert_multiplied(clip, updates, factors(sizes, each_step(sizes, oracle)))


def zclip_limits(sizes, answer, skip, warmup, allowed=2.5, decay=0.97, eps=1e-6):
    """The limits of ZClip for one group; the variance is held, as in the paper."""
    warm, limits = [], []
    mean = variance = 0.0
    for size in sizes:
        limit = np.inf
        if len(warm) == warmup:
            std = np.sqrt(variance)
            z = (size - mean) / (std + eps) if np.isfinite(size) else np.inf
            if answer == "percentile":
                limit = mean + allowed * std
            elif z > allowed:
                limit = mean if answer == "mean" else mean + allowed * std * allowed / z
        limits.append(limit)
        if not np.isfinite(size):
            continue
        if len(warm) < warmup:
            warm.append(size)
            mean, variance = np.mean(warm), np.var(warm)
            continue
        spike = size > limit
        if spike and skip:
            continue
        x = limit if spike else size
        mean = decay * mean + (1 - decay) * x
        variance = decay * variance + (1 - decay) * (x - mean) ** 2
    return limits


SPIKES_BECOME = {
    "adaptive": thresholds.adaptive_scaling,
    "mean": thresholds.to_mean,
    "percentile": thresholds.to_percentile,
}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("answer", SPIKES_BECOME)
def test_zclip_brings_spikes_down(answer, skip):
    updates = gradients()
    sizes = whole(updates)
    clip = optaxclip.zclip(spike=SPIKES_BECOME[answer], skip_update_on_spike=skip)
    limits = each_step(sizes, lambda x: zclip_limits(x, answer, skip, 25))
    found = assert_multiplied(clip, updates, factors(sizes, limits))
    assert np.isinf(found.limits[:28]).all()  # 25 steps that are finite
    assert np.isfinite(found.limits[60])


def test_zclip_has_a_bound_on_every_step_if_it_is_asked_for():
    updates = gradients()
    sizes = whole(updates)
    clip = optaxclip.zclip(2.0, max_norm=3.0, decay=0.9, warmup_steps=40, eps=0.01)
    limits = each_step(
        sizes, lambda x: zclip_limits(x, "adaptive", False, 40, 2.0, 0.9, 0.01)
    )
    factor = factors(sizes, np.minimum(limits, 3.0))
    assert_multiplied(clip, updates, factor)


def test_adagc_clips_the_whole_and_then_every_tensor():
    """Zeros teach nothing; a tensor that is unused at first stays in the warm-up."""
    max_norm, factor, decay, warmup = 2.0, 1.05, 0.98, 100
    updates = gradients(UNUSED_C)
    sizes = norms_of(updates)
    usual, steps, limits = np.full(3, np.inf), 0, []
    for size in sizes:
        whole = np.linalg.norm(size)
        shrunk = np.full(3, np.nan)
        if np.isfinite(whole):
            shrunk = size * max_norm / whole if whole > max_norm else np.full(3, np.inf)
        early = (steps < warmup) | np.isinf(usual)
        limit = np.where(early, shrunk, factor * usual)
        limits.append(limit)
        clipped = np.minimum(size, limit)
        learns = np.isfinite(size) & np.isfinite(clipped) & (size > 0)
        moved = decay * usual + (1 - decay) * clipped
        moved = np.where(early, np.minimum(usual, clipped), moved)
        usual = np.where(learns, moved, usual)
        steps += bool(np.isfinite(whole))
    limits = np.stack(limits)
    factor = np.where(np.isnan(limits), np.nan, factors(sizes, limits))
    found = assert_multiplied(optaxclip.adagc(max_norm), updates, factor)
    assert (wide(found.clipped["c"])[[107, 260, 330]] != 0).any(axis=1).all()


@pytest.mark.parametrize(("low", "high", "floor"), [(0.5, 2, 0), (0, 1.3, 1.5)])
def test_aggc_keeps_groups_in_a_band_round_their_average(low, high, floor):
    decay = 0.98

    def oracle(sizes):
        total = steps = 0
        nearest = []
        for size in sizes:
            lower = max(floor, low * total / (1 - decay**steps)) if steps else 0
            upper = max(lower, high * total / (1 - decay**steps)) if steps else np.inf
            limit = min(max(size, lower), upper)
            nearest.append(limit)
            if np.isfinite(size) and size > 0:
                total, steps = decay * total + (1 - decay) * limit, steps + 1
        return nearest

    updates = gradients(UNUSED_C)
    labels = {"a": "left", "b": "right", "c": "left"}
    a, b, c = norms_of(updates).T
    sizes = np.stack([np.hypot(a, c), b], axis=1)
    with np.errstate(all="ignore"):
        factor = np.where(sizes > 0, each_step(sizes, oracle) / sizes, 1.0)
    factor = np.where(np.isfinite(sizes), factor, np.nan)
    factor[0] = 1  # there is no past that would make the first, broken step NaN
    clip = optaxclip.aggc(labels, low=low, high=high, floor=floor)
    assert_multiplied(clip, updates, factor[:, [0, 1, 0]])


@pytest.mark.parametrize(("quantile", "start", "rate"), [(0.5, 0.1, 0.2), (0.9, 30, 1)])
def test_quantile_clip_steps_towards_its_quantile(quantile, start, rate):
    def oracle(sizes):
        limit, limits = start, []
        for size in sizes:
            limits.append(limit)
            if np.isfinite(size):
                limit = limit * np.exp(-rate * ((size <= limit) - quantile))
        return limits

    updates = gradients()
    sizes = whole(updates)
    clip = optaxclip.quantile_clip(quantile, init_norm=start, learning_rate=rate)
    limits = each_step(sizes, oracle)
    assert_multiplied(clip, updates, factors(sizes, limits), rtol=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_greedy_clip_grows_while_the_loss_falls(decay):
    start, growth, backoff = 1.5, 1.1, 0.8

    def oracle(sizes):
        limit, total, steps, limits = start, 0.0, 0, []
        for size, loss in zip(sizes, losses().astype(np.float64), strict=True):
            if np.isfinite(size) and np.isfinite(loss):
                if steps:
                    past = total / (1 - decay**steps)
                    limit *= growth if loss < past else backoff if loss > past else 1
                total, steps = decay * total + (1 - decay) * loss, steps + 1
            limits.append(limit)
        return limits

    updates = gradients()
    sizes = whole(updates)
    clip = optaxclip.greedy_clip(start, growth=growth, backoff=backoff, decay=decay)
    limits = each_step(sizes, oracle)
    assert_multiplied(clip, updates, factors(sizes, limits), rtol=1e-4)


@pytest.mark.parametrize("loss", [0.3, -0.7, 1.1, 3e38])
def test_greedy_clip_keeps_its_limit_while_the_loss_is_the_same(loss):
    np.testing.assert_array_equal(limits_at_one_loss(np.float32(loss)), 1)


@jax.jit
def limits_at_one_loss(loss):
    """The limits of 60 steps."""
    clip, updates = optaxclip.greedy_clip(1.0), np.ones(2, np.float32)

    def step(state, _):
        _, state = clip.update(updates, state, value=loss)
        return state, state.report.limit

    return jax.lax.scan(step, clip.init(updates), None, 60)[1]


def test_greedy_clip_asks_for_the_loss():
    clip = optaxclip.greedy_clip(1.0)
    with pytest.raises(ValueError, match="value=loss"):
        clip.update(np.ones(2, np.float32), clip.init(np.ones(2, np.float32)))


@pytest.mark.parametrize("first", [0.0, -1.0])
def test_adagc_is_not_frozen_by_a_limit_of_zero_in_its_warm_up(first):
    clip = optaxclip.adagc(optax.linear_schedule(first, 1.0, 3), warmup_steps=4)
    updates = np.ones(4, np.float32)

    def step(state, _):
        clipped, state = clip.update(updates, state)
        return state, clipped

    last = jax.jit(lambda: jax.lax.scan(step, clip.init(updates), None, 8)[1][-1])
    assert (np.asarray(last()) > 0.1).all()
