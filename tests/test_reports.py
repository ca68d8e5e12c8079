"""What a clipper says it did."""

import pickle
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from trees import params_for, tree_of, wide

import optaxclip
from optaxclip import norms, responses, scopes

FIELDS = ("pre_norm", "post_norm", "limit", "clipped_fraction", "clipped_steps")
UPDATES = tree_of(jnp.float32)
LABELS = {"conv": "b", "dense": {"bias": "a", "kernel": "b"}, "scale": "a"}


def keys(*prefixes):
    """The keys of some clippers."""
    return {f"{prefix}/{field}" for prefix in prefixes for field in FIELDS}


def after(transformation, *several, params=None):
    """The report after some steps."""
    state = transformation.init(params_for(UPDATES) if params is None else params)
    update = jax.jit(transformation.update)
    with jax.numpy_dtype_promotion("standard"):
        for updates in several:
            _, state = update(updates, state, params)
    return optaxclip.report(state)


def report_type(transformation, updates):
    """The report after a step as shapes and types, for which nothing is compiled."""

    def step(updates, params):
        with jax.numpy_dtype_promotion("standard"):
            _, state = transformation.update(updates, transformation.init(params))
        return optaxclip.report(state)

    return jax.eval_shape(step, updates, params_for(updates))


clip_norm, clip_value = optaxclip.clip_global_norm(1.0), optaxclip.clip_value(0.1)
PLACES = {
    "alone": (clip_norm, keys("clip_global_norm")),
    "chain": (
        optax.chain(optax.scale(2.0), clip_norm, optax.adam(0.1)),
        keys("clip_global_norm"),
    ),
    "two": (
        optax.chain(clip_norm, clip_value),
        keys("clip_global_norm", "clip_value"),
    ),
    "repeated": (
        optax.chain(clip_value, clip_norm, clip_value, clip_value),
        keys("clip_global_norm", "clip_value", "clip_value_2", "clip_value_3"),
    ),
    "nested": (
        optax.chain(optax.chain(clip_norm), optax.chain(optax.chain(clip_norm))),
        keys("clip_global_norm", "clip_global_norm_2"),
    ),
    "masked": (
        optax.masked(clip_norm, {"conv": True, "dense": False, "scale": True}),
        keys("clip_global_norm"),
    ),
    "partition": (
        optax.partition({"a": clip_norm, "b": clip_value}, LABELS),
        keys("clip_global_norm", "clip_value"),
    ),
    "inject_hyperparams": (
        optax.inject_hyperparams(optaxclip.clip_global_norm)(max_norm=1.0),
        keys("clip_global_norm"),
    ),
    "MultiSteps": (
        optax.MultiSteps(optax.chain(clip_norm, optax.sgd(0.1)), 2),
        keys("clip_global_norm"),
    ),
    "apply_if_finite": (optax.apply_if_finite(clip_norm, 3), keys("clip_global_norm")),
    "none": (optax.adam(0.1), set()),
    "identity": (optax.identity(), set()),
}


@pytest.mark.parametrize(("transformation", "wanted"), PLACES.values(), ids=PLACES)
def test_every_clipper_in_a_state_is_found(transformation, wanted):
    assert set(after(transformation)) == wanted
    assert set(report_type(transformation, UPDATES)) == wanted


def test_a_clipper_of_ones_own_goes_by_its_name():
    clip = optaxclip.clipper(
        scopes.tensor(), norms.l1, 1.0, responses.drop, name="my_drop"
    )
    assert set(after(optax.chain(clip, clip_norm))) == keys(
        "my_drop", "clip_global_norm"
    )
    unnamed = optaxclip.clipper(scopes.tensor(), norms.l1, 1.0, responses.drop)
    assert set(after(optax.chain(unnamed, unnamed))) == keys("clip", "clip_2")


def test_clippers_are_numbered_in_the_order_of_the_chain():
    chain = optax.chain(*map(optaxclip.clip_global_norm, (3.0, 2.0, 1.0)))
    report = after(chain, jax.tree.map(lambda x: 10 * x, UPDATES))
    for number, limit in (("", 3.0), ("_2", 2.0), ("_3", 1.0)):
        assert report[f"clip_global_norm{number}/limit"] == limit


def test_a_state_without_clippers_and_no_state_give_an_empty_report():
    for state in (optax.EmptyState(), (), None, {"a": np.ones(2, np.float32)}):
        assert optaxclip.report(state) == {}


def test_a_report_before_the_first_step_is_of_zeros():
    for value in after(clip_norm).values():
        np.testing.assert_array_equal(value, 0)


def test_a_report_is_float32_with_an_int32_count_whatever_is_clipped():
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64):
        report = report_type(clip_norm, tree_of(dtype))
        types = [report[f"clip_global_norm/{field}"].dtype for field in FIELDS]
        assert types == [*[jnp.float32] * 4, jnp.int32]


def test_a_report_can_be_read_inside_jit():
    @jax.jit
    def step(updates, state):
        updates, state = clip_norm.update(updates, state)
        return optaxclip.report(state)

    found = step(UPDATES, clip_norm.init(UPDATES))
    assert set(found) == keys("clip_global_norm")
    np.testing.assert_allclose(found["clip_global_norm/post_norm"], 1, rtol=1e-6)


def grouped(leaves, scope):
    """What is measured together, as lists of flat arrays in the report's order."""
    if scope == "whole":
        return [np.concatenate([x.ravel() for x in leaves])]
    if scope == "tensor":
        return [x.ravel() for x in leaves]
    if scope == "groups":
        conv, bias, kernel, scale = (x.ravel() for x in leaves)
        return [np.concatenate([bias, scale]), np.concatenate([conv, kernel])]
    if scope == "unit":
        columns = (x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1).T for x in leaves)
        return [column for matrix in columns for column in matrix]
    return [number for x in leaves for number in x.reshape(-1, 1)]


SCOPES = {
    "whole": scopes.whole(),
    "tensor": scopes.tensor(),
    "groups": scopes.groups(LABELS),
    "unit": scopes.unit(),
    "element": scopes.element(),
}
STEPS = [tree_of(jnp.float32, size, seed) for seed, size in enumerate((1, 0.1, 3, 2))]


@cache
def shrinking(name):
    """Shrink at a scope, with a traced limit: one program for all limits."""

    def clip(limit):
        return optaxclip.clipper(SCOPES[name], norms.l2, limit, responses.shrink)

    return clip(1.0).init(STEPS[0]), jax.jit(lambda c, u, s: clip(c).update(u, s))


@pytest.mark.parametrize("name", SCOPES)
@pytest.mark.parametrize("limit", [0.0, 0.6, 1.2, np.inf])
def test_a_report_says_what_numpy_finds_step_by_step(name, limit):
    (state, update), clipped_steps = shrinking(name), 0
    for updates in STEPS:
        clipped, state = update(np.float32(limit), updates, state)
        before, left = (
            np.array([np.linalg.norm(x) for x in grouped(leaves, name)])
            for leaves in (
                [wide(x) for x in jax.tree.leaves(updates)],
                [wide(x) for x in jax.tree.leaves(clipped)],
            )
        )
        many = name in ("unit", "element")
        clipped_steps += (before > limit).any()
        report = state.report
        for found, wanted in (
            (report.pre_norm, before.max() if many else before),
            (report.post_norm, left.max() if many else left),
            (report.limit, limit),
            (report.clipped_fraction, (before > limit).mean()),
            (report.clipped_steps, clipped_steps),
        ):
            np.testing.assert_allclose(found, np.squeeze(wanted), rtol=2e-6)
        shape = {"tensor": (4,), "groups": (2,)}.get(name, ())
        assert report.pre_norm.shape == report.limit.shape == shape


def test_a_stack_of_layers_has_an_entry_a_layer():
    stack = {"a": jnp.arange(12.0).reshape(3, 4), "b": np.ones((2, 2, 2), np.float32)}
    report = after(
        optaxclip.clip_tensor_norm(2.0, leading_axes={"a": 1, "b": 2}),
        stack,
        params=stack,
    )
    rows = np.linalg.norm(wide(stack["a"]), axis=1)
    wanted = [*rows, *[np.sqrt(2)] * 4]
    np.testing.assert_allclose(report["clip_tensor_norm/pre_norm"], wanted, rtol=1e-6)
    np.testing.assert_allclose(
        report["clip_tensor_norm/clipped_fraction"], 3 / 7, rtol=1e-6
    )


def test_the_report_is_in_the_clippers_own_norm():
    flat = np.concatenate([wide(x).ravel() for x in jax.tree.leaves(UPDATES)])
    for order in (1, 3, np.inf):
        report = after(optaxclip.clip_global_norm(0.5, ord=order), UPDATES)
        wanted = np.linalg.norm(flat, order)
        np.testing.assert_allclose(
            report["clip_global_norm/pre_norm"], wanted, rtol=1e-6
        )
        np.testing.assert_allclose(report["clip_global_norm/post_norm"], 0.5, rtol=1e-6)


def test_clipped_steps_counts_the_steps_in_which_any_group_was_clipped():
    loud, quiet = np.array([3.0, 0.1], np.float32), np.array([0.1, 0.1], np.float32)
    report = after(clip_value, loud, quiet, loud, loud, params=quiet)
    assert report["clip_value/clipped_steps"] == 3
    assert report["clip_value/clipped_fraction"] == 0.5


def test_a_group_at_its_limit_is_not_clipped_and_one_that_is_nan_is():
    clip = optaxclip.clip_global_norm(5.0)
    for updates, count in (
        (np.array([3.0, 4.0], np.float32), 0),
        (np.array([np.nan, 0.0], np.float32), 1),
    ):
        report = after(clip, updates, params=updates)
        assert report["clip_global_norm/clipped_fraction"] == count
        assert report["clip_global_norm/clipped_steps"] == count


def test_an_infinite_limit_measures_and_counts_nothing():
    report = after(optaxclip.clip_global_norm(np.inf), np.array([3.0, 4.0], np.float32))
    assert (
        report["clip_global_norm/pre_norm"] == report["clip_global_norm/post_norm"] == 5
    )
    assert report["clip_global_norm/clipped_steps"] == 0


def test_each_side_counts_against_its_own_limit():
    """Of six numbers one is too far below zero and two above, one of them the most."""
    updates = np.array([-3.0, -1.0, -0.3, 0.3, 1.0, 3.0], np.float32)
    clip = optaxclip.clip_value(0.5, min_value=-2.0)
    report = after(clip, updates, params=updates)
    assert report["clip_value/clipped_fraction"] == 0.5
    assert report["clip_value/pre_norm"] == 3
    assert report["clip_value/post_norm"] == report["clip_value/limit"] == 0.5


@pytest.mark.parametrize("sign", [1, -1])
def test_nan_of_either_sign_is_reported_beside_any_number(sign):
    """Processors make a NaN with a sign of infinity less infinity."""
    broken = np.copysign(np.float32(np.nan), np.float32(sign))
    updates = np.array([[broken, 30.0], [2.0, 40.0]], np.float32)
    report = after(optaxclip.clip_unit_norm(1.0), jnp.asarray(updates))
    assert np.isnan(report["clip_unit_norm/pre_norm"])
    assert np.isnan(report["clip_unit_norm/post_norm"])
    assert report["clip_unit_norm/clipped_fraction"] == 1


def test_multi_steps_reports_the_last_step_that_was_taken():
    steps = optax.MultiSteps(clip_norm, 2)
    double = jax.tree.map(lambda x: 3 * x, UPDATES)
    mean = 2 * optaxclip.tree_norm(UPDATES)
    for several in ((UPDATES, double), (UPDATES, double, UPDATES)):
        report = after(steps, *several)
        np.testing.assert_allclose(report["clip_global_norm/pre_norm"], mean, rtol=1e-6)
        assert report["clip_global_norm/clipped_steps"] == 1


def test_the_state_of_another_model_is_refused():
    for clip in (optaxclip.spam_clip(), optaxclip.adagn()):
        state = clip.init({"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)})
        with pytest.raises(ValueError, match="init it with params"):
            clip.update({"b": np.ones(2, np.float32)}, state)


def test_the_state_of_another_window_is_refused():
    updates = np.ones(2, np.float32)
    state = optaxclip.autoclip(window=4).init(updates)
    with pytest.raises(ValueError, match="the same options"):
        optaxclip.autoclip(window=5).update(updates, state)


def test_after_clipping_a_norm_beyond_all_floats_is_reported_as_finite():
    clip = optaxclip.clip_global_norm(1.0)
    state = jax.jit(lambda u: clip.update(u, clip.init(u))[1])(
        np.full(2, 3e38, np.float32)
    )
    assert state.report.post_norm == 1


def test_a_second_clipper_changes_no_key_of_the_first():
    one = report_type(optax.chain(clip_norm, optax.sgd(0.1)), UPDATES)
    for chain in ((clip_norm, clip_value), (clip_norm, clip_norm)):
        assert set(one) <= set(report_type(optax.chain(*chain), UPDATES))


def test_a_name_that_is_taken_is_numbered():
    named = optaxclip.clipper(
        scopes.whole(), norms.l2, 1.0, responses.shrink, name="clip_global_norm_2"
    )
    report = report_type(optax.chain(clip_norm, clip_norm, named), UPDATES)
    assert len(report) == 3 * len(FIELDS)


def named_after(clip, updates, names=None):
    """The report with names after an eager step, and the vectors without."""
    _, state = clip.update(updates, clip.init(updates))
    told = optaxclip.report(state, names=updates if names is None else names)
    assert {np.shape(value) for value in told.values()} == {()}
    return told, optaxclip.report(state)


def test_with_names_an_entry_of_a_leaf_has_its_path_whatever_does_not_count():
    updates = {
        "a": {"integers": jnp.arange(3), "kernel": np.full((2, 2), 3.0, np.float32)},
        "b": None,
        "c": [np.zeros((0, 2), np.float32), np.array([3.0, 4.0], np.float32)],
    }
    told, vectors = named_after(optaxclip.clip_tensor_norm(1.0), updates)
    norms_of = {"a/kernel": 6.0, "c/1": 5.0}
    for field in ("pre_norm", "post_norm", "limit"):
        entries = vectors[f"clip_tensor_norm/{field}"]
        for path, number in zip(norms_of, entries, strict=True):
            assert told[f"clip_tensor_norm/{field}/{path}"] == number
    for path, norm in norms_of.items():
        assert told[f"clip_tensor_norm/pre_norm/{path}"] == norm
    assert len(told) == 3 * len(norms_of) + 2


def test_with_names_tensors_in_a_stack_have_their_index():
    stack = {"a": jnp.arange(12.0).reshape(3, 4), "b": np.ones((2, 2, 2), np.float32)}
    axes = {"a": 1, "b": 2}
    told, _ = named_after(optaxclip.clip_tensor_norm(2.0, leading_axes=axes), stack)
    for layer, row in enumerate(wide(stack["a"])):
        found = told[f"clip_tensor_norm/pre_norm/a/{layer}"]
        np.testing.assert_allclose(found, np.linalg.norm(row), rtol=1e-6)
    for index in np.ndindex(2, 2):
        place = "/".join(map(str, index))
        found = told[f"clip_tensor_norm/pre_norm/b/{place}"]
        np.testing.assert_allclose(found, np.sqrt(2), rtol=1e-6)


def test_with_names_a_group_has_its_label():
    told, _ = named_after(optaxclip.clip_group_norm(1.0, LABELS), UPDATES)
    for label, group in zip("ab", grouped_leaves("groups"), strict=True):
        found = told[f"clip_group_norm/pre_norm/{label}"]
        np.testing.assert_allclose(found, np.linalg.norm(group), rtol=1e-6)


def grouped_leaves(scope):
    return grouped([wide(x) for x in jax.tree.leaves(UPDATES)], scope)


def test_labels_that_are_spelled_alike_are_told_apart():
    labels = {"conv": 1, "dense": "1", "scale": "1"}
    told, _ = named_after(optaxclip.clip_group_norm(1.0, labels), UPDATES)
    assert {f"clip_group_norm/pre_norm/{name}" for name in ("1", "1_2")} <= set(told)


def test_with_names_a_masked_clipper_names_what_it_sees():
    mask = {"conv": True, "dense": False, "scale": True}
    told, _ = named_after(optax.masked(optaxclip.clip_tensor_norm(1.0), mask), UPDATES)
    paths = {key.partition("/limit/")[2] for key in told if "/limit/" in key}
    assert paths == {"conv", "scale"}


def test_with_names_one_leaf_alone_needs_no_path():
    told, _ = named_after(
        optaxclip.clip_tensor_norm(1.0), np.array([3.0, 4.0], np.float32)
    )
    assert told["clip_tensor_norm/pre_norm"] == 5


def test_names_hold_in_a_trace_on_the_host_and_for_mapped_states():
    clip = optaxclip.clip_tensor_norm(1.0)

    def step(factor):
        updates = jax.tree.map(lambda x: factor * x, UPDATES)
        _, state = clip.update(updates, clip.init(updates))
        return state, optaxclip.report(state, names=UPDATES)

    states, wanted = jax.jit(jax.vmap(step))(np.array([1.0, 2.0], np.float32))
    for given in (states, jax.device_get(states)):
        told = optaxclip.report(given, names=UPDATES)
        assert told.keys() == wanted.keys()
        for key, numbers in told.items():
            np.testing.assert_array_equal(numbers, wanted[key])


def test_names_outlast_a_pickle():
    clip = optaxclip.clip_group_norm(1.0, {"conv": "a.b/(c", "dense": "é", "scale": ""})
    state = clip.init(UPDATES)
    again = pickle.loads(pickle.dumps(state))
    told = optaxclip.report(again, names=UPDATES)
    assert told.keys() == optaxclip.report(state, names=UPDATES).keys()
    assert "clip_group_norm/limit/a.b/(c" in told


def test_names_of_nnx_are_those_of_its_parameters():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optaxclip.clip_tensor_norm(1.0), wrt=nnx.Param)
    optimizer.update(
        model, nnx.grad(lambda m: jnp.sum(m(np.ones((1, 2), np.float32))))(model)
    )
    for names in (nnx.state(model, nnx.Param), {"kernel": 0, "bias": 0}):
        told = optaxclip.report(optimizer.opt_state, names=names)
        assert told["clip_tensor_norm/pre_norm/kernel"] == 2


def test_the_names_of_another_model_are_refused():
    state = optaxclip.clip_tensor_norm(1.0).init(UPDATES)
    sentence = r"^names must have the leaves .* none at dense/bias; pass the params\.$"
    for names in (
        {"conv": np.ones(2, np.float32)},
        {"conv": 1, "dense": 2, "scale": 3},
    ):
        with pytest.raises(ValueError, match=sentence):
            optaxclip.report(state, names=names)


@pytest.mark.parametrize(
    "given",
    [optax.sgd(0.1), optax.sgd, optaxclip.ClipState, clip_norm.init],
    ids=["transformation", "function", "class", "method"],
)
def test_what_is_no_state_is_refused(given):
    with pytest.raises(TypeError, match=r"pass the state that init and update return"):
        optaxclip.report(given)
