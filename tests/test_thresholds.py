"""How big is too big: what each threshold answers, step by step."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import assert_same_bits, params_for, tree_of, wide
from unchecked import unchecked

import optaxclip
from optaxclip import norms, responses, scopes, thresholds
from optaxclip.thresholds import (
    Constant,
    PerRootSize,
    Scheduled,
    Share,
    TwoSided,
    as_threshold,
)

UPDATES = tree_of(jnp.float32)


def clipped_once(clip, updates, params=None):
    """The updates of the first step, compiled as one program."""
    first = jax.jit(lambda u, p: clip.update(u, clip.init(u if p is None else p), p))
    return first(updates, params)[0]


def limits_of(threshold, scope=None, updates=UPDATES, steps=3, norm=norms.l2):
    """The limits that the report shows, step by step, under scan."""
    scope = scopes.whole() if scope is None else scope
    clip = optaxclip.clipper(scope, norm, threshold, responses.shrink)
    params = params_for(updates)

    def step(state, _):
        _, state = clip.update(updates, state, params)
        return state, state.report.limit

    return jax.lax.scan(step, clip.init(params), None, steps)[1]


def by_step(step):
    """A schedule: 1, 1/2, 1/4 and so on."""
    return jnp.exp2(-step.astype(jnp.float32))


def test_a_constant_is_the_same_at_every_step():
    for limit in (0.3, 1, np.float64(0.3), np.array(0.3), jnp.asarray(0.3), np.inf):
        shown = limits_of(Constant(limit))
        np.testing.assert_array_equal(shown, np.full(3, limit, np.float32))


def test_a_constant_has_no_memory():
    clip = optaxclip.clip_global_norm(1.0)
    assert clip.init(UPDATES).threshold == ()


def test_a_schedule_is_called_with_the_clippers_own_step_from_zero():
    np.testing.assert_array_equal(limits_of(Scheduled(by_step)), [1, 0.5, 0.25])


def test_a_schedule_counts_its_steps_in_its_state():
    clip = optaxclip.clip_global_norm(by_step)
    state, update = clip.init(UPDATES), jax.jit(clip.update)
    for step in range(3):
        assert state.threshold.step == step
        _, state = update(UPDATES, state)


def test_the_count_of_steps_stops_before_it_overflows():
    last = jnp.iinfo(jnp.int32).max
    clip = optaxclip.clip_global_norm(lambda step: jnp.where(step == last, 2.0, 1.0))
    state = clip.init(UPDATES)
    state = state._replace(threshold=state.threshold._replace(step=jnp.int32(last)))
    _, state = jax.jit(clip.update)(UPDATES, state)
    assert state.report.limit == 2
    assert state.threshold.step == last


def from_third_step(step, **extra):
    """Tell when the clipper of the next test is called."""
    return step >= 3


def test_each_clipper_counts_its_own_steps():
    """The second of a chain is not called in the first three steps."""
    clip = optaxclip.clip_global_norm(by_step)
    late = optax.conditionally_transform(clip, from_third_step)
    state, update = late.init(UPDATES), jax.jit(late.update)
    for _ in range(5):
        _, state = update(UPDATES, state)
    assert optaxclip.report(state)["clip_global_norm/limit"] == 0.5


@pytest.mark.parametrize("limit", [2**32, 2**32 + 1, 2**40])
def test_integers_that_are_too_large_for_jax_are_the_limits_they_are(limit):
    big, updates = np.int64(limit), np.array([3.0, -4.0], np.float32)
    for clip in (
        optaxclip.clip_global_norm(limit),
        optaxclip.clip_global_norm(big),
        optaxclip.clip_global_norm(lambda step: big),
        optaxclip.clip_value(np.array([big, big])),
        optaxclip.clip_value(9.0, min_value=-limit),
        optaxclip.clip_value(9.0, min_value=-big),
        optaxclip.clip_value(9.0, min_value=lambda step: -big),
    ):
        np.testing.assert_array_equal(clipped_once(clip, updates), updates)


@pytest.mark.parametrize("least", [np.int8(-128), np.int32(-(2**31))])
def test_a_smallest_value_may_be_the_least_of_its_type(least):
    updates = np.array([3.0, -4.0, -1e10], np.float32)
    for bound in (least, lambda step: least):
        clip = optaxclip.clip_value(9.0, min_value=bound)
        wanted = [3.0, -4.0, float(least)]
        np.testing.assert_array_equal(clipped_once(clip, updates), wanted)


def test_schedules_of_optax_are_limits():
    schedule = optax.exponential_decay(2.0, 2, 0.5)
    with jax.numpy_dtype_promotion("standard"):
        shown = limits_of(schedule)
    np.testing.assert_allclose(shown, 2 * 0.5 ** (np.arange(3) / 2), rtol=1e-6)


def test_a_tree_may_hold_schedules_beside_numbers():
    tree = {"conv": by_step, "dense": 0.3, "scale": jnp.asarray(0.7)}
    shown = limits_of(Scheduled(tree), scopes.tensor())
    wanted = [[2.0**-step, 0.3, 0.3, 0.7] for step in range(3)]
    np.testing.assert_array_equal(shown, np.array(wanted, np.float32))


def test_two_sides_have_two_limits():
    updates = np.array([-3.0, -1.0, -0.0, 0.0, 1.0, 3.0], np.float32)
    clip = optaxclip.clipper(
        scopes.element(),
        norms.linf,
        TwoSided(Constant(0.5), Scheduled(by_step)),
        responses.clamp,
    )
    state, update = clip.init(updates), jax.jit(clip.update)
    for step in range(3):
        clipped, state = update(updates, state)
        np.testing.assert_array_equal(clipped, np.clip(updates, -0.5, 2.0**-step))
        assert state.report.limit == min(0.5, 2.0**-step)  # exceeded by far


def test_complex_numbers_have_no_sign_and_take_the_limit_above():
    updates = np.array([-3 + 4j, 3 - 4j], np.complex64)
    clip = optaxclip.clip_value(1.0, min_value=-0.1)
    clipped = clipped_once(clip, updates)
    np.testing.assert_allclose(wide(clipped), wide(updates) / 5, rtol=1e-6)


def test_the_limit_per_root_size_is_c_over_the_root_of_all_that_counts():
    updates = {
        **UPDATES,
        "step": jnp.asarray(7),
        "none": None,
        "no": np.zeros(0, np.float32),
    }
    count = sum(x.size for x in jax.tree.leaves(UPDATES))
    shown = limits_of(PerRootSize(Scheduled(by_step)), scopes.element(), updates)
    wanted = np.array([1, 0.5, 0.25]) / np.sqrt(count)
    np.testing.assert_allclose(shown, wanted, rtol=1e-6)
    np.testing.assert_allclose(limits_of(PerRootSize(Constant(2.0)))[0], 2 * wanted[0])
    assert limits_of(PerRootSize(Constant(2)), updates={})[0] == 2


def test_elements_at_the_limit_per_root_size_have_the_norm_c_together():
    clip = optaxclip.clip_scaled_value(3.0)
    huge = jax.tree.map(lambda x: 1e6 * x, UPDATES)
    clipped = clipped_once(clip, huge)
    np.testing.assert_allclose(optaxclip.tree_norm(clipped), 3, rtol=1e-6)


@dataclass(frozen=True)
class Case:
    """A scope, and the leaves of each of its groups."""

    scope: scopes.Scope
    members: tuple


SHARED = {
    "tensor": Case(scopes.tensor(), ((0,), (1,), (2,), (3,))),
    "groups": Case(
        scopes.groups({"conv": 1, "dense": 2, "scale": 1}), ((0, 3), (1, 2))
    ),
    "whole": Case(scopes.whole(), ((0, 1, 2, 3),)),
}


@pytest.mark.parametrize("order", [1, 2, np.inf])
@pytest.mark.parametrize("case", SHARED.values(), ids=SHARED)
def test_a_share_is_of_the_norm_of_the_same_group_of_parameters(case, order):
    threshold = Share(Scheduled(by_step), 4.5)
    shown = limits_of(threshold, case.scope, norm=norms.as_norm(order))
    params = [wide(x) for x in jax.tree.leaves(params_for(UPDATES))]
    for group, members in enumerate(case.members):
        flat = np.concatenate([params[i].ravel() for i in members])
        wanted = np.array([1, 0.5, 0.25]) * max(np.linalg.norm(flat, order), 4.5)
        found = shown if shown.ndim == 1 else shown[:, group]
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_share_of_zero_parameters_is_its_share_of_the_floor():
    clip = optaxclip.agc(0.5, floor=0.25)
    params = {"w": np.zeros((3, 2), np.float32), "b": np.array([3.0, 4.0], np.float32)}
    updates = jax.tree.map(jnp.ones_like, params)
    clipped = clipped_once(clip, updates, params)
    norms_of_columns = np.linalg.norm(wide(clipped["w"]), axis=0)
    np.testing.assert_allclose(norms_of_columns, 0.125, rtol=1e-6)
    assert_same_bits(clipped["b"], updates["b"])


def test_numbers_schedules_and_thresholds_are_taken_as_thresholds():
    own = Constant(2.0)
    assert as_threshold(own) is own
    for number in (0, 1, 0.5, np.inf, np.float32(1), np.ones(3), jnp.ones(())):
        assert isinstance(as_threshold(number), Constant)
    for tree in ({"a": 1.0, "b": jnp.ones(2)}, [1.0, 2.0]):
        assert isinstance(as_threshold(tree), Constant)
    for tree in (by_step, {"a": by_step}, [1.0, by_step]):
        assert isinstance(as_threshold(tree), Scheduled)


def test_whatever_answers_as_a_threshold_is_one():
    """Like twice what was seen, from a memory that starts at 1."""

    class Twice:
        def init(self, groups):
            return jax.tree.map(lambda g: jnp.ones(g.shape, g.dtype), groups)

        def update(self, seen, state):
            return state, jax.tree.map(lambda m: 2 * m, seen.magnitude)

    seen = 2 * np.linalg.norm(
        np.concatenate([wide(x).ravel() for x in jax.tree.leaves(UPDATES)])
    )
    wanted = np.array([1, seen, seen])
    np.testing.assert_allclose(limits_of(Twice()), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "limit", [-1, -0.5, np.nan, -np.inf, np.float32(-1), jnp.asarray(-1.0)]
)
def test_a_limit_below_zero_or_nan_is_refused_in_one_sentence(limit):
    sentence = (
        rf"^max_norm must be at least 0, not {limit}; use infinity for no limit.$"
    )
    for given in (limit, {"a": 1.0, "b": limit}, [by_step, limit]):
        with pytest.raises(ValueError, match=sentence):
            as_threshold(given, "max_norm")


@pytest.mark.parametrize("limit", [np.array([1.0, -1.0]), jnp.array([np.nan, 1.0])])
def test_an_array_of_limits_is_looked_through(limit):
    with pytest.raises(ValueError, match="must be at least 0"):
        as_threshold(limit)


@pytest.mark.parametrize("limit", ["1", b"1", object(), 1j, {"a": "1"}])
def test_a_limit_that_is_no_number_is_refused(limit):
    with unchecked(), pytest.raises(TypeError, match=r"^max_norm must be a number"):
        as_threshold(limit, "max_norm")


@pytest.mark.parametrize("limit", [None, {}, [], ()])
def test_no_limit_at_all_is_refused(limit):
    with pytest.raises(TypeError, match=r"^max_norm must be a number.*, not "):
        as_threshold(limit, "max_norm")


def test_a_threshold_that_is_not_called_yet_is_refused():
    """The class, where an instance was meant, would pass for a schedule."""
    assert isinstance(as_threshold(thresholds.Constant(1.0)), Constant)
    with pytest.raises(TypeError, match=r"^max_norm must be an object such as .*Ema"):
        optaxclip.clip_global_norm(thresholds.Ema)


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("first", lambda wrong: thresholds.Minimum(wrong, Constant(1.0))),
        ("second", lambda wrong: thresholds.Maximum(Constant(1.0), wrong)),
        ("during", lambda wrong: thresholds.Warmup(wrong, Constant(1.0), 2)),
        ("after", lambda wrong: thresholds.Warmup(Constant(1.0), wrong, 2)),
        ("threshold", thresholds.IgnoringZeros),
        ("below", lambda wrong: TwoSided(wrong, Constant(1.0))),
        ("above", lambda wrong: TwoSided(Constant(1.0), wrong)),
        ("scale", PerRootSize),
        ("share", lambda wrong: Share(wrong, 1e-3)),
        ("start", thresholds.Greedy),
        ("start", thresholds.TrackedQuantile),
    ],
)
def test_a_threshold_made_of_others_takes_numbers_but_no_class(argument, make):
    made = make(1.0), make(by_step)
    assert [getattr(x, argument) for x in made] == [Constant(1.0), Scheduled(by_step)]
    with pytest.raises(ValueError, match=rf"^{argument} must be at least 0, not -1"):
        make(-1.0)
    for wrong, what in ((Constant, "an object such as"), (None, "a number")):
        error = pytest.raises(TypeError, match=rf"^{argument} must be {what}")
        with unchecked(), error:
            make(wrong)


def test_two_sides_may_have_limits_of_their_own_for_each_leaf():
    updates = {
        "b": np.array([5.0, -5.0], np.float32),
        "w": np.array([5.0, -5.0], np.float32),
    }
    clip = optaxclip.clip_value({"b": 1.0, "w": 2.0}, min_value=-0.5)
    clipped = clipped_once(clip, updates)
    np.testing.assert_array_equal(clipped["b"], [1.0, -0.5])
    np.testing.assert_array_equal(clipped["w"], [2.0, -0.5])
