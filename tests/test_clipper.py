"""What the core refuses, before the first step."""

import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from unchecked import unchecked

import optaxclip
from optaxclip import norms, responses, scopes, thresholds

GIVEN = {
    "scope": scopes.whole(),
    "norm": norms.l2,
    "threshold": 1.0,
    "response": responses.shrink,
}
UPDATES = {"w": jnp.ones(2)}
WRONG = {
    "scope": [scopes.tensor, scopes.Scope, type(scopes.whole()), "whole", None],
    "norm": [norms.p_norm, norms.PowerNorm, norms.Norm, "l2", 2, None],
    "threshold": [thresholds.Ema, thresholds.Threshold, thresholds, "1", None],
    "response": [responses.soften, type(responses.shrink), responses.tanh, "", None],
    "name": [None, 3, b"clip"],
}


@pytest.mark.parametrize(
    ("argument", "value"),
    [(argument, value) for argument in WRONG for value in WRONG[argument]],
    ids=lambda given: (
        given if isinstance(given, str) else getattr(given, "__name__", "")
    ),
)
def test_what_is_no_scope_norm_threshold_response_or_name_is_refused(argument, value):
    sentence = rf"^{argument} must be [^.]+.*, not {re.escape(repr(value))}\.$"
    with unchecked(), pytest.raises(TypeError, match=sentence):
        optaxclip.clipper(**(GIVEN | {argument: value}))


@pytest.mark.parametrize("state", [None, (), optax.EmptyState()])
def test_what_is_no_state_of_a_clipper_is_refused(state):
    clip = optaxclip.clip_global_norm(1.0)
    with pytest.raises(TypeError, match=r"^clip_global_norm needs the state that"):
        clip.update(UPDATES, state)


@pytest.mark.parametrize("limit", [np.complex64(1j), jnp.asarray(1j), np.str_("1")])
def test_an_array_that_holds_no_real_number_is_no_limit(limit):
    with unchecked(), pytest.raises(TypeError, match=r"^max_norm must be a number"):
        optaxclip.clip_global_norm(limit)


def test_numbers_of_numpy_name_dimensions_too():
    updates = jnp.arange(6.0).reshape(2, 3)
    for one, other in (
        (scopes.unit(axis=np.int64(0)), scopes.unit(axis=0)),
        (scopes.unit(axis=(np.int64(0), 1)), scopes.unit(axis=(0, 1))),
        (scopes.tensor(leading_axes=np.int32(1)), scopes.tensor(leading_axes=1)),
    ):
        assert one.arrange(updates) == other.arrange(updates)
