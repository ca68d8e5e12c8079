"""What can be asked of per-example clipping beside the gradient itself."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec
from per_example import (
    clipped_mean,
    distance,
    norms_of,
    numbers,
    random,
    stacked_gradients,
    values_and_gradients,
)

import optaxclip
from optaxclip import responses
from optaxclip.per_example import limits, products

PARAMS = {"body": {"b": random(0, 5), "w": random(1, 7, 5)}, "head": random(2, 5, 3)}
X = jnp.asarray(np.round(numbers(3, 8, 2, 7) * 64) / 64, jnp.float32)  # exact sums
LABELS = jnp.asarray([0, 1, 2, 0, 1, 2, 0, 1], jnp.int32)


def loss(params, x, label):
    """Two positions, two layers."""
    y = x @ params["body"]["w"]
    y = jnp.tanh(y + jnp.broadcast_to(params["body"]["b"], y.shape))
    logits = (y @ params["head"]).mean(0)
    return jax.nn.logsumexp(logits) - logits[label]


VALUES, GRADIENTS = values_and_gradients(loss, PARAMS, (X, LABELS))
NORMS = norms_of(GRADIENTS)
LIMIT = float(np.median(NORMS))
EVERY = np.ones(8, bool)


@jax.jit
def step(max_norm, denominator, x, mask, scale):
    """The usual program, in which even the unit of the loss is traced."""

    def scaled(params, x, label):
        return loss(params, x, label) * scale

    both = optaxclip.clipped_value_and_grad(scaled, max_norm, denominator=denominator)
    return both(PARAMS, x, LABELS, mask=mask)


def run(max_norm: Any = LIMIT, denominator=8.0, x: Any = X, mask=EVERY, scale=1.0):
    return step(max_norm, denominator, x, mask, scale)


def of_head(head, x, label):
    """The same loss of one small matrix, where the layers do not matter."""
    return loss(PARAMS | {"head": head}, x, label)


def of_two(params, x, label):
    """And of two parameters."""
    return loss({"body": PARAMS["body"] | {"b": params["b"]}} | params, x, label)


TWO = {"b": PARAMS["body"]["b"], "head": PARAMS["head"]}
OF_TWO = [GRADIENTS[0], GRADIENTS[2]]


def test_the_two_gradients_and_the_norms_agree():
    def with_aux(params, x, label):
        return of_two(params, x, label), {"sum": x.sum(), "label": label}

    options = {"has_aux": True, "denominator": 8}

    @jax.jit
    def ask(*args):
        return (
            optaxclip.clipped_value_and_grad(with_aux, LIMIT, **options)(*args),
            optaxclip.clipped_grad(with_aux, LIMIT, **options)(*args),
            optaxclip.per_example_norms(with_aux, has_aux=True)(*args),
            optaxclip.per_example_norms(of_two, prefix={"b": 0, "head": 0})(*args),
        )

    (examples, grads), (alone, aux), norms, in_parts = ask(TWO, X, LABELS)
    assert distance(grads, clipped_mean(OF_TWO, LIMIT)) < 1e-5
    assert distance(alone, jax.tree.leaves(grads)) < 1e-6
    np.testing.assert_allclose(aux["sum"], X.sum((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(aux["label"], LABELS)
    np.testing.assert_array_equal(aux["sum"], examples.aux["sum"])
    np.testing.assert_allclose(norms, examples.norm, rtol=1e-6)
    for part, gradient in zip(("b", "head"), OF_TWO, strict=True):
        np.testing.assert_allclose(in_parts[part], norms_of([gradient]), rtol=1e-5)


def test_a_prefix_tree_limits_what_is_below_each_entry():
    body, head = norms_of(GRADIENTS[:2]), norms_of(GRADIENTS[2:])
    limits = {"body": float(np.median(body)), "head": float(np.median(head))}
    examples, grads = run(limits)
    np.testing.assert_allclose(examples.norm["body"], body, rtol=1e-5)
    np.testing.assert_allclose(examples.norm["head"], head, rtol=1e-5)
    expected = clipped_mean(GRADIENTS[:2], limits["body"])
    expected += clipped_mean(GRADIENTS[2:], limits["head"])
    assert distance(grads, expected) < 1e-5


def test_an_array_limits_each_leaf_and_vmaps():
    limits = np.asarray([np.median(norms_of([g])) for g in OF_TWO], np.float32)
    limits = np.asarray([[0.5], [1], [2]], np.float32) * limits

    @jax.jit
    @jax.vmap
    def step(limits):
        return optaxclip.clipped_value_and_grad(of_two, limits)(TWO, X, LABELS)

    examples, many = step(limits)
    assert examples.norm.shape == (3, 8, 2)
    for i, row in enumerate(limits):
        pairs = zip(OF_TWO, row, strict=True)
        expected = [clipped_mean([g], limit)[0] for g, limit in pairs]
        got = jax.tree.map(lambda g, i=i: np.asarray(g)[i], many)
        assert distance(got, expected) < 1e-5, row


RESPONSES = {
    "drop": (responses.drop, lambda norms, limit: norms <= limit),
    "normalize": (responses.normalize, lambda norms, limit: limit / norms),
    "auto_s": (responses.auto_s(), lambda norms, limit: limit / (norms + 0.01)),
    "soften": (responses.soften(), None),
}


@jax.jit
def respond(max_norm, denominator, x, mask):
    """The gradients of all responses."""
    return {
        name: optaxclip.clipped_grad(
            of_head, max_norm, response=response, denominator=denominator
        )(PARAMS["head"], x, LABELS, mask=mask)
        for name, (response, _) in RESPONSES.items()
    }


@pytest.mark.parametrize("limit", [1e3, 1e20])
def test_a_tiny_example_that_is_normalized_leaves_the_others_as_they_are(limit):
    examples = jnp.array([[1e-37, 0.0], [3.0, 4.0]])
    normalized = optaxclip.clipped_grad(jnp.vdot, limit, response=responses.normalize)
    got = normalized(jnp.ones(2), examples)
    np.testing.assert_allclose(got, [0.8 * limit, 0.4 * limit], 1e-6)


def test_responses_drop_normalize_and_auto_s():
    norms = norms_of(GRADIENTS[2:])
    limit = float(np.median(norms))
    found = respond(limit, 8.0, X, EVERY)
    for name, (_, factors) in RESPONSES.items():
        if factors is not None:
            weights = factors(norms, limit)
            expected = np.einsum("n,n...->...", weights, GRADIENTS[2]) / 8
            assert distance(found[name], [expected]) < 1e-5, name


def difference(whole, rest):
    """The norm of a difference of trees, in float64."""
    pairs = zip(*map(jax.tree.leaves, (whole, rest)), strict=True)
    moved = [np.asarray(a, np.float64) - np.asarray(b) for a, b in pairs]
    return np.sqrt(sum((m**2).sum() for m in moved))


def test_no_example_moves_the_sum_by_more_than_the_limits():
    x = np.array(X)
    x[5] *= 1e4
    for max_norm in (0.3, {"body": 0.2, "head": 0.4}):
        bound = np.sqrt(sum(c**2 for c in jax.tree.leaves(max_norm))) / 4 * (1 + 1e-5)
        _, whole = run(max_norm, 4.0, x)
        for i in range(8):
            _, rest = run(max_norm, 4.0, x, np.arange(8) != i)
            assert difference(whole, rest) <= bound, (max_norm, i)
    whole = respond(0.3, 4.0, x, EVERY)
    for i in range(8):
        rest = respond(0.3, 4.0, x, np.arange(8) != i)
        for name, grads in whole.items():
            assert difference(grads, rest[name]) <= 0.3 / 4 * (1 + 1e-5), (name, i)


def test_a_denominator_divides_the_sum():
    _, grads = run(denominator=5.0)
    assert distance(grads, [g * 8 / 5 for g in clipped_mean(GRADIENTS, LIMIT)]) < 1e-5


def test_edge_limits():
    assert distance(run(np.inf)[1], [g.mean(0) for g in GRADIENTS]) < 1e-5
    for limit in (0.0, -1.0):
        grads = jax.tree.leaves(run(limit)[1])
        assert all(np.all(np.asarray(g) == 0) for g in grads), limit
    assert all(np.all(np.isnan(g)) for g in jax.tree.leaves(run(np.nan)[1]))


@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1.0, 1e18, 1e37])
def test_squares_that_overflow_or_vanish_are_no_matter(scale):
    examples, grads = run(np.float32(LIMIT * scale), scale=scale)
    np.testing.assert_allclose(examples.norm / scale, NORMS, rtol=1e-5)
    got = [np.asarray(g) / scale for g in jax.tree.leaves(grads)]
    assert distance(got, clipped_mean(GRADIENTS, LIMIT)) < 1e-5


def test_axes_are_those_of_vmap_and_a_key_is_split():
    def noisy(params, batch, scale, key):
        kept = jax.random.bernoulli(key, shape=(7,))
        x = jnp.where(kept, batch["x"], 0.0) * scale
        return jnp.sum(jnp.sin(x * params))

    params = random(0, 7)
    batch = {"x": np.asarray(X)[:, 0].T, "ignored": 3}
    in_axes = ({"x": 1, "ignored": None}, None, 0)
    key = jax.random.key(1)

    @jax.jit
    def steps(*args):
        return [
            optaxclip.clipped_value_and_grad(
                noisy, LIMIT, in_axes=in_axes, microbatch_size=size
            )(*args)
            for size in (None, 4)
        ]

    args = (batch, 2.0, jax.random.split(key, 8))
    gradients = stacked_gradients(noisy, params, args, in_axes)
    for examples, grads in steps(params, batch, 2.0, key):
        np.testing.assert_allclose(examples.norm, norms_of(gradients), rtol=1e-5)
        assert distance(grads, clipped_mean(gradients, LIMIT)) < 1e-5


@pytest.mark.parametrize(
    ("check_vma", "microbatch_size"), [(True, None), (True, 1), (False, None)]
)
def test_examples_may_be_spread_over_a_mesh(check_vma, microbatch_size):
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    spread, whole = PartitionSpec("data"), PartitionSpec()

    def drawn(params, x, label, key):
        return loss(params, x, label), jax.random.uniform(key)

    step = jax.shard_map(
        optaxclip.clipped_value_and_grad(
            drawn,
            LIMIT,
            has_aux=True,
            axis_name="data",
            microbatch_size=microbatch_size,
        ),
        mesh=mesh,
        in_specs=(whole, spread, spread, whole),
        out_specs=(spread, whole),
        check_vma=check_vma,
    )
    examples, grads = jax.jit(step)(PARAMS, X, LABELS, jax.random.key(0))
    np.testing.assert_allclose(examples.norm, NORMS, rtol=1e-5)
    np.testing.assert_allclose(examples.value, VALUES, rtol=1e-5)
    assert distance(grads, clipped_mean(GRADIENTS, LIMIT)) < 1e-5
    assert len(np.unique(examples.aux)) == 8  # a key is folded in on every device


def raw(params, x, label):
    """A loss in which a broken number breaks the gradients of both layers."""
    aux = {"sum": x.sum(), "label": label}
    added = jnp.sum(jnp.abs(x)) * jnp.sum(jnp.abs(params["head"]))
    return loss(params, x, label) + added, aux


RAW_GRADIENTS = stacked_gradients(raw, PARAMS, (X, LABELS), has_aux=True)
RAW_LIMIT = float(np.median(norms_of(RAW_GRADIENTS)))


@cache
def compiled_raw(microbatch_size):
    return jax.jit(
        optaxclip.clipped_value_and_grad(
            raw, RAW_LIMIT, has_aux=True, microbatch_size=microbatch_size
        )
    )


def test_microbatches_give_the_same_and_aux_comes_back_for_each_example():
    mask = np.arange(8) != 3
    examples, grads = compiled_raw(None)(PARAMS, X, LABELS, mask=mask)
    chunked, in_chunks = compiled_raw(4)(PARAMS, X, LABELS, mask=mask)
    assert distance(in_chunks, jax.tree.leaves(grads)) < 1e-6
    np.testing.assert_allclose(chunked.norm, examples.norm, rtol=1e-6)
    np.testing.assert_allclose(chunked.value, examples.value, rtol=1e-6)
    for told in (examples, chunked):
        np.testing.assert_allclose(told.aux["sum"], X.sum((1, 2)), rtol=1e-5)
        np.testing.assert_array_equal(told.aux["label"], LABELS)


def test_padding_leaves_the_mean_of_the_rest():
    x = np.array(X)
    x[7] = np.nan
    _, grads = compiled_raw(None)(PARAMS, x, LABELS, mask=np.arange(8) < 6)
    expected = clipped_mean([g[:6] for g in RAW_GRADIENTS], RAW_LIMIT)
    assert distance(grads, expected) < 1e-5
    _, grads = compiled_raw(None)(PARAMS, X, LABELS, mask=np.zeros(8, bool))
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_a_broken_example_counts_as_zeros_and_spoils_no_other(value, microbatch_size):
    for which in ([0], [2, 3], [7], range(8)):
        told = f"broken: {list(which)}"
        x = np.array(X)
        x[list(which), 0, 0] = value
        examples, grads = compiled_raw(microbatch_size)(PARAMS, x, LABELS, mask=EVERY)
        found = np.asarray(examples.norm)
        good = ~np.isin(np.arange(8), which)
        norms = norms_of(RAW_GRADIENTS)
        np.testing.assert_allclose(found[good], norms[good], 1e-5, err_msg=told)
        assert not np.any(np.isfinite(found[~good])), told
        factors = np.where(good, np.minimum(1, RAW_LIMIT / norms), 0)
        expected = [np.einsum("n,n...->...", factors, g) / 8 for g in RAW_GRADIENTS]
        if np.any(good):
            assert distance(grads, expected) < 1e-5, told
        else:
            assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))


@jax.jit
def clipped_dot(x):
    def dot(params, x):
        return sum(jnp.dot(p, x) * 2.0 for p in jax.tree.leaves(params))

    params = {"one": [jnp.zeros(2)], "two": [jnp.zeros(2)] * 2}
    limits = {"one": 1.0, "two": 1.0}
    return optaxclip.clipped_value_and_grad(dot, limits)(params, x)


@pytest.mark.parametrize("size", [2.0**125, 2.0**126, 1e38, 2.0**127, 3e38])
def test_the_largest_of_all_gradients_are_clipped(size):
    examples, grads = clipped_dot(np.asarray([[size / 2, 0.0]], np.float32))
    for part, vectors in {"one": 1, "two": 2}.items():
        norm = size * vectors**0.5
        expected = norm if norm < np.finfo(np.float32).max.item() else np.inf
        np.testing.assert_allclose(examples.norm[part], expected, rtol=1e-6)
        clipped = [[vectors**-0.5, 0.0]] * vectors
        np.testing.assert_allclose(grads[part], clipped, rtol=1e-6)


SIGNS = np.asarray([1.0, -1.0] * 32)
ROWS = np.arange(64, dtype=np.int32) // 2
CANCELLED = {
    "product": (lambda p, x: x @ p, (200, 200)),
    "kernel": (
        lambda p, x: jax.lax.conv_general_dilated(
            x[None], p, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )[0],
        (1, 200, 200),
    ),
    "table": (lambda p, x: p[ROWS] * x[:, :40], (300, 40)),
    "tied": (
        lambda p, x: (
            p[ROWS] * x[:, :40] + x[:, :40] @ p[:40].T @ x[:, :40].T @ x[:, :40]
        ),
        (300, 40),
    ),
}


def of_few_bits(x):
    """Rounded so that sums of these numbers, at most 64 of about 3, are exact."""
    return np.asarray(np.round(x * 1024) / 1024, np.float32)


def norms_in_float64(function, params, x):
    """A reference that does not round where float32 cancels."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x))
        return [norms_of([g]) for g in stacked_gradients(function, wide[0], (wide[1],))]


def test_a_norm_is_right_where_positions_cancel_each_other():
    x = of_few_bits(numbers(0, 3, 64, 200) * 1e-2 + 3)
    x[1] += of_few_bits(numbers(1, 64, 200))  # here nothing is cancelled
    params = {
        case: np.zeros(shape, np.float32) for case, (_, shape) in CANCELLED.items()
    }

    def function(params, x):
        found = {case: of(params[case], x) for case, (of, _) in CANCELLED.items()}
        return sum(SIGNS @ y.sum(axis=1) for y in found.values())

    prefix = dict.fromkeys(params, 0)
    found = jax.jit(optaxclip.per_example_norms(function, prefix=prefix))(params, x)
    expected = norms_in_float64(function, params, x)
    for case, norms in zip(sorted(params), expected, strict=True):
        np.testing.assert_allclose(found[case], norms, rtol=1e-5, err_msg=case)


def one_by_one(order):
    """A product of matrices that rounds after each of its summands, in this order."""

    def contract(subscripts, a, b, **_):
        inputs, output = subscripts.split("->")
        first, second = inputs.split(",")
        summed = sorted(set(first) & set(second) - set(output))
        a, b = (
            jnp.moveaxis(x, [axes.index(i) for i in summed], range(len(summed)))
            for x, axes in ((a, first), (b, second))
        )
        a, b = (x.reshape(-1, *x.shape[len(summed) :]) for x in (a, b))
        rest = inputs.translate({ord(i): None for i in summed}) + "->" + output
        steps = order[len(a)]

        def add(i, total):
            return total + jnp.einsum(rest, a[steps[i]], b[steps[i]])

        start = jnp.einsum(rest, a[steps[0]], b[steps[0]])
        return jax.lax.fori_loop(1, len(a), add, start)

    return contract


ORDERS = {
    "one after another": np.arange,
    "shuffled": lambda n: np.random.default_rng(0).permutation(n),
}


def test_a_norm_is_right_in_whatever_order_products_are_added(monkeypatch):
    # From positions that all but cancel each other to some that do not cancel at all;
    # only two, since the roundings of many make up for each other.
    spread = np.geomspace(0.01, 10, 50)[:, None, None]
    x = of_few_bits(3 + numbers(0, 50, 2, 2000) * spread)
    params = np.zeros((2000, 100), np.float32)

    def difference(params, x):
        return SIGNS[:2] @ jnp.sum(x @ params, axis=1)

    @jax.jit
    def norms(order, params, x):
        monkeypatch.setattr(products, "contract", one_by_one(order))
        return optaxclip.per_example_norms(difference)(params, x)

    (expected,) = norms_in_float64(difference, params, x)
    for name, order in ORDERS.items():
        orders = {n: np.asarray(order(n), np.int32) for n in (1, 2, 100, 2000)}
        found = norms(orders, params, x)
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


def check_reads(read, params, ids):
    """Tables are read in one program, and each clipped by itself."""

    def all_read(params, ids):
        return sum(jnp.sum(jnp.sin(read(case, params[case], i) + 1)) for case, i in ids)

    batch = {case: np.asarray(i) for case, i in ids.items()}

    def function(params, batch):
        return all_read(params, batch.items())

    gradients = stacked_gradients(function, params, (batch,))
    step = jax.jit(optaxclip.clipped_grad(function, dict.fromkeys(params, 1.0)))
    grads = step(params, batch)
    for case, gradient in zip(sorted(params), gradients, strict=True):
        assert distance(grads[case], clipped_mean([gradient], 1.0)) < 1e-6, case


def test_rows_may_be_read_by_indices_of_any_type():
    rows = {"int8": 300, "uint8": 300, "int16": 60, "uint32": 60}
    check_reads(
        lambda dtype, table, ids: jnp.take(table, ids, axis=0, mode="clip"),
        {dtype: random(0, number, 4) for dtype, number in rows.items()},
        {dtype: np.asarray([[3, 7, 3], [0, 59, 59]], dtype) for dtype in rows},
    )


def test_rows_beyond_the_table_count_as_jax_counts_them():
    modes = {"promise_in_bounds": "promise_in_bounds", "clip": "clip", "fill": "fill"}
    modes |= {"none given": None}
    ids = np.asarray([[3, 60, 1000], [0, 59, 60]], np.int32)
    check_reads(
        lambda mode, table, ids: table.at[ids].get(mode=modes[mode], fill_value=0),
        {mode: random(0, 60, 4) for mode in modes},
        dict.fromkeys(modes, ids),
    )


def test_parameters_may_hold_no_numbers():
    def dot(params, x):
        return jnp.dot(params["b"], x) + jnp.sum(params["a"])

    prefixes = (1.0, {"a": 2.0, "b": 1.0}, np.ones(1, np.float32))

    @jax.jit
    def steps(*args):
        grads = [optaxclip.clipped_grad(dot, prefix)(*args) for prefix in prefixes]
        return grads, optaxclip.per_example_norms(dot, prefix=0)(*args)

    params = {"a": np.zeros((0, 2), np.float32), "b": np.zeros(2, np.float32)}
    many, norms = steps(params, np.asarray([[3.0, 4.0]], np.float32))
    for prefix, grads in zip(prefixes, many, strict=True):
        assert grads["a"].shape == (0, 2), prefix
        np.testing.assert_allclose(grads["b"], [0.6, 0.8], 1e-6, err_msg=str(prefix))
    np.testing.assert_allclose(norms, 5.0, rtol=1e-6)


def test_what_examples_share_may_be_no_array():
    def chosen(params, x, flag, options):
        found = jnp.dot(params, x) if flag else 0.0 * params.sum()
        return {"twice": 2 * found}[options["name"]]

    @jax.jit
    def steps(params, x):
        return [
            optaxclip.clipped_grad(
                chosen, np.inf, in_axes=(0, None, None), microbatch_size=size
            )(params, x, True, {"name": "twice"})
            for size in (None, 1)
        ]

    x = np.asarray([[3.0, 4.0], [0.0, 0.5]], np.float32)
    for grads in steps(np.zeros(2, np.float32), x):
        np.testing.assert_allclose(grads, [3.0, 4.5], rtol=1e-6)


def test_a_parameter_divided_by_zero_is_loud():
    def divided(p, x):
        return jnp.sum(x @ (p / 0.0))

    norms = jax.jit(optaxclip.per_example_norms(divided))
    found = norms(np.ones((3, 2), np.float32), np.ones((2, 1, 3), np.float32))
    assert not np.any(np.isfinite(found))


WEIGHED = {
    "vector": (lambda p, x: jnp.dot(p, x[0]), (2,)),
    "matrix": (lambda p, x: jnp.sum(x @ p.T), (1, 2)),
    "wide matrix": (lambda p, x: jnp.sum(x @ p.T) / 9, (9, 2)),
    "table": (lambda p, x: jnp.sum(p[:1] * x), (40, 2)),
    "kernel": (lambda p, x: jnp.sum(jnp.convolve(x[0], p, "valid")), (2,)),
}


def test_a_weight_may_be_smaller_than_a_float():
    def function(params, x):
        return sum(of(params[case], x) for case, (of, _) in WEIGHED.items())

    params = {case: np.zeros(shape, np.float32) for case, (_, shape) in WEIGHED.items()}
    step = jax.jit(optaxclip.clipped_grad(function, dict.fromkeys(params, 1e-20)))
    grads = step(params, np.asarray([[[1e20, 0.0]]], np.float32))
    for case, grad in grads.items():
        norm = np.linalg.norm(np.asarray(grad, np.float64) / 1e-20)
        assert np.isclose(norm, 1, rtol=1e-6), case


def test_float64_is_measured_in_float64():
    def convolved(kernel, x):
        y = jax.lax.conv_general_dilated(
            x[None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return jnp.sum(jnp.sin(y))

    def all_layers(params, x, signal):
        narrow = convolved(params["narrow"], signal[:, :1])
        wide = convolved(params["wide"], signal)
        products = sum(jnp.sum(jnp.sin(x @ params[name])) for name in matrices)
        return products + narrow + wide + 0.1 * jnp.sum(params["decayed"] ** 2)

    # A kernel of one channel is multiplied out, one of twenty is not, nor the matrix.
    matrices = {"decayed": (7, 5), "matrix": (7, 5)}
    shapes = matrices | {"narrow": (2, 1, 20), "wide": (2, 20, 20)}
    with jax.enable_x64(True):
        params = {name: numbers(0, *shape) for name, shape in shapes.items()}
        batch = (np.asarray(X, np.float64), numbers(2, 8, 4, 20))
        gradients = stacked_gradients(all_layers, params, batch)
        limits = {"decayed": 3.0, "matrix": 3.0, "narrow": 1.0, "wide": 1.0}
        step = optaxclip.clipped_value_and_grad(all_layers, limits)
        examples, grads = jax.jit(step)(params, *batch)
    for name, gradient in zip(shapes, gradients, strict=True):
        norms = norms_of([gradient])
        np.testing.assert_allclose(examples.norm[name], norms, 1e-13, err_msg=name)
        expected = clipped_mean([gradient], limits[name])
        assert distance(grads[name], expected) < 1e-13, name


def test_complex_parameters_are_clipped_by_modulus():
    def modulus(params, x):
        return jnp.sum(jnp.abs(x.astype(jnp.complex64) @ params) ** 2)

    params = np.asarray(numbers(0, 4, 3) + 1j * numbers(1, 4, 3), np.complex64)
    batch = (random(2, 5, 4),)
    gradients = np.asarray(
        jax.jit(jax.vmap(jax.grad(modulus), (None, 0)))(params, *batch)
    )
    norms = np.linalg.norm(np.abs(gradients).reshape(5, -1), axis=1)
    limit = float(np.median(norms))
    factors = np.minimum(1, limit / norms)
    expected = np.einsum("n,n...->...", factors, gradients) / 5
    step = jax.jit(optaxclip.clipped_value_and_grad(modulus, limit))
    examples, grads = step(params, *batch)
    np.testing.assert_allclose(examples.norm, norms, rtol=1e-5)
    np.testing.assert_allclose(grads, expected, rtol=1e-4)


def call(params=PARAMS, batch=(X, LABELS), function=loss, mask=None, **options):
    step = optaxclip.clipped_value_and_grad(function, 1.0, **options)
    return step(params, *batch, mask=mask)


INTEGERS = {"w": np.ones(3, np.float32), "steps": np.ones(3, np.int32)}
WRONG = {
    r"batch argument 2 has 7 examples, but batch argument 1 has 8": {
        "batch": (X, LABELS[:7])
    },
    r"params must hold only floating-point arrays, but \['steps'\] is int32": {
        "params": INTEGERS
    },
    r"params must hold at least one array": {"params": {}},
    r"loss must return one number for one example, not an array of \(2, 3\)": {
        "function": lambda p, x, y: jnp.tanh(x @ p["body"]["w"]) @ p["head"]
    },
    r"loss must return one number for one example, not tuple": {
        "function": lambda p, x, y: (loss(p, x, y), 1)
    },
    r"loss must return a pair \(value, aux\) where has_aux is True": {"has_aux": True},
    r"loss must return a floating-point number, not one of type int32": {
        "function": lambda p, x, y: y
    },
    r"loss must return a floating-point number, not one of type complex64": {
        "function": lambda p, x, y: jax.lax.complex(loss(p, x, y), 0.0)
    },
    r"not an array of \(\)": {
        "has_aux": True,
        "function": lambda p, x, y: loss(p, x, y),
    },
    r"a batch is missing": {"batch": ()},
    r"batch argument 1 must have its examples along axis 0, but has shape \(\)": {
        "batch": (1.0, LABELS)
    },
    r"in_axes must have an entry for each of the 2 arguments": {"in_axes": (0,)},
    r"in_axes must name an axis of examples": {"in_axes": None},
    r"in_axes must hold ints, or None for what all examples share, not 'a'": {
        "in_axes": "a"
    },
    r"in_axes must hold ints, or None .* not True": {"in_axes": (0, True)},
    r"but \{'x': 0\} does not fit batch argument 1 of structure": {
        "in_axes": ({"x": 0}, 0)
    },
    r"batch argument 1 must have its examples along axis 3, but has shape": {
        "in_axes": (3, 0)
    },
    r"microbatch_size must divide the batch of 8 examples, which 3 does not": {
        "microbatch_size": 3
    },
    r"microbatch_size must be at least 1, not 0": {"microbatch_size": 0},
    r"mask must be a bool for each of the 8 examples": {"mask": np.ones(7, bool)},
    r"response must multiply a whole gradient": {"response": responses.clamp},
    r"argnums must be an int or several, .* not \(\)": {"argnums": ()},
    r"argnums must name some of the 3 arguments by position, not 3": {"argnums": 3},
    r"argnums must name each argument once, not \(0, -3\)": {"argnums": (0, -3)},
    r"dtype must be a floating-point type .* not the class int": {"dtype": int},
    r"denominator must be a number above 0, not -1": {"denominator": -1.0},
    r"denominator must be a number above 0, not 0": {"denominator": 0},
    r"denominator must be a number above 0, not 1j": {"denominator": 1j},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_input_gets_a_sentence(sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        call(**WRONG[sentence])


WRONG_LIMITS = {
    "max_norm must be at least 0": -1.0,
    "max_norm must be a number": {},
    r"max_norm must be one limit or have one for each of the 3": np.ones(2),
    "max_norm must be one value or a prefix tree": {"body": 1.0},
    "and has no entry for head": {"body": 1.0},
    "max_norm must have a single number": {"body": np.ones(2), "head": 1.0},
}


@pytest.mark.parametrize("sentence", WRONG_LIMITS)
def test_wrong_limits_get_a_sentence(sentence):
    step = optaxclip.clipped_value_and_grad
    with pytest.raises((TypeError, ValueError), match=sentence):
        step(loss, WRONG_LIMITS[sentence])(PARAMS, X, LABELS)


def test_prefixes_and_schedules_get_sentences_of_their_own():
    norms = optaxclip.per_example_norms(loss, prefix={"body": 0})
    with pytest.raises(ValueError, match=r"prefix must be .* a prefix tree of params"):
        norms(PARAMS, X, LABELS)
    with pytest.raises(TypeError, match="max_norm must be a number, not a schedule"):
        limits.check_limits(lambda step: 1.0)


def test_explain_tells_the_way_of_each_leaf(capsys):
    def told(params, x, tokens):
        y = params["table"][tokens] + x @ params["w"]
        return jnp.sum(jnp.tanh(jnp.maximum(y, params["floor"]))) + params["n"].sum()

    shapes = {"table": (40, 9), "w": (30, 9), "floor": (4, 9), "n": (), "unused": (2,)}
    params = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    example = np.ones((4, 30), np.float32), np.ones(4, np.int32)
    table = optaxclip.explain(told, params, *example)
    assert not capsys.readouterr().out
    assert [row.leaf for row in table.rows] == [
        f"[{name!r}]" for name in sorted(shapes)
    ]
    lines = str(table).splitlines()
    found = {line.split()[0]: line for line in lines[1:]}
    assert "rows" in found["['table']"]
    assert "inner products" in found["['w']"]
    assert "example by example" in found["['floor']"]
    assert "none" in found["['unused']"]


def test_optax_noise_follows_in_a_chain():
    optimizer = optax.chain(optax.add_noise(1e-4, 0.0, 0), optax.sgd(0.1))
    _, grads = run(1.0)

    @jax.jit
    def update(grads):
        return optimizer.update(grads, optimizer.init(PARAMS), PARAMS)

    with jax.numpy_dtype_promotion("standard"):  # as Optax's noise needs it
        updates, _ = update(grads)
    assert all(np.all(np.isfinite(u)) for u in jax.tree.leaves(updates))
