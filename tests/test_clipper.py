"""What the core refuses, before the first step."""

import re

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
