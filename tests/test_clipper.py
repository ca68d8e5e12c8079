"""What the core refuses, before the first step."""

import jax
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
    sentence = rf"^{argument} must be [^.]+.*, not [^<]+\.?$"
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


def test_one_clipper_serves_trees_whose_leaves_are_alike_and_grouped_otherwise():
    """What it knows of one tree is not taken for the other."""
    clip = optaxclip.clip_group_norm(1.0, lambda tree: {k: k[0] for k in tree})
    for names in (("a1", "a2"), ("a1", "b1"), ("a1", "a2")):
        updates = {name: jnp.full(1, 3.0) for name in names}
        clipped, state = clip.update(updates, clip.init(updates))
        groups = len({name[0] for name in names})
        assert state.report.pre_norm.shape == (groups,)
        wanted = 1 / np.sqrt(len(names) / groups)
        for update in jax.tree.leaves(clipped):
            np.testing.assert_allclose(update, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "clip",
    [
        optaxclip.clip_global_norm(1.0),
        optaxclip.clip_singular_values(1.0),
        optaxclip.clip_weight_spectral_norm(1.0),
        optaxclip.clip_per_example(1.0),
        optaxclip.scale_by_stable_adam(),
    ],
    ids=["norm", "spectral", "weights", "examples", "adam"],
)
def test_no_state_at_all_is_refused_in_a_sentence(clip):
    updates = jnp.ones((2, 2))
    clip.init(updates)
    with unchecked(), pytest.raises(TypeError, match="its own init or update"):
        clip.update(updates, None, updates)


def test_a_limit_of_a_threshold_that_fits_one_leaf_alone_is_refused():
    class ForTwo:
        def init(self, groups):
            return ()

        def update(self, seen, state):
            return jnp.ones((1, 2)), state

    clip = optaxclip.clip_unit_norm(ForTwo())
    updates = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 4))}
    sentence = r"limit of shape \(1, 2\) does not fit groups of shape \(1, 4\)"
    with pytest.raises(ValueError, match=sentence):
        clip.update(updates, clip.init(updates))
