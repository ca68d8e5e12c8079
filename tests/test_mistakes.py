"""Mistakes that newcomers make, each answered by one short sentence with the fix.

Nothing is compiled: mistakes are found while arguments are looked at.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import sparse
from jax.sharding import PartitionSpec
from unchecked import unchecked

import optaxclip
from optaxclip import norms, responses, scopes

oc: Any = optaxclip  # of which a type checker would refuse what is tried here
thresholds: Any = optaxclip.thresholds

MODEL = {f"w{i}": jnp.ones((64, 64)) for i in range(50)}
PAIR = {"body": jnp.ones(2), "head": jnp.ones(2)}
BATCH = jnp.ones((8, 2))
TWICE = sparse.BCOO((jnp.ones(2), jnp.array([[0], [0]])), shape=(3,))
BY_SCOPE = (scopes.whole(), norms.l2, 1.0, responses.shrink)


def step(clip, updates: Any = PAIR, params=None, **extra: Any):
    """One step with the state that belongs to it."""
    return clip.update(updates, clip.init(PAIR), params, **extra)


def core(place, given):
    """The core with one of its four answers replaced."""
    answers: list[Any] = list(BY_SCOPE)
    answers[place] = given
    return oc.clipper(*answers)


def dot(w, x):
    """A loss."""
    return jnp.dot(w, x)


# What was typed, what made it, the error's type, and words that its sentence must have.
MISTAKES = {
    "update(grads, grads)": (
        lambda: oc.clip_global_norm(1.0).update(MODEL, MODEL),
        TypeError,
        "needs the state .* not a dict of 50 leaves; call update",
    ),
    "update(grads, None)": (
        lambda: oc.clip_global_norm(1.0).update(MODEL, None),
        TypeError,
        "needs the state .* not None; call update",
    ),
    "update(grads, adam_state)": (
        lambda: oc.agc(1.0).update(MODEL, optax.adam(1.0).init(MODEL), MODEL),
        TypeError,
        "agc needs the state",
    ),
    "the state of another clipper": (
        lambda: oc.adagc().update(MODEL, oc.clip_global_norm(1.0).init(MODEL)),
        ValueError,
        "state of 3 arrays, but the updates need 101|need .*; init it",
    ),
    "the state of another model": (
        lambda: oc.adagc().update(MODEL, oc.adagc().init(PAIR)),
        ValueError,
        "adagc was given a state of .* arrays.*; init it",
    ),
    "clippy.update(grads, params, params)": (
        lambda: oc.clippy().update(MODEL, MODEL, MODEL),
        TypeError,
        "clippy needs the state",
    ),
    "clip_singular_values.update(grads, grads)": (
        lambda: oc.clip_singular_values(1.0).update(MODEL, MODEL),
        TypeError,
        "clip_singular_values needs the state",
    ),
    "scale_by_stable_adam().update(grads, grads)": (
        lambda: oc.scale_by_stable_adam().update(MODEL, MODEL),
        TypeError,
        "scale_by_stable_adam needs the state",
    ),
    "error_feedback(clip).update(grads, grads)": (
        lambda: oc.error_feedback(oc.clip_value(1.0)).update(MODEL, MODEL),
        TypeError,
        "error_feedback needs the state",
    ),
    "zero_nonfinite().update(grads, grads)": (
        lambda: oc.zero_nonfinite().update(MODEL, MODEL),
        TypeError,
        "zero_nonfinite needs the state",
    ),
    "skip_nonfinite(clip).update(grads, None)": (
        lambda: oc.skip_nonfinite(oc.clip_value(1.0)).update(MODEL, None),
        TypeError,
        r"not None; call update\(updates, state, params\)\.$",
    ),
    "clip_weights.update(grads, state)": (
        lambda: step(oc.clip_weights(1.0)),
        ValueError,
        "needs params; call update",
    ),
    "params of another model": (
        lambda: step(oc.agc(1.0), params=MODEL),
        ValueError,
        "same structure as the updates, and only one of the two has a leaf body",
    ),
    "params of other shapes": (
        lambda: step(oc.agc(1.0), params={"body": jnp.ones(3), "head": jnp.ones(2)}),
        ValueError,
        r"same shapes as the updates, not \(3,\) beside \(2,\) at body",
    ),
    "integers as gradients": (
        lambda: step(oc.clip_global_norm(1.0), jnp.array([3, 4])),
        TypeError,
        "floating-point numbers, not an array of int32 of shape",
    ),
    "Python integers as gradients": (
        lambda: step(oc.clip_value(1.0), [3, 4]),
        TypeError,
        "floating-point numbers, not the int 3",
    ),
    "a string as gradients": (
        lambda: step(oc.clip_global_norm(1.0), "abc"),
        TypeError,
        "floating-point numbers, not the str 'abc'",
    ),
    "a function as gradients": (
        lambda: step(oc.clip_global_norm(1.0), jax.grad(dot)),
        TypeError,
        "floating-point numbers, not the function dot",
    ),
    "a class as gradients": (
        lambda: step(oc.clip_tensor_norm(1.0), jnp.float32),
        TypeError,
        "floating-point numbers, not ",
    ),
    "shrink_tree of integers": (
        lambda: oc.shrink_tree(jnp.array([3, 4]), 1.0),
        TypeError,
        "not an array of int32",
    ),
    "tree_norm of a string": (
        lambda: oc.tree_norm("abc"),
        TypeError,
        "floating-point numbers, not the str 'abc'",
    ),
    "a BCOO with duplicates": (
        lambda: oc.tree_norm(TWICE),
        ValueError,
        r"BCOO of shape \(3,\) may hold several numbers.*call its sum_duplicates\(\)",
    ),
    "clipper(..., ZScore, ...)": (
        lambda: core(2, thresholds.ZScore),
        TypeError,
        r"threshold must be .* the class ZScore; call it, as in ZScore\(\)",
    ),
    "clip_global_norm(ZScore)": (
        lambda: oc.clip_global_norm(thresholds.ZScore),
        TypeError,
        r"max_norm must be .* the class ZScore; call it",
    ),
    "Minimum(ZScore, 1.0)": (
        lambda: thresholds.Minimum(thresholds.ZScore, 1.0),
        TypeError,
        "first must be .* the class ZScore; call it",
    ),
    "clip_global_norm(optax.sgd(0.1))": (
        lambda: oc.clip_global_norm(optax.sgd(0.1)),
        TypeError,
        "max_norm must be .* not a GradientTransformation",
    ),
    "clipper(scopes.whole, ...)": (
        lambda: core(0, scopes.whole),
        TypeError,
        r"scope must be .* the function whole; call it, as in whole\(\)",
    ),
    "clipper('whole', ...)": (
        lambda: core(0, "whole"),
        TypeError,
        r"scope must be an object such as scopes.whole\(\), not 'whole'",
    ),
    "clipper(..., norms.p_norm, ...)": (
        lambda: core(1, norms.p_norm),
        TypeError,
        "norm must be .* the function p_norm; call it",
    ),
    "clipper(..., 2, ...)": (
        lambda: core(1, 2),
        TypeError,
        "norm must be an object such as norms.l2, not 2",
    ),
    "clipper(..., responses.soften)": (
        lambda: core(3, responses.soften),
        TypeError,
        "response must be .* the function soften; call it",
    ),
    "zclip(spike=ZScore)": (
        lambda: oc.zclip(spike=thresholds.ZScore),
        TypeError,
        "spike must be a Spike such as thresholds.to_mean, not the class ZScore",
    ),
    "bound_weights(1.0)": (
        lambda: oc.bound_weights(1.0),
        TypeError,
        "clip must be a transformation such as a clipper .*, not 1.0",
    ),
    "bound_weights(clip_global_norm)": (
        lambda: oc.bound_weights(oc.clip_global_norm),
        TypeError,
        "transformation .* the function clip_global_norm; call it",
    ),
    "bound_weights(ZScore())": (
        lambda: oc.bound_weights(thresholds.ZScore()),
        TypeError,
        "transformation .*, not an object of type ZScore",
    ),
    "error_feedback(1.0)": (
        lambda: oc.error_feedback(1.0),
        TypeError,
        "clip must be a transformation .*, not 1.0",
    ),
    "error_feedback(clip, clip_carry=10.0)": (
        lambda: oc.error_feedback(oc.clip_value(1.0), clip_carry=10.0),
        TypeError,
        "clip_carry must be a transformation .*, not 10.0",
    ),
    "skip_nonfinite(optax.adam)": (
        lambda: oc.skip_nonfinite(optax.adam),
        TypeError,
        "inner must be a transformation .* the function adam; call it",
    ),
    "skip_spikes(0.1)": (
        lambda: oc.skip_spikes(0.1),
        TypeError,
        "inner must be a transformation .*, not 0.1",
    ),
    "autoclip(0.1)": (
        lambda: oc.autoclip(0.1),
        ValueError,
        "percentile must be 0 or .* to 100, not 0.1; give 10 for the quantile 0.1",
    ),
    "RollingPercentile(0.95)": (
        lambda: thresholds.RollingPercentile(0.95),
        ValueError,
        "not 0.95; give 95 for the quantile 0.95",
    ),
    "clip_global_norm(10**400)": (
        lambda: oc.clip_global_norm(10**400),
        ValueError,
        "max_norm must be a number that a float holds.*; use infinity",
    ),
    "clipped_grad(loss, 10**400)": (
        lambda: oc.clipped_grad(dot, 10**400),
        ValueError,
        "max_norm must be a number that a float holds",
    ),
    "clip_global_norm('1.0')": (
        lambda: oc.clip_global_norm("1.0"),
        TypeError,
        "max_norm must be a number or an array, not '1.0'",
    ),
    "clip_global_norm(None)": (
        lambda: oc.clip_global_norm(None),
        TypeError,
        "max_norm must be a number, not None",
    ),
    "a thousand negative limits": (
        lambda: oc.clip_tensor_norm(jnp.full(1000, -1.0)),
        ValueError,
        "max_norm must be at least 0, not an array of float32 of shape",
    ),
    "clip_global_norm(True)": (
        lambda: oc.clip_global_norm(True),
        TypeError,
        "max_norm must be a number or an array, not True",
    ),
    "clip_global_norm(np.longdouble(1))": (
        lambda: oc.clip_global_norm(np.longdouble(1)),
        TypeError,
        "max_norm must be a number or an array, not np.longdouble",
    ),
    "clip_global_norm(lambda: 1.0)": (
        lambda: oc.clip_global_norm(lambda: 1.0),
        TypeError,
        "max_norm must be a number or a schedule, which takes the step, not the "
        r"function <lambda>\.$",
    ),
    "clip_value(1.0, min_value=Ema)": (
        lambda: oc.clip_value(1.0, min_value=thresholds.Ema),
        TypeError,
        r"min_value must be .* not the class Ema; call it, as in Ema\(\)",
    ),
    "clip_tensor_norm(by_path({'*': Ema}))": (
        lambda: oc.clip_tensor_norm(oc.by_path({"*": thresholds.Ema})),
        TypeError,
        "max_norm must be .* not the class Ema; call it",
    ),
    "thresholds.Constant('1.0')": (
        lambda: thresholds.Constant("1.0"),
        TypeError,
        "limit must be a number or an array, not '1.0'",
    ),
    "a schedule of several numbers": (
        lambda: step(oc.clip_global_norm(lambda _: jnp.ones(3))),
        ValueError,
        r"a limit of shape \(3,\) does not fit groups of shape \(\); give one number",
    ),
    "a schedule of complex numbers": (
        lambda: step(oc.clip_global_norm(lambda _: 1j)),
        TypeError,
        "a schedule must return a number, not 1j; change the function <lambda>",
    ),
    "agc of a vector": (
        lambda: step(oc.agc(jnp.ones(5)), params=PAIR),
        ValueError,
        r"a limit of shape \(5,\) does not fit groups of shape \(\)",
    ),
    "zclip(decay=jnp.full(5, 0.9))": (
        lambda: oc.zclip(decay=jnp.full(5, 0.9)),
        ValueError,
        r"decay must be a number of .* not an array of float32 of shape \(5,\)",
    ),
    "zclip(decay=10**400)": (
        lambda: oc.zclip(decay=10**400),
        ValueError,
        "decay must be a number that a float holds.*; use infinity or a smaller one",
    ),
    "zclip(warmup_steps=10**12)": (
        lambda: oc.zclip(warmup_steps=10**12),
        ValueError,
        "warmup_steps must be a number from 1 to 2147483647, not 1000000000000",
    ),
    "zclip(skip_update_on_spike='yes')": (
        lambda: oc.zclip(skip_update_on_spike="yes"),
        TypeError,
        "skip_update_on_spike must be True or False, not 'yes'",
    ),
    "autoclip(window=10**12)": (
        lambda: oc.autoclip(window=10**12),
        ValueError,
        "window must be at least 1, not 1000000000000, and below",
    ),
    "clip_global_norm(1.0, ord=10**400)": (
        lambda: oc.clip_global_norm(1.0, ord=10**400),
        ValueError,
        "ord must be at least 1 or infinity, not 1000.*; give 2",
    ),
    "watch(params=grads)": (
        lambda: oc.watch(params=PAIR),
        TypeError,
        "params must be True or False, not a dict of 2 leaves",
    ),
    "skip_nonfinite(..., name=None)": (
        lambda: oc.skip_nonfinite(oc.clip_value(1.0), name=None),
        TypeError,
        "name must be a nonempty string, not None",
    ),
    "zero_nonfinite(name='')": (
        lambda: oc.zero_nonfinite(name=""),
        TypeError,
        "name must be a nonempty string, not ''",
    ),
    "axis=(0, 0)": (
        lambda: step(oc.clip_unit_norm(1.0, axis=(0, 0)), MODEL),
        ValueError,
        r"axis must name dimensions of a leaf .*, each once, not \(0, 0\)",
    ),
    "leading_axes=1.0": (
        lambda: step(oc.clip_tensor_norm(1.0, leading_axes=1.0)),
        ValueError,
        r"leading_axes must be an int of 0 to 1 for a leaf of shape \(2,\), not 1.0",
    ),
    "a string as gradients of a guard": (
        lambda: step(oc.skip_nonfinite(optax.sgd(0.1)), "abc"),
        TypeError,
        "skip_nonfinite must be given floating-point numbers, not the str 'abc'",
    ),
    "a function as gradients of watch": (
        lambda: step(oc.watch(params=False), jax.grad(dot)),
        TypeError,
        "watch must be given floating-point numbers, not the function dot",
    ),
    "integers as gradients of zero_nonfinite": (
        lambda: step(oc.zero_nonfinite(), jnp.array([3, 4])),
        TypeError,
        "zero_nonfinite must be given floating-point numbers, not an array of int32",
    ),
    "numbers that JAX cannot hold": (
        lambda: oc.tree_norm({"w": np.ones(2, np.longdouble)}),
        TypeError,
        "numbers that JAX can hold, not an array of .* make it an array of float32",
    ),
    "a masked array of NumPy": (
        lambda: oc.tree_norm(np.ma.masked_invalid([1.0, np.nan])),
        TypeError,
        "numbers that JAX can hold, not an array of float64 .* in a MaskedArray",
    ),
    "shapes as gradients": (
        lambda: step(oc.clip_value(1.0), jax.eval_shape(lambda: PAIR)),
        TypeError,
        "clip_value must be given numbers, not their shapes alone",
    ),
    "the class of arrays as gradients": (
        lambda: oc.tree_norm(jnp.ndarray),
        TypeError,
        "floating-point numbers, not the class .*Array; hand over",
    ),
    "value='2.5'": (
        lambda: step(oc.skip_spikes(optax.sgd(0.1)), PAIR, value="2.5"),
        TypeError,
        "value must be the loss, a number, not '2.5'",
    ),
    "value={'loss': 2.5}": (
        lambda: step(oc.greedy_clip(1.0), PAIR, value={"loss": 2.5}),
        TypeError,
        "value must be the loss, a number, not a dict of 1 leaves",
    ),
    "max_logits='x'": (
        lambda: step(oc.attention.qk_clip(), PAIR, PAIR, max_logits="x"),
        TypeError,
        "max_logits must be a tree of numbers, one a head, not 'x'",
    ),
    "stable_adam with the state of another model": (
        lambda: oc.scale_by_stable_adam().update(
            MODEL, oc.scale_by_stable_adam().init(PAIR)
        ),
        ValueError,
        "scale_by_stable_adam was given a state .*; init it",
    ),
    "pre_clipping_transform=3": (
        lambda: oc.clipped_grad(dot, 1.0, pre_clipping_transform=3),
        TypeError,
        "pre_clipping_transform must be a function, not 3",
    ),
    "a transform that returns nothing": (
        lambda: oc.clipped_grad(dot, 1.0, pre_clipping_transform=lambda g: None)(
            jnp.ones(2), BATCH
        ),
        TypeError,
        "must return a tree of floating-point arrays, not None",
    ),
    "stable_adam with the state of other shapes": (
        lambda: oc.scale_by_stable_adam().update(
            jnp.ones((2, 3)), oc.scale_by_stable_adam().init(jnp.ones(3))
        ),
        ValueError,
        r"state with shapes \(3,\) where the updates need \(2, 3\); init it",
    ),
    "skip_spikes with the state of another guard": (
        lambda: oc.skip_spikes(optax.sgd(1.0)).update(
            PAIR, oc.skip_nonfinite(optax.sgd(1.0)).init(PAIR)
        ),
        TypeError,
        "skip_spikes needs the state .* not a SkipReport",
    ),
    "skip_spikes with the state of another window": (
        lambda: oc.skip_spikes(optax.sgd(1.0)).update(
            PAIR, oc.skip_spikes(optax.sgd(1.0), window=64).init(PAIR)
        ),
        ValueError,
        r"shapes \(64,\) where the updates need \(128,\); .* the same options",
    ),
    "stop_on_streak(state, None)": (
        lambda: oc.stop_on_streak(oc.zero_nonfinite().init(PAIR), None),
        TypeError,
        "max_consecutive must be a number of at least 0, not None",
    ),
    "params of one array": (
        lambda: step(oc.agc(1.0), params=jnp.ones(2)),
        ValueError,
        "only one of the two is a single leaf; hand over the parameters",
    ),
    "labels that are NaN": (
        lambda: step(oc.clip_group_norm(1.0, {"body": jnp.nan, "head": jnp.nan})),
        TypeError,
        "labels must be hashable, as strings are, not nan",
    ),
    "axis_name='batch' outside of any": (
        lambda: step(oc.clip_global_norm(1.0, axis_name="batch")),
        ValueError,
        "axis_name must name an axis of the jax.shard_map.*not 'batch'",
    ),
    "axis_name=['data', 'model']": (
        lambda: step(oc.clip_global_norm(1.0, axis_name=["data", "model"])),
        ValueError,
        r"must be a tuple .*, not a list; give \('data', 'model'\)",
    ),
    "axis_name=0": (
        lambda: step(oc.clip_global_norm(1.0, axis_name=0)),
        TypeError,
        "axis_name must be the name of a mesh axis.* not 0; give names as strings",
    ),
    "clipped_grad(..., axis_name='batch')": (
        lambda: oc.clipped_grad(dot, 1.0, axis_name="batch")(jnp.ones(2), BATCH),
        ValueError,
        "axis_name must name an axis of the jax.shard_map.*not 'batch'",
    ),
    "axis_name={'haed': 'x', ...}": (
        lambda: step(
            oc.clip_global_norm(1.0, axis_name={**dict.fromkeys(PAIR), "haed": "x"})
        ),
        ValueError,
        "axis_name must be .* has an entry for haed, which matches nothing",
    ),
    "a limit for no leaf": (
        lambda: step(oc.clip_tensor_norm({"body": 1.0, "head": 1.0, "haed": 2.0})),
        ValueError,
        "entry for haed, which matches nothing; take it out",
    ),
    "no limit for a leaf": (
        lambda: step(oc.clip_tensor_norm({"body": 1.0})),
        ValueError,
        "has no entry for head; add one",
    ),
    "a limit for no label": (
        lambda: step(oc.clip_group_norm({"a": 1.0, "b": 2.0}, labels="a")),
        ValueError,
        "has a limit for 'b', which no leaf is labeled; take it out",
    ),
    "a label for no leaf": (
        lambda: step(
            oc.clip_group_norm(1.0, labels={"body": "a", "head": "b", "haed": "c"})
        ),
        ValueError,
        "labels must be .* entry for haed, which matches nothing",
    ),
    "a pattern for no leaf": (
        lambda: step(oc.clip_tensor_norm(oc.by_path({"haed": 1.0, "*": 2.0}))),
        ValueError,
        "by_path has the pattern 'haed', which matches no leaf",
    ),
    "no pattern for a leaf": (
        lambda: step(oc.clip_group_norm(1.0, oc.by_path({"body": "a"}))),
        ValueError,
        "by_path has no pattern for head; add one",
    ),
    "an old key in a batch": (
        lambda: oc.clipped_grad(lambda w, x, key: dot(w, x), 1.0)(
            jnp.ones(2), BATCH, jax.random.PRNGKey(0)
        ),
        ValueError,
        "batch argument 2 of two uint32 looks like an old-style random key.*"
        "hand over a jax.random.key",
    ),
    "clipped_grad(loss(w, x), 1.0)": (
        lambda: oc.clipped_grad(1.0, 1.0),
        TypeError,
        "loss must be a function .*, not 1.0; hand over the function itself",
    ),
    "clipped_grad(..., denominator='n')": (
        lambda: oc.clipped_grad(dot, 1.0, denominator="n"),
        TypeError,
        "denominator must be a number above 0, not 'n'",
    ),
}


@pytest.mark.parametrize(("make", "kind", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_by_one_short_sentence(make, kind, words):
    with unchecked(), pytest.raises(kind) as error:
        make()
    sentence = str(error.value)
    assert re.search(words, sentence), sentence
    assert len(sentence) < 400
    assert "\n" not in sentence
    assert sentence.endswith(".")


def test_integers_beside_floats_and_trees_without_leaves_pass():
    clip = oc.clip_global_norm(1.0)
    for tree in ({"w": jnp.ones(2), "steps": 3}, {}, {"w": jnp.zeros((0, 2))}):
        passed = jax.eval_shape(clip.update, tree, clip.init(tree))[0]
        assert jax.tree.structure(passed) == jax.tree.structure(tree)


def test_integers_alone_are_measured_by_tree_norm():
    assert oc.tree_norm([3, 4]) == oc.tree_norm(jnp.array([3, 4])) == 5


def test_sparse_arrays_without_duplicates_are_measured():
    assert oc.tree_norm(sparse.BCOO.fromdense(jnp.array([3.0, 0.0, 4.0]))) == 5


def test_entries_for_masked_and_empty_parts_are_no_mistake():
    tree = {"body": jnp.ones(2), "head": optax.MaskedNode(), "rest": {}}
    limits = {"body": 1.0, "head": {"kernel": 2.0}, "rest": 3.0}
    clip = oc.clip_tensor_norm(limits)
    clipped = jax.eval_shape(clip.update, tree, clip.init(tree))[0]
    assert jax.tree.structure(clipped) == jax.tree.structure(tree)


@pytest.mark.parametrize(
    ("spec", "norm"),
    [
        (PartitionSpec(None, "x"), 4.0),
        (PartitionSpec(("x",)), 4.0),
        (PartitionSpec(), 2.0),
    ],
)
def test_a_tree_of_partition_specs_names_the_axes(spec, norm):
    def measure(x):
        return oc.tree_norm({"w": x}, axis_name={"w": spec})

    found = jax.vmap(measure, axis_name="x")(jnp.ones((4, 2, 2)))
    assert found.tolist() == [norm] * 4


def test_limits_and_labels_may_be_given_by_patterns_of_paths():
    limits = oc.by_path({"bo*": 0.5, "*": 2.0})
    for clip in (
        oc.clip_tensor_norm(limits),
        oc.clip_group_norm({0.5: 0.5, 2.0: 2.0}, limits),
    ):
        clipped, _ = step(clip)
        assert jnp.linalg.norm(clipped["body"]) == pytest.approx(0.5)
        assert (clipped["head"] == PAIR["head"]).all()
