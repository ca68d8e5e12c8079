"""Strategies with a memory of their own follow their papers for hundreds of steps."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import params_for, tree_of

import optaxclip
from optaxclip import thresholds

SHAPES = {"matrix": (3, 4), "vector": (5,), "scalar": ()}
STEPS = 320
BAD = {5: np.nan, 19: np.inf, 20: -np.inf, 150: np.nan, 151: np.nan, 300: np.inf}


def gradients(bad=BAD):
    """Steps of random size with spikes, zeros and numbers that are not finite."""
    rng = np.random.default_rng(0)
    steps = []
    for step in range(STEPS):
        size = np.exp(rng.normal() / 2) * (300.0 if step % 47 == 46 else 1.0)
        tree = {k: size * rng.standard_normal(shape) for k, shape in SHAPES.items()}
        tree["matrix"][0, 0] *= 100.0 if step % 31 == 30 else 1.0
        if step % 41 in (0, 40):
            tree = {k: np.zeros(shape) for k, shape in SHAPES.items()}
        steps.append({k: np.asarray(x, np.float32) for k, x in tree.items()})
    for step, value in bad.items():
        steps[step] = {k: np.full_like(x, value) for k, x in steps[step].items()}
    return steps


@cache
def parameters(step):
    """Parameters that move, with some at zero."""
    rng = np.random.default_rng(step)
    params = {k: rng.standard_normal(s).astype(np.float32) for k, s in SHAPES.items()}
    params["vector"][0] = 0.0
    return params


FOLLOWED = {
    "spam_clip": optaxclip.spam_clip(20.0, decay=0.9),
    "adaclip": optaxclip.adaclip(0.9),
    "adagn": optaxclip.adagn(0.85, 0.999),
    "scale_by_stable_adam": optaxclip.scale_by_stable_adam(0.9, 0.99, max_rms=1.0),
}


@cache
def scanned(transformation):
    """All steps at once, compiled once for all tests that give as many."""

    def step(state, given):
        updates, state = transformation.update(given[0], state, given[1])
        return state, (updates, state)

    @jax.jit
    def run(given):
        start = transformation.init(jax.tree.map(lambda x: 0 * x[0], given[1]))
        return jax.lax.scan(step, start, given)[1]

    return run


def driven(transformation, steps):
    """The updates and states of every step."""
    params = [parameters(i) for i in range(len(steps))]
    given = jax.tree.map(lambda *x: np.stack(x), *zip(steps, params, strict=True))
    return scanned(transformation)(given)


def assert_follows(transformation, oracle, atol=0.0):
    """Step by step and number by number, NaN where the oracle has NaN."""
    steps = gradients()
    updates, _ = driven(transformation, steps)
    remembered = {name: {} for name in SHAPES}
    for i, given in enumerate(steps):
        params = parameters(i)
        for name, memory in remembered.items():
            with np.errstate(all="ignore"):
                wanted = oracle(
                    given[name].astype(np.float64),
                    params[name].astype(np.float64),
                    memory,
                )
            np.testing.assert_allclose(
                updates[name][i], wanted, 2e-5, atol, err_msg=f"{name}, step {i}"
            )


def spam(theta, decay, warmup):
    """Clip each number to the root of theta times its average square."""

    def oracle(g, w, memory):
        v, step = memory.get("v", np.zeros_like(g)), memory.get("step", 0)
        if not np.isfinite(g).all():  # here whole leaves are not finite
            bound = np.where((step >= warmup) & (v > 0), np.sqrt(theta * v), np.inf)
            return np.where(np.isnan(g), g, np.clip(g, -bound, bound))
        spiked = (g**2 > theta * v) & (v > 0) & (step >= warmup)
        clipped = np.where(spiked, np.sign(g) * np.sqrt(theta * v), g)
        memory.update(v=decay * v + (1 - decay) * clipped**2, step=step + 1)
        return clipped

    return oracle


@pytest.mark.parametrize(
    ("clip", "theta", "decay"),
    [
        (optaxclip.spam_clip(5000.0, decay=0.999), 5000.0, 0.999),
        (FOLLOWED["spam_clip"], 20.0, 0.9),
    ],
    ids=["5000.0-0.999", "20.0-0.9"],
)
def test_spam_clip_follows_its_paper(clip, theta, decay):
    assert_follows(clip, spam(theta, decay, 20))


def test_spam_clip_does_not_freeze_a_number_that_was_always_zero():
    clip = optaxclip.spam_clip(2.0, warmup_steps=0)
    state, update = clip.init(np.zeros(2, np.float32)), jax.jit(clip.update)
    for gradient, wanted in ((0.0, 0.0), (3.0, 3.0), (3.0, 3.0 * np.sqrt(0.002))):
        updates, state = update(np.array([gradient, 1.0], np.float32), state)
        np.testing.assert_allclose(np.asarray(updates)[0], wanted, rtol=1e-6)


def test_spam_clip_remembers_the_numbers_beside_one_that_is_not_finite():
    clip = optaxclip.spam_clip(4.0, decay=0.5, warmup_steps=1)
    state, update = clip.init(np.zeros(2, np.float32)), jax.jit(clip.update)
    for gradient in ([1.0, 1.0], [jnp.nan, 1.0]):
        _, state = update(np.array(gradient, np.float32), state)
    updates, _ = update(np.array([10.0, 10.0], np.float32), state)
    np.testing.assert_allclose(
        np.asarray(updates), [np.sqrt(4 * 0.5), np.sqrt(4 * 0.75)], 1e-6
    )


def adaclip(decay):
    """Rescale what is above the debiased average of the largest number."""

    def oracle(g, w, memory):
        if not np.isfinite(g).all():
            return np.full_like(g, np.nan)
        step = memory["step"] = memory.get("step", 0) + 1
        largest = np.abs(g).max()
        average = decay * memory.get("m", 0.0) + (1 - decay) * largest
        memory["m"] = average
        threshold = average / (1 - decay**step)
        above = np.abs(g) > threshold * (1 + 1e-12)
        return np.where(above, g * threshold / np.where(largest > 0, largest, 1), g)

    return oracle


@pytest.mark.parametrize(
    ("clip", "decay"),
    [(optaxclip.adaclip(0.999), 0.999), (FOLLOWED["adaclip"], 0.9)],
    ids=["0.999", "0.9"],
)
def test_adaclip_follows_its_paper(clip, decay):
    assert_follows(clip, adaclip(decay))


def test_adaclip_begins_with_complex_numbers_whose_modulus_overflows():
    clip = optaxclip.adaclip()
    updates = np.array([3e38 + 3e38j, 1.0], np.complex64)
    clipped, _ = jax.jit(lambda u: clip.update(u, clip.init(u)))(updates)
    wanted = float(jnp.finfo(jnp.float32).max) * np.sqrt(0.5)
    np.testing.assert_allclose(np.asarray(clipped), [wanted * (1 + 1j), 1], rtol=1e-6)


@pytest.mark.parametrize("size", [0.7, 1.1])
def test_adaclip_leaves_a_gradient_that_does_not_change_as_it_is(size):
    """Its average is then its largest number, which is not above it."""
    steps = [{"w": np.float32(size) * np.ones(3, np.float32)}] * 60
    clip = optaxclip.adaclip()
    step = jax.jit(clip.update)
    state = clip.init(steps[0])
    for given in steps:
        updates, state = step(given, state)
        np.testing.assert_array_equal(updates["w"], given["w"])
    assert state.report.clipped_steps == 0


def adagn(b1, b2, eps):
    """Give the norm its debiased average over its debiased root mean square."""

    def oracle(g, w, memory):
        if not np.isfinite(g).all():
            return np.full_like(g, np.nan)
        step = memory["step"] = memory.get("step", 0) + 1
        n = np.sqrt((g**2).sum())
        a = memory["a"] = b1 * memory.get("a", 0.0) + (1 - b1) * n
        b = memory["b"] = b2 * memory.get("b", 0.0) + (1 - b2) * n**2
        target = a / (1 - b1**step) / (np.sqrt(b / (1 - b2**step)) + eps)
        return g / n * target if n > 0 else g

    return oracle


@pytest.mark.parametrize(
    ("clip", "b1", "b2"),
    [(optaxclip.adagn(0.7, 0.9), 0.7, 0.9), (FOLLOWED["adagn"], 0.85, 0.999)],
    ids=["0.7-0.9", "0.85-0.999"],
)
def test_adagn_follows_its_paper(clip, b1, b2):
    assert_follows(clip, adagn(b1, b2, 1e-8))


def clippy(relative, absolute):
    """Shrink a tensor until every number is within its limit."""

    def oracle(g, w, memory):
        if not np.isfinite(g).all():
            return np.full_like(g, np.nan)
        allowed = relative * np.abs(w) + absolute
        ratio = allowed / np.where(g == 0, 1, np.abs(g))
        return g * min(1.0, np.where(g == 0, np.inf, ratio).min())

    return oracle


@pytest.mark.parametrize(("relative", "absolute"), [(0.5, 1e-2), (0.1, 1e-7)])
def test_clippy_follows_its_paper(relative, absolute):
    assert_follows(
        optaxclip.clippy(relative, max_absolute=absolute), clippy(relative, absolute)
    )


def test_clip_trust_ratio_follows_its_formula():
    def oracle(g, w, memory):
        if not np.isfinite(g).all():
            return np.full_like(g, np.nan)
        allowed = 0.02 * max(np.sqrt((w**2).sum()), 1e-3)
        return g * min(1.0, allowed / max(np.sqrt((g**2).sum()), 1e-30))

    assert_follows(optaxclip.clip_trust_ratio(0.02), oracle)


def stable_adam(b1, b2, eps, most):
    """Algorithm 2 of the paper, but for learning rate and weight decay."""

    def oracle(g, w, memory):
        if not np.isfinite(g).all():
            return np.full_like(g, np.nan)
        t = memory["t"] = memory.get("t", 0) + 1
        d1 = b1 * (1 - b1 ** (t - 1)) / (1 - b1**t)
        d2 = b2 * (1 - b2 ** (t - 1)) / (1 - b2**t)
        m = memory["m"] = d1 * memory.get("m", 0.0) + (1 - d1) * g
        v = memory["v"] = d2 * memory.get("v", 0.0) + (1 - d2) * g**2
        rms = np.sqrt(np.mean(g**2 / np.maximum(v, eps**2)))
        return m / (np.sqrt(v) + eps) / max(1.0, rms / most)

    return oracle


@pytest.mark.parametrize(
    ("transformation", "most"),
    [
        (FOLLOWED["scale_by_stable_adam"], 1.0),
        (optaxclip.scale_by_stable_adam(0.9, 0.99, max_rms=0.3), 0.3),
    ],
    ids=["1.0", "0.3"],
)
def test_scale_by_stable_adam_follows_its_paper(transformation, most):
    assert_follows(transformation, stable_adam(0.9, 0.99, 1e-8, most), atol=1e-6)


def test_the_limit_of_scale_by_stable_adam_may_ask_for_the_params_and_the_loss():
    gradient, params = (
        np.array([3.0, 4.0], np.float32),
        np.array([0.3, 0.4], np.float32),
    )
    share = thresholds.Share(0.5, floor=1e-3)
    greedy = thresholds.Greedy(1.0)
    for limit, extra in ((share, {}), (greedy, {"value": np.float32(1.0)})):
        clip = optaxclip.scale_by_stable_adam(max_rms=limit)
        update = jax.jit(lambda g, p, e, c=clip: c.update(g, c.init(p), p, **e))
        _, state = update(gradient, params, extra)
        wanted = 0.5 * np.sqrt(0.125) if limit is share else 1.0
        np.testing.assert_allclose(state.clip.report.limit, [wanted], rtol=1e-6)


def test_scale_by_stable_adam_is_adam_where_nothing_surprises():
    """With no limit, and for a gradient that optax's own Adam gets right too."""
    ours, theirs = (
        optaxclip.scale_by_stable_adam(max_rms=jnp.inf),
        optax.scale_by_adam(b2=0.99),
    )
    params = params_for(tree_of(jnp.float32))
    with jax.numpy_dtype_promotion("standard"):
        states = jax.jit(ours.init)(params), jax.jit(theirs.init)(params)
        our_step, their_step = jax.jit(ours.update), jax.jit(theirs.update)
        for seed in range(5):
            grads = tree_of(jnp.float32, seed=seed)
            one, first = our_step(grads, states[0])
            other, second = their_step(grads, states[1])
            states = first, second
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


WITH_MEMORY = {
    **FOLLOWED,
    "error_feedback": optaxclip.error_feedback(optaxclip.clip_global_norm(1.0)),
}


def memory_of(state):
    """What the next step depends on."""
    if hasattr(state, "clip"):
        return state._replace(clip=state.clip.threshold if state.clip else ())
    return state.threshold


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("transformation", WITH_MEMORY.values(), ids=WITH_MEMORY)
def test_one_bad_step_at_any_point_leaves_no_trace(transformation, bad):
    """In the warm-up, right after it, and later."""
    *steps, last = gradients({})
    clean = memory_of(driven(transformation, [*steps, last])[1])
    for place in (0, 1, 18, 19, 20, 30):
        broken = {k: np.full_like(x, bad) for k, x in steps[place].items()}
        with_bad = [*steps[:place], broken, *steps[place:]]
        after = memory_of(driven(transformation, with_bad)[1])
        for got, want in zip(
            jax.tree.leaves(after), jax.tree.leaves(clean), strict=True
        ):
            np.testing.assert_array_equal(got[place + 1 :], want[place:-1])


LAYERED = {
    "adaclip": optaxclip.adaclip,
    "adagn": optaxclip.adagn,
    "clip_trust_ratio": partial(optaxclip.clip_trust_ratio, 0.02),
    "clippy": optaxclip.clippy,
    "scale_by_stable_adam": optaxclip.scale_by_stable_adam,
}


@pytest.mark.parametrize("factory", LAYERED.values(), ids=LAYERED)
def test_stacked_layers_are_as_layers_of_their_own(factory):
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((6, 2, 3)).astype(np.float32)
    steps[3, 1] *= 100
    steps[4, 0, 1] = np.nan
    params = rng.standard_normal((2, 3)).astype(np.float32)

    def run(transformation, split):
        state, results = transformation.init(split(params)), []
        update = jax.jit(transformation.update)
        for step in steps:
            updates, state = update(split(step), state, split(params))
            results.append(np.stack(jax.tree.leaves(updates)).reshape(2, 3))
        return results

    together = run(factory(leading_axes=1), lambda x: jnp.asarray(x))
    apart = run(factory(), lambda x: [jnp.asarray(layer) for layer in x])
    np.testing.assert_allclose(together, apart, rtol=1e-6)
    assert np.isfinite(together[4]).sum() == 3


def test_wrong_numbers_are_refused():
    for decay in (-0.1, 1.0, jnp.nan):
        for factory in (
            optaxclip.adaclip,
            partial(optaxclip.adagn, 0.7),
            partial(optaxclip.scale_by_stable_adam, 0.9),
            lambda decay: optaxclip.spam_clip(decay=decay),
        ):
            with pytest.raises(ValueError, match=r"decay|b2"):
                factory(decay)
    for wrong in (0, 0.0, -1.0):
        with pytest.raises(ValueError, match="max_absolute"):
            optaxclip.clippy(max_absolute=wrong)
