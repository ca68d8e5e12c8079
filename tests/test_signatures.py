"""What is measured can be measured in another norm, by layer, and over a mesh.

Each exception is named here with its reason, so that a new strategy has to decide.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from zoo import STRATEGIES

import optaxclip
from optaxclip import attention

oc: Any = optaxclip
PUBLIC = {
    name: getattr(module, name)
    for module in (optaxclip, attention)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
}
PARTS = {  # These take a scope and a norm, or what has them.
    *("bound_weights", "clip_cotangents", "clipper", "error_feedback", "skip_above"),
    "by_path",
}
READERS = {  # These measure nothing.
    *("attention_shares", "explain", "latent_attention_shares", "max_logits"),
    *("record_max_logits", "register_for_export", "report", "stop_on_streak"),
}
MEASURING = PUBLIC.keys() - PARTS - READERS
SPECTRAL = {
    "clip_singular_values",
    "clip_weight_spectral_norm",
    "soft_clip_singular_values",
}
PER_EXAMPLE = {"clip_per_example", "clipped_grad", "clipped_value_and_grad"}
VALUES = {"clip_scaled_value", "clip_value", "clip_weights", "soft_clip_value"}
WITHOUT = {
    "ord": SPECTRAL  # The norm is the method,
    | PER_EXAMPLE  # what privacy is proved for,
    | VALUES  # or that of one number, which is the same in any.
    | {"adaclip", "qk_clip", "spam_clip", "zero_nonfinite"}
    # The paper's norm, in which its constants were found.
    | {"adagc", "adagn", "agc", "clip_tensor_rms", "clip_trust_ratio", "clippy"}
    | {"clip_weights_to_init", "hyperball", "scale_by_stable_adam"}
    | {"per_example_norms", "shrink_tree", "skip_nonfinite", "skip_spikes"},
    "axis_name": SPECTRAL  # A matrix has to be whole on its device.
    | {"per_example_norms"}  # One norm an example, on the device that has it.
    | {"qk_clip"},  # The logits are the largest of all devices already.
}


def docstring(name):
    """What a public function says of itself."""
    return inspect.getdoc(PUBLIC[name]) or ""


def takes(argument):
    """The public functions that take an argument."""
    return {k for k, f in PUBLIC.items() if argument in inspect.signature(f).parameters}


@pytest.mark.parametrize("argument", WITHOUT)
def test_all_that_measures_takes_what_it_can(argument):
    assert MEASURING - takes(argument) == WITHOUT[argument]


def test_what_measures_tensors_takes_leading_axes_and_what_measures_units_axis():
    each = {k for k in MEASURING if "every tensor" in docstring(k)}
    assert each <= takes("leading_axes") | takes("axis")
    assert takes("leading_axes") >= {"clip_tensor_norm", "adagc", "watch"}
    assert takes("axis") >= {"agc", "clip_unit_norm", "clip_weights_to_init"}


@pytest.mark.parametrize(
    "argument", ["ord", "leading_axes", "axis", "axis_name", "name"]
)
def test_an_argument_that_is_taken_is_told_of(argument):
    for name in takes(argument):
        assert f"\n  {argument}: " in docstring(name), name


STACK = {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 4))}
GIVEN = {"inner": optax.identity(), "labels": "all", "min_factor": 0.5}


def made(name, /, **options):
    """The transformation with what it needs, and some options."""
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    needed = [x.name for x in parameters if x.default is x.empty]
    return PUBLIC[name](*(GIVEN.get(key, 1.0) for key in needed), **options)


def program(name, **options):
    """The program of one step."""
    clip = made(name, **options)

    def update(grads):
        return clip.update(grads, clip.init(grads), grads, value=jnp.float32(1.0))

    return str(jax.make_jaxpr(update)(STACK))


# What an axis name changes is the business of test_edges_mesh.
@pytest.mark.parametrize(
    ("argument", "first", "second"), [("ord", 1, 3), ("leading_axes", 0, 1)]
)
def test_an_argument_that_is_taken_changes_the_program(argument, first, second):
    for name in takes(argument) - SPECTRAL - {"tree_norm"}:
        one, other = (program(name, **{argument: x}) for x in (first, second))
        assert one != other, name


REPORTING = {"clip_per_example", "qk_clip"} | {
    strategy.factory.__name__
    for strategy in STRATEGIES
    if strategy.name != "error_feedback"  # The report is that of what is in it.
}


@pytest.mark.parametrize("name", sorted(REPORTING))
def test_a_report_calls_a_strategy_by_the_name_it_is_given(name):
    told = optaxclip.report(made(name, name="mine").init(STACK))
    assert told
    assert all(key.startswith("mine") for key in told)


def test_every_strategy_refuses_a_name_that_no_report_could_list():
    for name in REPORTING:
        with pytest.raises(TypeError, match=r"^name must be a nonempty string"):
            made(name, name="")
