"""What private training asks of per-example clipping."""

import enum
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from per_example import clipped_mean, distance, norms_of, random, stacked_gradients

import optaxclip
from optaxclip import NeighboringRelation, responses

ADD, REPLACE, SPECIAL = NeighboringRelation


def linear(params, x):
    """The gradient of an example is the example itself."""
    return jnp.dot(params["body"], x[:2]) + jnp.dot(params["head"], x[2:])


LINEAR = {"body": jnp.zeros(2), "head": jnp.zeros(1)}
EXAMPLES = np.asarray(
    [[3e3, 4e3, -1e4], [1e-3, 0.0, 1e-3], [1e4, 0.0, 9e3]], np.float32
)


@jax.jit
def every_gradient(examples, mask):
    """The gradients of all clips below, as vectors."""
    found = [make(linear)(LINEAR, examples, mask=mask) for make, _ in CLIPS]
    return [jnp.concatenate([g["body"], g["head"]]) for g in found]


CLIPS: list[tuple[Any, float]] = [
    (partial(optaxclip.clipped_grad, **options), one)
    for options, one in [
        ({"max_norm": 2.0, "denominator": 4}, 0.5),
        ({"max_norm": {"body": 3.0, "head": 4.0}}, 5.0),
        ({"max_norm": np.asarray([6.0, 8.0], np.float32), "denominator": 5.0}, 2.0),
        ({"max_norm": 2.0, "response": responses.normalize, "denominator": 8}, 0.25),
        ({"max_norm": 2.0, "response": responses.auto_s(), "denominator": 8}, 0.25),
    ]
]


def test_the_sensitivity_is_how_far_one_example_moves_the_gradient():
    others = np.asarray([False, True, True])
    alone = np.asarray([True, False, False])
    opposite, special = np.array(EXAMPLES), np.array(EXAMPLES)
    opposite[0], special[0] = -EXAMPLES[0], 0

    def moved(examples, mask, neighbor, other_mask):
        pairs = zip(
            every_gradient(examples, mask),
            every_gradient(neighbor, other_mask),
            strict=True,
        )
        return [np.linalg.norm(np.subtract(*pair, dtype=np.float64)) for pair in pairs]

    # The mean is over the examples that count, and moves most where there is one.
    nothing, everything = np.zeros(3, bool), np.ones(3, bool)
    found = {
        ADD: moved(EXAMPLES, alone, EXAMPLES, nothing),
        REPLACE: moved(EXAMPLES, alone, opposite, alone),
        SPECIAL: moved(EXAMPLES, alone, special, alone),
    }
    among_others = {
        ADD: moved(EXAMPLES, everything, EXAMPLES, others),
        REPLACE: moved(EXAMPLES, everything, opposite, everything),
        SPECIAL: moved(EXAMPLES, everything, special, everything),
    }
    for relation in NeighboringRelation:
        for i, (make, one) in enumerate(CLIPS):
            bound = make(linear).sensitivity(relation)
            assert bound == one * (2 if relation == REPLACE else 1), (relation, i)
            np.testing.assert_allclose(found[relation][i], bound, rtol=1e-5)
            assert among_others[relation][i] <= bound * (1 + 1e-5), (relation, i)


def test_the_relations_of_dp_accounting_serve_as_well():
    theirs = enum.Enum("NeighboringRelation", [r.name for r in NeighboringRelation])
    both = optaxclip.clipped_value_and_grad(linear, 2.0, denominator=4)
    for relation in NeighboringRelation:
        found = both.sensitivity(theirs[relation.name])
        assert found == both.sensitivity(relation)


def test_a_sensitivity_follows_traced_limits_and_grows_with_unbounded_ones():
    @jax.jit
    def traced(limits, denominator):
        grad = optaxclip.clipped_grad(linear, limits, denominator=denominator)
        return grad.sensitivity(REPLACE)

    np.testing.assert_allclose(traced({"body": 3.0, "head": 4.0}, 5.0), 2.0, rtol=1e-6)
    assert optaxclip.clipped_grad(linear, np.inf).sensitivity() == np.inf
    assert optaxclip.clipped_grad(linear, 1e300).sensitivity() == 1e300


def test_what_has_no_sensitivity_says_so():
    class Own:
        """Any response of somebody's own."""

        def reach(self, magnitude, limit, /):
            return magnitude

        def weigh(self, value, scale, limit):
            return (jnp.ones_like(value),)

        def apply(self, leaf, *weights):
            return leaf

        def pointwise(self):
            return self

    grad = optaxclip.clipped_grad(linear, 1.0, response=Own())
    with pytest.raises(ValueError, match=r"response must be one of optaxclip\.respon"):
        grad.sensitivity()
    with pytest.raises(TypeError, match=r"relation must be one of .* not 'replace'"):
        optaxclip.clipped_grad(linear, 1.0).sensitivity("replace")


def layers(params, x, shift=0.0, key=None):
    """Two layers, with noise if there is a key."""
    hidden = jnp.tanh(x @ params["w"] + shift)
    if key is not None:
        hidden = hidden + jax.random.normal(key, hidden.shape)
    return jnp.sum((hidden @ params["v"]) ** 2), hidden


PARAMS = {"w": random(0, 5, 4), "v": random(1, 4, 3)}
X = random(2, 6, 5)
GRADIENTS = stacked_gradients(layers, PARAMS, (X,), has_aux=True)
LIMIT = float(np.median(norms_of(GRADIENTS)))
BOTH = partial(optaxclip.clipped_value_and_grad, has_aux=True)


def test_an_empty_batch_gives_zeros():
    @partial(jax.jit, static_argnums=2)
    def ask(x, key, size):
        both = BOTH(layers, LIMIT, microbatch_size=size)
        norms = optaxclip.per_example_norms(layers, has_aux=True)
        return both(PARAMS, x, key=key), norms(PARAMS, x, key=key)

    for size in (None, 4):
        (told, grads), norms = ask(X[:0], jax.random.key(0), size)
        assert all(not np.any(g) for g in jax.tree.leaves(grads))
        assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, PARAMS)
        assert told.value.shape == told.norm.shape == norms.shape == (0,)
        assert told.aux.shape == (0, 4)


def test_norms_are_measured_in_microbatches_and_only_of_what_counts():
    @jax.jit
    def norms(x, mask):
        ask = partial(optaxclip.per_example_norms, layers, has_aux=True)
        return ask()(PARAMS, x, mask=mask), ask(microbatch_size=2)(PARAMS, x, mask=mask)

    mask = np.asarray([True, False, True, True, True, False])
    for found in norms(np.where(mask[:, None], X, np.nan), mask):
        expected = np.where(mask, norms_of(GRADIENTS), 0)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_sum_of_low_precision_comes_in_the_dtype_that_noise_wants():
    def dot(w, x):
        return jnp.dot(w, x)

    x = np.full((768, 1), 1.0, np.float32)
    x[0] = 0.25
    weights = jnp.zeros(1, jnp.bfloat16)

    @jax.jit
    def sums(x):
        narrow = x.astype(jnp.bfloat16)
        return [
            optaxclip.clipped_grad(dot, 1.0, denominator=1, **options)(weights, narrow)
            for options in ({"dtype": jnp.float32}, {})
        ]

    wide, narrow = sums(x)
    assert (wide.dtype, narrow.dtype) == (jnp.float32, jnp.bfloat16)
    assert wide == 767.25
    assert narrow == 768


def test_parameters_stand_anywhere_and_arguments_have_names():
    def moved(x, w, shift, v, scale):
        return layers({"w": w, "v": v}, x, shift)[0] * scale["by"]

    @jax.jit
    def step(x, w, v, shift):
        options: Any = {"argnums": (1, -1), "in_axes": (0, 0)}
        named = {"scale": {"by": jnp.ones(6), "name": "a setting", "limit": 3}}
        return (
            optaxclip.clipped_value_and_grad(moved, LIMIT, **options)(
                x, w, shift, v, **named
            ),
            optaxclip.per_example_norms(moved, **options)(x, w, shift, v, **named),
        )

    (told, (w, v)), norms = step(X, PARAMS["w"], PARAMS["v"], jnp.zeros(6))
    np.testing.assert_allclose(norms, norms_of(GRADIENTS), rtol=1e-5)
    np.testing.assert_allclose(told.norm, norms, rtol=1e-6)
    assert distance({"w": w, "v": v}, clipped_mean(GRADIENTS, LIMIT)) < 1e-5


def test_wrong_names_of_arguments_are_told():
    with pytest.raises(ValueError, match=r"argument\['shift'\] has 5 examples, but"):
        BOTH(layers, 1.0)(PARAMS, X, shift=jnp.ones(5))


@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_what_is_clipped_may_be_a_function_of_the_gradient(microbatch_size):
    def transform(gradient):
        return {"scaled": 0.1 * gradient["w"], "square": jnp.sum(gradient["v"] ** 2)}

    both = BOTH(
        layers,
        LIMIT,
        microbatch_size=microbatch_size,
        pre_clipping_transform=transform,
    )
    told, grads = jax.jit(both)(PARAMS, X, mask=np.arange(6) < 5)
    v, w = GRADIENTS
    stacked = [0.1 * w[:5], (v[:5] ** 2).sum((1, 2))]
    assert distance(grads, clipped_mean(stacked, LIMIT)) < 1e-5
    np.testing.assert_allclose(told.norm[:5], norms_of(stacked), rtol=1e-5)
    values, hidden = jax.vmap(partial(layers, PARAMS))(X)
    np.testing.assert_allclose(told.value, values, rtol=1e-6)
    np.testing.assert_allclose(told.aux, hidden, rtol=1e-6)


def test_members_of_a_vmap_decide_together_and_each_is_right():
    def member(scale):
        def scaled(params, x):
            return layers(params, x)[0] * scale

        return optaxclip.clipped_value_and_grad(scaled, LIMIT * scale)(PARAMS, X)

    scales = np.asarray([1.0, 1e-25], np.float32)
    together = jax.vmap(member)
    told, grads = jax.jit(together)(scales)
    for i, scale in enumerate(scales):
        norms = np.asarray(told.norm[i], np.float64) / scale
        np.testing.assert_allclose(norms, norms_of(GRADIENTS), rtol=1e-5)
        own = [np.asarray(g[i], np.float64) / scale for g in jax.tree.leaves(grads)]
        assert distance(own, clipped_mean(GRADIENTS, LIMIT)) < 1e-5
    # A branch for each member would become a select, which takes both ways.
    assert "cond[" in str(jax.make_jaxpr(together)(scales))


class Noisy(nnx.Module):
    """A layer and dropout."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(5, 32, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return jnp.sum(self.dropout(self.layer(x)))


def test_a_key_that_examples_share_by_accident_is_refused():
    graph, params, rest = nnx.split(Noisy(nnx.Rngs(0, dropout=1)), nnx.Param, ...)
    alike = jnp.ones((6, 5))

    def drop(params, rest, x):
        return nnx.merge(graph, params, rest)(x)

    def drop_anew(params, rest, x, key):
        model = nnx.merge(graph, params, rest, copy=True)
        nnx.reseed(model, dropout=key)
        return model(x)

    clip = optaxclip.clipped_value_and_grad
    with pytest.raises(ValueError, match=r"nnx\.reseed") as refused:
        clip(drop, 1.0, in_axes=(None, 0))(params, rest, alike)
    assert "batch argument 1['dropout']" in str(refused.value)
    step = jax.jit(clip(drop_anew, 1.0, in_axes=(None, 0, 0)))
    told, _ = step(params, rest, alike, jax.random.key(2))
    assert len(np.unique(told.value)) == 6


def test_a_key_of_its_own_may_be_shared():
    def noisy(params, x, key):
        return jnp.dot(params, x) * jax.random.uniform(key)

    both = optaxclip.clipped_value_and_grad(noisy, 1.0, in_axes=(0, None))
    told, _ = jax.jit(both)(jnp.ones(2), jnp.ones((3, 2)), jax.random.key(0))
    assert len(np.unique(told.value)) == 1
