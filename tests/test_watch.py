"""What is watched, and that nothing else happens to it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import assert_same_bits, params_for, tree_of, wide
from unchecked import unchecked

import optaxclip
from optaxclip import norms

UPDATES = tree_of(jnp.float32)
PARAMS = params_for(UPDATES)
PATHS = ["conv", "dense/bias", "dense/kernel", "scale"]


def watched(watch, *several, params=PARAMS):
    """The updates of the last of some steps, and the report with names."""
    state, update = watch.init(params), jax.jit(watch.update)
    updates = None
    for given in several:
        updates, state = update(given, state, params)
    return updates, optaxclip.report(jax.device_get(state), names=params)


def scaled(factor):
    return jax.tree.map(lambda x: factor * x, UPDATES)


def flat(tree):
    return np.concatenate([wide(x).ravel() for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize("order", [1, 2, 3, np.inf])
def test_the_norms_are_those_of_numpy_for_the_whole_and_for_each_leaf(order):
    updates, told = watched(optaxclip.watch(ord=order), UPDATES)
    assert_same_bits(updates, UPDATES)
    trees = {"update_norm": UPDATES, "param_norm": PARAMS}
    wanted: dict[str, Any] = {"step": 1}
    for field, tree in trees.items():
        wanted[field] = np.linalg.norm(flat(tree), order)
        for path, leaf in zip(PATHS, jax.tree.leaves(tree), strict=True):
            wanted[f"{field}/{path}"] = np.linalg.norm(wide(leaf).ravel(), order)
    for place in ("", *(f"/{path}" for path in PATHS)):
        update, param = (wanted[f"{field}{place}"] for field in trees)
        wanted[f"ratio{place}"] = update / param
    assert told.keys() == {f"watch/{key}" for key in wanted}
    for key, number in wanted.items():
        np.testing.assert_allclose(told[f"watch/{key}"], number, rtol=1e-6)


def test_stacked_layers_are_measured_each():
    stack = {
        "kernel": jnp.arange(1.0, 13).reshape(3, 2, 2),
        "out": np.ones(4, np.float32),
    }
    watch = optaxclip.watch(leading_axes={"kernel": 1, "out": 0}, ord=norms.rms)
    _, told = watched(watch, stack, params=stack)
    rows = np.sqrt(np.mean(np.square(wide(stack["kernel"])), axis=(1, 2)))
    for layer, row in enumerate(rows):
        found = told[f"watch/update_norm/kernel/{layer}"]
        np.testing.assert_allclose(found, row, rtol=1e-6)
    assert told["watch/ratio/out"] == 1


def test_between_the_steps_that_are_looked_at_the_report_stays():
    watch, seen = optaxclip.watch(every=3), []
    state, update = watch.init(PARAMS), jax.jit(watch.update)
    for factor in (1.0, 2.0, 3.0, 4.0, 5.0):
        _, state = update(scaled(factor), state, PARAMS)
        told = optaxclip.report(state)
        seen.append((told["watch/step"], told["watch/update_norm"]))
    norm = np.linalg.norm(flat(UPDATES))
    wanted = np.array([*[(1, norm)] * 3, *[(4, 4 * norm)] * 2])
    np.testing.assert_allclose(np.array(seen), wanted, rtol=1e-6)


def test_what_is_seen_depends_on_the_place_in_the_chain():
    optimizer = optax.chain(
        optaxclip.watch(params=False, name="gradients"),
        optax.sgd(0.5),
        optaxclip.watch(name="steps"),
    )
    updates, told = watched(optimizer, UPDATES)
    assert_same_bits(updates, scaled(-0.5))
    norm = np.linalg.norm(flat(UPDATES))
    np.testing.assert_allclose(told["gradients/update_norm"], norm, rtol=1e-6)
    np.testing.assert_allclose(told["steps/update_norm"], norm / 2, rtol=1e-6)
    fields = {key.split("/")[1] for key in told if key.startswith("gradients")}
    assert fields == {"update_norm", "step"}


def test_without_params_to_watch_the_update_needs_none():
    watch = optaxclip.watch(params=False)
    _, state = watch.update(UPDATES, watch.init(PARAMS))
    assert jax.tree.structure(state) == jax.tree.structure(watch.init(PARAMS))
    watch = optaxclip.watch()
    with pytest.raises(ValueError, match=r"watch needs params; call update\("):
        watch.update(UPDATES, watch.init(PARAMS))


@pytest.mark.parametrize("value", [3e38, 1e30, 1e-30])
def test_norms_and_ratios_are_right_where_squares_are_not(value):
    updates, params = np.full(4, value, np.float32), np.full(4, value / 4, np.float32)
    _, told = watched(optaxclip.watch(), updates, params=params)
    largest = float(jnp.finfo(jnp.float32).max)
    wanted = min(2 * float(updates[0]), largest)
    np.testing.assert_allclose(told["watch/update_norm"], wanted, rtol=1e-6)
    if wanted < largest:
        np.testing.assert_allclose(told["watch/ratio"], 4, rtol=1e-6)


def test_the_ratio_to_parameters_of_zero_is_zero_and_of_nan_is_nan():
    updates = {
        "a": np.ones(2, np.float32),
        "b": np.ones(2, np.float32),
        "c": np.array([np.nan, 1], np.float32),
    }
    params = {
        "a": np.zeros(2, np.float32),
        "b": np.array([np.nan, 1], np.float32),
        "c": np.ones(2, np.float32),
    }
    _, told = watched(optaxclip.watch(), updates, params=params)
    assert told["watch/ratio/a"] == 0
    for key in ("ratio/b", "ratio/c", "update_norm/c", "update_norm"):
        assert np.isnan(told[f"watch/{key}"])


def test_no_step_is_decided_by_what_a_device_computed():
    """Which an accelerator would have to wait for."""
    watch = optaxclip.watch(every=10)
    state = watch.init(PARAMS)
    lowered = jax.jit(watch.update).trace(UPDATES, state, PARAMS)
    text = lowered.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.select" in text
    for decision in ("stablehlo.if", "stablehlo.case", "stablehlo.while"):
        assert decision not in text


def test_what_makes_no_sense_is_refused_in_a_sentence():
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"every": 0}, ValueError, "^every must be at least 1, not 0"),
        ({"every": 1.5}, TypeError, "^every must be a Python int, not float"),
        ({"ord": 0.5}, ValueError, "^ord must be at least 1 or infinity, not 0.5"),
        ({"name": 3}, TypeError, "^name must be a nonempty string, not 3"),
    ]
    for options, error, sentence in wrong:
        with unchecked(), pytest.raises(error, match=sentence):
            optaxclip.watch(**options)


@pytest.mark.parametrize(
    ("state", "error", "sentence"),
    [
        (None, TypeError, "^watch needs the state that its own init or update gave"),
        (
            optaxclip.watch().init({"a": np.ones(2, np.float32)}),
            ValueError,
            "init it with params",
        ),
        (optaxclip.watch(params=False).init(PARAMS), ValueError, "the same options"),
    ],
    ids=["none", "model", "options"],
)
def test_the_state_of_something_else_is_refused(state, error, sentence):
    with pytest.raises(error, match=sentence):
        optaxclip.watch().update(UPDATES, state, PARAMS)
