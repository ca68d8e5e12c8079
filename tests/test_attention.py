"""QK-Clip: logits after a step, for every kind of attention, and Flax's recorder."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import assert_same_bits
from unchecked import unchecked

import optaxclip

nnx = pytest.importorskip("flax.nnx")
attention: Any = optaxclip.attention  # of which a type checker would refuse mistakes
HeadShare = attention.HeadShare

TOKENS = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)


def projections(heads, features, inputs=6, seed=0, bias=True):
    """A kernel and a bias of a projection (inputs, heads, features)."""
    rng = np.random.default_rng(seed)
    found = {"kernel": rng.normal(size=(inputs, heads, features))}
    if bias:
        found["bias"] = rng.normal(size=(heads, features))
    return jax.tree.map(lambda x: np.asarray(x, jnp.float32), found)


def project(params, inputs):
    """What a projection makes of tokens."""
    found = np.einsum("bti,ihd->bthd", inputs, np.asarray(params["kernel"]))
    return found + np.asarray(params.get("bias", 0.0))


def logits(params, inputs=TOKENS):
    """All logits, (batch, heads, queries, keys), of queries that may share keys."""
    q, k = project(params["query"], inputs), project(params["key"], inputs)
    k = np.repeat(k, q.shape[2] // k.shape[2], axis=2)
    return np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])


def largest(found):
    """The largest logit of each head."""
    return found.max(axis=(0, 2, 3))


def stepped(clip, params, max_logits, updates=None) -> tuple[Any, Any]:
    """The parameters after a step."""
    updates = jax.tree.map(np.zeros_like, params) if updates is None else updates

    @jax.jit
    def step(updates, params, max_logits):
        state = clip.init(params)
        updates, state = clip.update(updates, state, params, max_logits=max_logits)
        return optax.apply_updates(params, updates), state

    return step(updates, params, max_logits)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_logits_shrink_to_the_limit_in_the_heads_above_it_alone(kv_heads):
    params = {"query": projections(4, 3), "key": projections(kv_heads, 3, seed=1)}
    before = logits(params)
    sizes = largest(before)
    limit = float(np.median(sizes))
    after, state = stepped(optaxclip.attention.qk_clip(limit), params, sizes)
    gamma = np.minimum(1, limit / sizes)[:, None, None]
    np.testing.assert_allclose(logits(after), before * gamma, rtol=1e-4, atol=1e-5)
    report = optaxclip.report(state)
    np.testing.assert_allclose(report["qk_clip/pre_norm"], sizes.max(), rtol=1e-6)
    assert report["qk_clip/post_norm"] == np.float32(limit)
    assert report["qk_clip/clipped_fraction"] == 0.5
    if kv_heads < 4:
        assert_same_bits(after["key"], params["key"])


def test_heads_with_negative_logits_alone_and_heads_below_the_limit_keep_their_bits():
    params = {"query": projections(3, 2), "key": projections(3, 2, seed=1)}
    after, _ = stepped(
        optaxclip.attention.qk_clip(1.0),
        params,
        np.array([-50.0, 0.5, 1.0], np.float32),
    )
    assert_same_bits(after, params)
    after, _ = stepped(
        optaxclip.attention.qk_clip(jnp.inf),
        params,
        np.array([1e9, 1.0, -1.0], np.float32),
    )
    assert_same_bits(after, params)


def test_queries_and_keys_take_the_same_share_and_all_else_is_left_alone():
    params = {
        "query": projections(2, 3),
        "key": projections(2, 3, seed=1),
        "value": projections(2, 3, seed=2),
        "other": np.arange(3, dtype=np.int32),
    }
    updates = {**jax.tree.map(np.ones_like, params), "other": params["other"]}
    after, _ = stepped(
        optaxclip.attention.qk_clip(1.0),
        params,
        np.array([4.0, 1.0], np.float32),
        updates,
    )
    for name in ("query", "key"):
        wanted = (np.asarray(params[name]["kernel"]) + 1) * [[[0.5], [1.0]]]
        np.testing.assert_allclose(after[name]["kernel"], wanted, atol=1e-6)
    wanted = np.asarray(params["value"]["kernel"]) + 1
    np.testing.assert_allclose(after["value"]["kernel"], wanted, atol=1e-6)


def test_latent_attention_leaves_the_shared_rotary_key_and_the_values_alone():
    rng = np.random.default_rng(0)
    plain, rotary, value, heads = 4, 2, 3, 3
    params = {
        "wq_b": {"kernel": rng.normal(size=(6, heads, plain + rotary))},
        "wkv_b": {"kernel": rng.normal(size=(6, heads, plain + value))},
        "wk_rotary": {"kernel": rng.normal(size=(6, rotary))},
    }
    params = jax.tree.map(lambda x: np.asarray(x, jnp.float32), params)

    def found(params):
        queries, keys = (project(params[name], TOKENS) for name in ("wq_b", "wkv_b"))
        shared = TOKENS @ np.asarray(params["wk_rotary"]["kernel"])
        near = np.einsum("bqhd,bkhd->bhqk", queries[..., :plain], keys[..., :plain])
        far = np.einsum("bqhd,bkd->bhqk", queries[..., plain:], shared)
        return (near + far) / np.sqrt(plain + rotary), keys[..., plain:]

    before, values = found(params)
    sizes = largest(before)
    shares = optaxclip.attention.latent_attention_shares("wq_b", "wkv_b", plain)
    clip = optaxclip.attention.qk_clip(float(sizes.min()), shares=shares)
    after, _ = stepped(clip, params, sizes)
    logits_after, values_after = found(after)
    gamma = (sizes.min() / sizes)[:, None, None]
    np.testing.assert_allclose(logits_after, before * gamma, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(values_after, values)
    assert_same_bits(after["wk_rotary"], params["wk_rotary"])


def test_scanned_layers_have_logits_for_each_layer():
    layers = [
        {"query": projections(2, 3, seed=i), "key": projections(2, 3)} for i in (0, 1)
    ]
    params = {"layers": jax.tree.map(lambda *x: np.stack(x), *layers)}
    sizes = np.array([[4.0, 1.0], [0.5, 16.0]], np.float32)
    after, _ = stepped(optaxclip.attention.qk_clip(1.0), params, {"layers": sizes})
    for layer, factors in enumerate(([0.5, 1.0], [1.0, 0.25])):
        for name, part in (("query", "kernel"), ("key", "bias")):
            wanted = np.asarray(layers[layer][name][part]) * np.array(factors)[:, None]
            got = after["layers"][name][part][layer]
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_broken_logit_is_loud_in_its_own_head(bad):
    params = {"query": projections(2, 3), "key": projections(2, 3, seed=1)}
    after, _ = stepped(
        optaxclip.attention.qk_clip(1.0), params, np.array([bad, 0.5], np.float32)
    )
    assert np.isnan(after["query"]["kernel"][:, 0]).all()
    assert_same_bits(after["query"]["kernel"][:, 1], params["query"]["kernel"][:, 1])


def test_modules_and_heads_may_have_limits_of_their_own():
    modules = {name: {"query": projections(2, 3)} for name in ("first", "second")}
    logits = {
        "first": np.array([4.0, 1.0], np.float32),
        "second": np.array([4.0, 1.0], np.float32),
    }
    limits = {"first": 2.0, "second": jnp.array([4.0, 0.25])}
    shares = {"query": (optaxclip.attention.HeadShare(1.0),)}
    clip = optaxclip.attention.qk_clip(limits, shares=shares)
    after, state = stepped(clip, modules, logits)
    for name, factors in {"first": (0.5, 1.0), "second": (1.0, 0.25)}.items():
        got, before = after[name]["query"]["bias"], modules[name]["query"]["bias"]
        wanted = np.asarray(before) * np.array(factors)[:, None]
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    report = optaxclip.report(state)
    assert [report[f"qk_clip/{x}"] for x in ("pre_norm", "limit")] == [1.0, 0.25]


def test_a_threshold_sees_the_largest_logit_of_all_heads():
    params = {"query": projections(2, 3), "key": projections(2, 3, seed=1)}
    zeros = jax.tree.map(np.zeros_like, params)
    clip = optaxclip.attention.qk_clip(optaxclip.thresholds.Ema(1.0))
    state = clip.init(params)
    for first in (2.0, 9.0):
        logits = np.array([first, -5.0], np.float32)
        _, state = clip.update(zeros, state, params, max_logits=logits)
    report = optaxclip.report(state)
    np.testing.assert_allclose(report["qk_clip/limit"], 2, rtol=1e-6)
    assert report["qk_clip/pre_norm"] == 9
    assert state.threshold.mean.shape == ()


def test_heads_without_positive_logits_are_reported_as_0_and_a_limit_of_nan_is_loud():
    params = {"query": projections(2, 3), "key": projections(2, 3, seed=1)}
    _, state = stepped(
        optaxclip.attention.qk_clip(1.0), params, np.array([-3.0, -1.0], np.float32)
    )
    assert optaxclip.report(state)["qk_clip/pre_norm"] == 0
    after = jax.jit(
        lambda limit: stepped(
            optaxclip.attention.qk_clip(limit), params, np.array([0.5, 2.0], np.float32)
        )
    )(jnp.nan)[0]
    assert np.isnan(after["query"]["kernel"]).all()


def test_what_is_missing_or_does_not_fit_is_named():
    params = {"query": projections(2, 3), "key": projections(2, 3, seed=1)}
    clip = optaxclip.attention.qk_clip(1.0)
    state = clip.init(params)
    with pytest.raises(ValueError, match="max_logits="):
        clip.update(params, state, params)
    with pytest.raises(ValueError, match="params"):
        clip.update(params, state, max_logits=np.ones(2, np.float32))
    with pytest.raises(ValueError, match="attention"):
        clip.update(
            params, state, params, max_logits={"attention": np.ones(2, np.float32)}
        )
    with pytest.raises(ValueError, match="3 heads"):
        clip.update(params, state, params, max_logits=np.ones(3, np.float32))
    average = optaxclip.attention.qk_clip(optaxclip.thresholds.Ema())
    others: list[Any] = [None, average.init(params)]
    for other in others:
        with pytest.raises((TypeError, ValueError), match=r"qk_clip .* state"):
            clip.update(params, other, params, max_logits=np.ones(2, np.float32))
    for limit in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="max_logit"):
            optaxclip.attention.qk_clip(limit)


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        (["query"], "dict of tuples of HeadShare.* not a list of 1 leaves; see"),
        (attention.attention_shares, "function attention_shares; call it"),
        ({0: (HeadShare(0.5),)}, "name projections by strings, not 0;"),
        ({"query": 0.5}, r"shares\['query'\] must be a tuple .*, not 0.5; write"),
        ({"query": HeadShare(0.5)}, "not an object of type HeadShare; .* the comma"),
        ({"query": (0.5,)}, "tuple of HeadShare, not a tuple of 1 leaves; write"),
        ({"query": None}, "tuple of HeadShare, not None; write"),
    ],
)
def test_shares_that_are_no_dict_of_tuples_are_refused_before_any_step(shares, words):
    with unchecked(), pytest.raises(TypeError, match=words):
        attention.qk_clip(shares=shares)


def test_shares_of_no_projection_are_refused():
    with pytest.raises(ValueError, match="shares must name a projection"):
        attention.qk_clip(shares={})


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"power": -1.0}, ValueError, "power must be a number of at least 0, not -1.0"),
        ({"power": float("nan")}, ValueError, "power must be .* not nan"),
        ({"power": "half"}, TypeError, "power must be .* not 'half'"),
        ({"power": np.ones(2)}, ValueError, r"power must be .* of shape \(2,\)"),
        ({"start": -1}, ValueError, "start must be at least 0, not -1; count"),
        ({"start": None}, TypeError, "start must be a Python int, not None"),
        ({"stop": -1}, ValueError, "stop must be at least 0, not -1; .* from the end"),
        ({"stop": 2.5}, TypeError, "stop must be a Python int, not 2.5"),
        ({"stop": True}, TypeError, "stop must be a Python int, not True"),
        ({"start": 4, "stop": 2}, ValueError, "start must be at most stop"),
    ],
)
def test_a_share_of_nonsense_is_refused(options, error, words):
    with unchecked(), pytest.raises(error, match=words):
        HeadShare(**{"power": 0.5, **options})


@pytest.mark.parametrize(
    ("features", "error", "words"),
    [
        (-1, ValueError, "features must be at least 0, not -1"),
        (2.5, TypeError, "features must be a Python int, not 2.5"),
        (None, TypeError, "features must be a Python int, not None"),
    ],
)
def test_features_without_position_are_a_count(features, error, words):
    with unchecked(), pytest.raises(error, match=words):
        attention.latent_attention_shares("query", "key", features)


@pytest.mark.parametrize("share", [HeadShare(0.5, stop=4), HeadShare(0.5, start=4)])
def test_a_share_of_more_features_than_a_projection_has_is_named(share):
    params = {"query": projections(2, 3), "key": projections(2, 3, seed=1)}
    clip = attention.qk_clip(1.0, shares={"query": (HeadShare(0.5), share)})
    words = r"shares\['query'\] counts 4 features per head, but the projection has 3;"
    with pytest.raises(ValueError, match=words):
        stepped(clip, params, np.array([4.0, 1.0], np.float32))


@pytest.mark.parametrize("features", [0, 2, 3])
def test_all_or_none_of_the_features_may_carry_a_position(features):
    params = {"query": projections(2, 3), "key": projections(2, 3, seed=1)}
    shares = attention.latent_attention_shares("query", "key", features)
    after, _ = stepped(
        attention.qk_clip(1.0, shares=shares), params, np.array([4.0, 1.0], np.float32)
    )
    plain = np.arange(3) < features
    for name, rest in (("query", 0.25), ("key", 1.0)):
        factors = np.stack([np.where(plain, 0.5, rest), np.ones(3)])
        wanted = np.asarray(params[name]["kernel"]) * factors
        np.testing.assert_allclose(after[name]["kernel"], wanted, rtol=1e-6)


def test_a_power_may_be_traced_and_a_projection_may_take_no_share():
    params = {"query": projections(2, 3), "key": projections(2, 3, seed=1)}
    sizes = np.array([4.0, 1.0], np.float32)

    def tuned(power):
        shares = {"query": (HeadShare(power),), "key": ()}
        return stepped(attention.qk_clip(1.0, shares=shares), params, sizes)[0]

    with unchecked():
        after = jax.jit(tuned)(0.5)
    wanted = np.asarray(params["query"]["kernel"]) * [[0.5], [1.0]]
    np.testing.assert_allclose(after["query"]["kernel"], wanted, rtol=1e-6)
    assert_same_bits(after["key"], params["key"])


def test_a_schedule_drives_the_limit_and_the_state_keeps_its_form():
    params = {"query": projections(1, 1, 1), "key": projections(1, 1, 1)}
    clip = optaxclip.attention.qk_clip(optax.linear_schedule(4.0, 1.0, 3))
    state = clip.init(params)
    zeros = jax.tree.map(np.zeros_like, params)
    form = jax.tree.map(jnp.shape, state), jax.tree.structure(state)
    for wanted in (4.0, 3.0, 2.0, 1.0):
        _, state = clip.update(
            zeros, state, params, max_logits=np.array([9.0], np.float32)
        )
        assert optaxclip.report(state)["qk_clip/limit"] == pytest.approx(wanted)
        assert (jax.tree.map(jnp.shape, state), jax.tree.structure(state)) == form
    assert optaxclip.report(state)["qk_clip/clipped_steps"] == 4


class Model(nnx.Module):
    """Two attention layers and a head."""

    def __init__(self, rngs, **options):
        self.first = nnx.MultiHeadAttention(4, 6, 8, decode=False, rngs=rngs, **options)
        self.second = nnx.MultiHeadAttention(
            2, 6, 8, decode=False, rngs=rngs, **options
        )

    def __call__(self, x, **options):
        x = x + self.first(x, **options)
        return x + self.second(x, **options)


def test_flax_models_note_their_logits_and_train_below_the_limit():
    model = Model(nnx.Rngs(0))
    optaxclip.attention.record_max_logits(model)
    chain = optax.chain(optax.sgd(1e-4), optaxclip.attention.qk_clip(0.05))
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, inputs):
        grads = nnx.grad(lambda model: jnp.mean(model(inputs) ** 2))(model)
        noted = optaxclip.attention.max_logits(model)
        optimizer.update(model, grads, max_logits=noted)
        return noted

    first = step(model, optimizer, TOKENS)
    params = nnx.to_pure_dict(nnx.state(Model(nnx.Rngs(0)).first, nnx.Param))
    np.testing.assert_allclose(first["first"], largest(logits(params)), rtol=1e-4)
    assert first["second"].shape == (2,)
    noted = [step(model, optimizer, TOKENS) for _ in range(3)][-1]
    assert max(float(x.max()) for x in noted.values()) < 0.051


def test_masked_positions_do_not_count_and_outputs_do_not_change():
    model, plain = Model(nnx.Rngs(0)), Model(nnx.Rngs(0))
    optaxclip.attention.record_max_logits(model)
    optaxclip.attention.record_max_logits(model)  # a second time is no harm
    mask = np.tril(np.ones((1, 1, 5, 5), bool))
    got, wanted = model(TOKENS, mask=mask), plain(TOKENS, mask=mask)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    params = nnx.to_pure_dict(nnx.state(plain.first, nnx.Param))
    seen = np.where(np.asarray(mask), logits(params), -np.inf)
    noted = optaxclip.attention.max_logits(model)["first"]
    np.testing.assert_allclose(noted, largest(seen), rtol=1e-4)


def test_a_model_that_notes_nothing_is_told_how_to():
    with pytest.raises(ValueError, match="record_max_logits"):
        optaxclip.attention.max_logits(Model(nnx.Rngs(0)))
