"""Guards: a bad step is as if it had not been, however many there are."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from guarding import every_guard
from jax.extend.core import Jaxpr
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from trees import FEW, assert_same_bits, tree_of
from unchecked import unchecked

import optaxclip
from optaxclip import jaxprs
from optaxclip.guards import holding


def promoting():
    """Optax's own arithmetic does not pass under strict promotion."""
    return jax.numpy_dtype_promotion("standard")


def noisy():
    """Adam behind a clipper, with moments, counts and a random key in its state."""

    def update(updates, state, params=None):
        key, noise = jax.random.split(state)
        offset = 0.01 * jax.random.uniform(noise)
        spread = jax.tree.map(lambda x: x + offset.astype(x.dtype), updates)
        return spread, key

    noise = optax.GradientTransformation(lambda params: jax.random.key(0), update)
    return optax.chain(optaxclip.clip_global_norm(1.0), noise, optax.adam(0.1))


def mixed():
    """Parameters of several types."""
    return {
        "f32": tree_of(jnp.float32, shapes=FEW),
        "bf16": np.ones(3, jnp.bfloat16),
        "f16": np.ones((), jnp.float16),
    }


def bits(state):
    """A tree whose random keys are numbers."""
    return jax.tree.map(
        lambda x: (
            jax.random.key_data(x)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else x
        ),
        state,
    )


def broken(tree, bad, place="f32"):
    """The tree with one number that is not finite."""
    leaves, structure = jax.tree.flatten(tree[place])
    leaves[0] = np.array(leaves[0])
    leaves[0].flat[0] = bad
    return {**tree, place: jax.tree.unflatten(structure, leaves)}


@every_guard
def test_a_skipped_step_leaves_parameters_and_inner_state_bit_for_bit(guard):
    optimizer, params = guard(noisy()), mixed()
    with promoting():

        @jax.jit
        def step(updates, state, params):
            updates, state = optimizer.update(updates, state, params)
            return updates, state, optax.apply_updates(params, updates)

        state, given = jax.jit(optimizer.init)(params), mixed()
        for _ in range(3):
            _, state, params = step(given, state, params)
        zeros = jax.tree.map(np.zeros_like, params)
        for bad in (np.nan, np.inf, -np.inf):
            for place in given:
                updates, after, left = step(broken(given, bad, place), state, params)
                assert_same_bits(updates, zeros)
                assert_same_bits(left, params)
                assert_same_bits(bits(after.inner_state), bits(state.inner_state))
                assert_same_bits(after.memory, state.memory)


@every_guard
def test_whatever_could_be_added_to_a_parameter_is_zeroed(guard):
    optimizer = guard(optax.identity())
    key = jax.random.key(0)
    updates = {
        "x": np.array([np.nan], np.float32),
        "n": np.arange(3, dtype=np.int32),
        "b": np.array([True]),
    }
    others = {"key": key, "none": None, "float0": np.zeros(2, jax.dtypes.float0)}
    state = optimizer.init({**updates, **others})
    skipped, _ = optimizer.update({**updates, **others}, state)
    assert skipped["key"] is key
    for name, wanted in updates.items():
        assert_same_bits(skipped[name], np.zeros_like(wanted))


@every_guard
def test_a_guard_holds_no_second_copy_of_the_state(guard):
    """A donated state is updated in place, whatever comes of the step."""
    params = {f"w{i}": np.ones((64, 64), np.float32) for i in range(8)}
    optimizer = guard(optax.adam(1e-3))

    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        traced = jax.jit(step, donate_argnums=(0, 1)).trace(
            params, optimizer.init(params), params
        )
    memory = traced.lower().compile().memory_analysis()
    parameters = sum(x.nbytes for x in params.values())
    assert memory is not None
    assert memory.temp_size_in_bytes < parameters / 2


# A class that only newer ones of JAX give a public name.
DEBUG_INFO = type(jaxprs.opened(jax.make_jaxpr(lambda: ())())[0].debug_info)


def refused(*args, **options):
    raise TypeError("replace() got an unexpected keyword argument")


@cache
def good_bad_and_good_steps():
    """Updates and state of a guard round what remembers much."""
    several = [mixed(), broken(mixed(), np.nan), mixed(), mixed()]
    return steps_of(optaxclip.skip_nonfinite(noisy()), several)


def another_jax(change):
    """Cut as in a JAX where something that it does not document is otherwise."""

    def cut(*args):
        with pytest.MonkeyPatch.context() as patch:
            change(patch)
            parts = jaxprs.cut(*args)
        assert parts is None
        return parts

    return cut


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(Jaxpr, "replace", refused),
        lambda patch: patch.delattr(Jaxpr, "replace"),
        lambda patch: patch.delattr(DEBUG_INFO, "with_unknown_names"),
    ],
    ids=["other arguments", "no replace", "other names"],
)
def test_where_jax_lets_no_program_be_cut_a_guard_does_the_same(change, monkeypatch):
    wanted, wanted_state = good_bad_and_good_steps()
    monkeypatch.setattr(holding, "cut", another_jax(change))
    got, state = good_bad_and_good_steps.__wrapped__()
    assert_same_bits(got, wanted)
    assert_same_bits(bits(state), bits(wanted_state))


@pytest.mark.parametrize("error", [AttributeError, TypeError, NotImplementedError])
@every_guard
def test_an_error_of_the_optimizer_inside_comes_through(guard, error):
    """Also one of the kinds that tell that a program cannot be cut."""
    own = error("of the optimizer inside")

    def update(updates, state, params=None):
        raise own

    optimizer = guard(optax.GradientTransformation(lambda params: ONE, update))
    with pytest.raises(error) as caught:
        jax.jit(optimizer.update)(ONE, optimizer.init(ONE))
    assert caught.value is own


@pytest.mark.parametrize("wrong", [optax.adam, None, "adam"])
@every_guard
def test_what_is_no_optimizer_is_refused(guard, wrong):
    with (
        unchecked(),
        pytest.raises(TypeError, match=r"^inner must be a transform"),
    ):
        guard(wrong)


@every_guard
def test_a_bad_step_is_never_accepted_however_long_the_streak(guard):
    """A good run with 1000 bad steps in its middle ends where the good run ends."""
    optimizer, start = guard(noisy()), tree_of(jnp.float32, shapes=FEW)
    bad = {**start, "bias": np.full(4, np.nan, np.float32)}

    @jax.jit
    def five_steps(params, state, scales):
        def step(carry, scale):
            params, state = carry
            grads = jax.tree.map(
                lambda x, y: jnp.where(scale > 0, scale * x, y), params, bad
            )
            updates, state = optimizer.update(grads, state, params)
            carry = optax.apply_updates(params, updates), state
            return carry, optaxclip.report(state)

        return jax.lax.scan(step, (params, state), scales)

    def run(streak):
        scales = np.array([1, 2, 3, *[0] * streak, 4, 5], np.float32)
        carry, reports = (start, jax.jit(optimizer.init)(start)), []
        for five in scales.reshape(-1, 5):
            carry, report = five_steps(*carry, five)
            reports.append(report)
        return *carry, jax.tree.map(lambda *x: np.concatenate(x), *reports)

    with promoting():
        wanted, wanted_state, _ = run(0)
        got, state, reports = run(1000)
    reports = {key: value[3:-2] for key, value in reports.items()}
    name = guard.__name__
    assert_same_bits(got, wanted)
    assert_same_bits(bits(state.inner_state), bits(wanted_state.inner_state))
    assert_same_bits(state.memory, wanted_state.memory)
    np.testing.assert_array_equal(reports[f"{name}/consecutive"], 1 + np.arange(1000))
    np.testing.assert_array_equal(reports[f"{name}/skipped"], 1)
    final = optaxclip.report(state)
    assert final[f"{name}/total"] == 1000
    assert final[f"{name}/consecutive"] == final[f"{name}/skipped"] == 0


@every_guard
def test_under_vmap_each_run_skips_its_own_bad_steps(guard):
    optimizer = guard(optax.chain(optaxclip.clip_global_norm(1.0), optax.adam(0.1)))
    steps = np.random.default_rng(0).standard_normal((4, 5, 3)).astype(np.float32)
    steps[1, 2, 0], steps[2, :, 1], steps[3, 0, 2] = np.nan, np.inf, -np.inf

    def run(grads):
        def step(state, grad):
            updates, state = optimizer.update(grad, state)
            return state, updates

        return jax.lax.scan(step, optimizer.init(grads[0]), grads)

    with promoting():
        state, updates = jax.jit(jax.vmap(run))(steps)
        run_alone = jax.jit(run)
        for i, each in enumerate(steps):
            alone_state, alone = run_alone(each)
            np.testing.assert_allclose(updates[i], alone, rtol=1e-5)
            for got, want in zip(
                jax.tree.leaves(state), jax.tree.leaves(alone_state), strict=True
            ):
                np.testing.assert_allclose(got[i], want, rtol=1e-5)
    total = optaxclip.report(state)[f"{guard.__name__}/total"]
    np.testing.assert_array_equal(total, [0, 1, 5, 1])
    assert (updates[2] == 0).all()


@every_guard
def test_the_raw_gradient_is_judged_and_extra_arguments_are_handed_on(guard):
    seen = []

    def update(updates, state, params=None, *, value=None, name=None, **extra):
        seen.append((value, name, params))
        return updates, state

    inner = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )
    optimizer = guard(optax.chain(optaxclip.clip_value(1.0), inner))
    state = optimizer.init(np.zeros(2, np.float32))
    updates, _ = optimizer.update(
        np.array([np.inf, 1.0], np.float32),
        state,
        None,
        value=np.float32(2.0),
        name="other",
    )
    np.testing.assert_array_equal(updates, 0)  # though clip_value makes inf finite
    assert seen == [(2.0, "other", None)]


@every_guard
def test_outside_of_jit_an_optimizer_may_look_at_its_numbers(guard):
    def update(updates, state, params=None):
        return (updates if int(state) % 2 else -updates), state + 1

    optimizer = guard(optax.GradientTransformation(lambda params: jnp.int32(0), update))
    state, seen = optimizer.init(ONE), []
    for given in (ONE, BAD, ONE):
        updates, state = optimizer.update(given, state)
        seen.append(updates)
    np.testing.assert_array_equal(np.stack(seen), [-ONE, 0 * ONE, ONE])


def steps_of(optimizer, several, params=None):
    """Updates and the last state, under jit."""
    params = several[0] if params is None else params
    with promoting():
        state, update, results = optimizer.init(params), jax.jit(optimizer.update), []
        for grads in several:
            updates, state = update(grads, state, params)
            results.append(updates)
    return results, state


ONE, BAD = np.array([3.0, 4.0], np.float32), np.array([3.0, np.nan], np.float32)


@every_guard
def test_inside_multi_steps_the_mean_is_judged(guard):
    """Which stays NaN once it was: optax multiplies the old sum by zero."""
    steps = optax.MultiSteps(guard(optax.sgd(1.0)), 2)
    results, state = steps_of(steps, [ONE, ONE, ONE, BAD, ONE, ONE])
    for updates, factor in zip(results, (0, -1, 0, 0, 0, 0), strict=True):
        np.testing.assert_array_equal(updates, factor * np.asarray(ONE))
    assert optaxclip.report(state)[f"{guard.__name__}/consecutive"] == 2


@every_guard
def test_round_multi_steps_every_part_is_judged(guard):
    """A bad part is left out of the mean, which waits for another."""
    steps = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    results, state = steps_of(guard(steps), [ONE, BAD, ONE, BAD, BAD, ONE, ONE])
    for updates, factor in zip(results, (0, 0, -1, 0, 0, 0, -1), strict=True):
        np.testing.assert_array_equal(updates, factor * np.asarray(ONE))
    assert optaxclip.report(state)[f"{guard.__name__}/total"] == 3


@every_guard
def test_a_guard_works_under_masked_partition_and_inject_hyperparams(guard):
    tree = {"a": ONE, "b": BAD}
    masked = optax.masked(guard(optax.sgd(1.0)), {"a": True, "b": False})
    (updates,), _ = steps_of(masked, [tree])
    assert_same_bits(updates, {"a": -ONE, "b": BAD})
    parts: dict[Any, optax.GradientTransformation] = {
        "a": guard(optax.sgd(1.0)),
        "b": guard(optax.sgd(1.0)),
    }
    (updates,), state = steps_of(optax.partition(parts, {"a": "a", "b": "b"}), [tree])
    assert_same_bits(updates, {"a": -ONE, "b": np.zeros(2, np.float32)})
    name = guard.__name__
    assert optaxclip.report(state)[f"{name}/total"] == 0
    assert optaxclip.report(state)[f"{name}_2/total"] == 1
    injected = optax.inject_hyperparams(lambda rate: guard(optax.sgd(rate)))(rate=0.5)
    results, state = steps_of(injected, [ONE, BAD, ONE])
    np.testing.assert_array_equal(np.stack(results), [-ONE / 2, 0 * ONE, -ONE / 2])


@every_guard
def test_inside_shard_map_all_devices_skip_together(guard):
    devices = np.array(jax.devices("cpu")[:4])
    mesh = jax.sharding.Mesh(devices, ("x",), axis_types=(AxisType.Auto,))
    optimizer = guard(optax.sgd(1.0), axis_name="x")

    def update(grads):
        updates, state = optimizer.update(grads, optimizer.init(grads))
        return updates, optaxclip.report(state)[f"{guard.__name__}/total"]

    sharded = jax.jit(
        jax.shard_map(update, mesh=mesh, in_specs=P("x"), out_specs=(P("x"), P()))
    )
    grads = np.arange(1, 9, dtype=np.float32)
    bad = np.where(grads == 6, np.float32(np.nan), grads)
    for given, wanted in ((grads, -grads), (bad, 0 * grads)):
        updates, total = sharded(given)
        np.testing.assert_array_equal(updates, wanted)
        assert int(total) == int((wanted == 0).all())


def test_reports_of_guards_stand_beside_those_of_the_clippers_inside():
    clip = optaxclip.clip_global_norm(1.0)
    skip = {"skipped", "consecutive", "total"}
    spike = {*skip, "norm", "norm_score", "value_score", "value_given"}
    clips = {"pre_norm", "post_norm", "limit", "clipped_fraction", "clipped_steps"}

    def keys(**reports):
        return {
            f"{name}/{field}" for name, fields in reports.items() for field in fields
        }

    nested = optaxclip.skip_nonfinite(
        optax.chain(
            optaxclip.zero_nonfinite(),
            optax.MultiSteps(
                optaxclip.skip_spikes(
                    optax.chain(optaxclip.error_feedback(clip), optax.adam(0.1))
                ),
                2,
            ).gradient_transformation(),
        )
    )
    zero = {"zeroed", "consecutive", "total"}
    wanted = keys(
        skip_nonfinite=skip,
        zero_nonfinite=zero,
        skip_spikes=spike,
        clip_global_norm={*clips, "carries_over"},
    )
    assert set(optaxclip.report(nested.init(ONE))) == wanted
    twice = optaxclip.skip_nonfinite(optaxclip.skip_nonfinite(clip))
    wanted = keys(skip_nonfinite=skip, skip_nonfinite_2=skip, clip_global_norm=clips)
    assert set(optaxclip.report(twice.init(ONE))) == wanted


def test_a_guard_goes_by_its_name_in_a_report():
    inner = optax.sgd(0.1)
    for guard in (
        optaxclip.skip_nonfinite(inner, name="gate"),
        optaxclip.skip_spikes(inner, name="gate"),
        optaxclip.skip_above(inner, 1.0, name="gate"),
        optaxclip.zero_nonfinite(name="gate"),
    ):
        _, state = guard.update(BAD, guard.init(ONE))
        assert optaxclip.report(state)["gate/consecutive"] == 1


@every_guard
def test_a_forgotten_state_is_answered_by_a_sentence(guard):
    optimizer = guard(optax.sgd(0.1))
    for wrong in (None, ONE, optax.sgd(0.1).init(ONE)):
        with pytest.raises(TypeError, match=r"^skip_\w+ needs the state .*\.$"):
            optimizer.update(ONE, wrong)


def test_a_run_is_stopped_by_a_streak_and_by_nothing_else():
    optimizer = optax.chain(optaxclip.skip_nonfinite(optax.sgd(0.1)))
    state = optimizer.init(ONE)
    for grads, streak in ((BAD, 1), (BAD, 2), (ONE, 0), (BAD, 1), (BAD, 2), (BAD, 3)):
        _, state = optimizer.update(grads, state)
        for allowed in range(5):
            if streak > allowed:
                with pytest.raises(
                    RuntimeError, match=f"skip_nonfinite.*{streak} step"
                ):
                    optaxclip.stop_on_streak(state, allowed)
            else:
                optaxclip.stop_on_streak(state, allowed)
    several = jax.tree.map(lambda x: np.stack([np.zeros_like(x), x]), state)
    with pytest.raises(RuntimeError, match="last 3 steps"):
        optaxclip.stop_on_streak(several, 2)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda state: optaxclip.stop_on_streak(state, 2))(state)
    with pytest.raises(ValueError, match="no guard"):
        optaxclip.stop_on_streak(optax.adam(0.1).init(ONE), 2)


def test_zero_nonfinite_zeroes_and_counts_what_numpy_does():
    zero = optaxclip.zero_nonfinite()
    rng = np.random.default_rng(0)
    params = {
        "a": np.zeros((4, 3), np.float32),
        "b": np.zeros(5, jnp.bfloat16),
        "n": np.arange(2, dtype=np.int32),
    }
    state, update = zero.init(params), jax.jit(zero.update)
    consecutive = total = 0
    for step in range(300):
        tree = {
            k: np.asarray(rng.standard_normal(x.shape), x.dtype)
            for k, x in params.items()
        }
        if step % 7 in (3, 4):
            for name, bad in (("a", np.nan), ("b", np.inf), ("b", -np.inf)):
                tree[name][rng.random(tree[name].shape) < 0.3] = bad
        count = sum((~np.isfinite(x.astype(np.float32))).sum() for x in tree.values())
        consecutive, total = (consecutive + 1, total + 1) if count else (0, total)
        cleaned, state = update(tree, state)
        for name, x in tree.items():
            finite = np.isfinite(x.astype(np.float32))
            assert_same_bits(cleaned[name], np.where(finite, x, np.zeros_like(x)))
        assert [int(x) for x in state.report] == [count, consecutive, total]


def test_zero_nonfinite_zeroes_a_complex_number_with_one_bad_part():
    updates = np.array(
        [1 + 2j, complex(np.nan, 1.0), complex(1.0, np.inf)], np.complex64
    )
    zero = optaxclip.zero_nonfinite()
    cleaned, state = zero.update(updates, zero.init(updates))
    np.testing.assert_array_equal(cleaned, [1 + 2j, 0, 0])
    assert state.report.zeroed == 2
