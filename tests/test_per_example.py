"""What can be asked of per-example clipping beside the gradient itself."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec
from per_example import clipped_mean, distance, norms_of, random, stacked_gradients

import optaxclip
from optaxclip import responses
from optaxclip.per_example import limits, products

PARAMS = {"body": {"b": random(0, 5), "w": random(1, 7, 5)}, "head": random(2, 5, 3)}
X = random(3, 8, 2, 7)
LABELS = jnp.asarray([0, 1, 2, 0, 1, 2, 0, 1], jnp.int32)


def loss(params, x, label):
    """Two positions, two layers."""
    y = x @ params["body"]["w"]
    y = jnp.tanh(y + jnp.broadcast_to(params["body"]["b"], y.shape))
    logits = (y @ params["head"]).mean(0)
    return jax.nn.logsumexp(logits) - logits[label]


GRADIENTS = stacked_gradients(loss, PARAMS, (X, LABELS))
NORMS = norms_of(GRADIENTS)
LIMIT = float(np.median(NORMS))


def compiled(max_norm, **options):
    return jax.jit(optaxclip.clipped_value_and_grad(loss, max_norm, **options))


compiled_once = cache(compiled)


def run(max_norm: Any = LIMIT, params=PARAMS, batch=(X, LABELS), mask=None, **options):
    """One jitted step."""
    step = compiled_once if isinstance(max_norm, float) else compiled
    mask = np.ones(8, bool) if mask is None else mask
    return step(max_norm, **options)(params, *batch, mask=mask)


def test_the_two_gradients_and_the_norms_agree():
    examples, grads = run()
    alone = jax.jit(optaxclip.clipped_grad(loss, LIMIT))(PARAMS, X, LABELS)
    assert distance(alone, jax.tree.leaves(grads)) < 1e-6
    norms = jax.jit(optaxclip.per_example_norms(loss))(PARAMS, X, LABELS)
    np.testing.assert_allclose(norms, examples.norm, rtol=1e-6)


def test_aux_comes_back_for_each_example():
    def with_aux(params, x, label):
        return loss(params, x, label), {"sum": x.sum()}

    both = optaxclip.clipped_value_and_grad(with_aux, LIMIT, has_aux=True)
    examples, grads = jax.jit(both)(PARAMS, X, LABELS)
    np.testing.assert_allclose(examples.aux["sum"], X.sum((1, 2)), rtol=1e-5)
    gradient = optaxclip.clipped_grad(with_aux, LIMIT, has_aux=True)
    alone, aux = jax.jit(gradient)(PARAMS, X, LABELS)
    np.testing.assert_array_equal(aux["sum"], examples.aux["sum"])
    assert distance(alone, jax.tree.leaves(grads)) < 1e-6


def test_a_prefix_tree_limits_what_is_below_each_entry():
    body, head = norms_of(GRADIENTS[:2]), norms_of(GRADIENTS[2:])
    limits = {"body": float(np.median(body)), "head": float(np.median(head))}
    examples, grads = run(limits)
    np.testing.assert_allclose(examples.norm["body"], body, rtol=1e-5)
    np.testing.assert_allclose(examples.norm["head"], head, rtol=1e-5)
    expected = clipped_mean(GRADIENTS[:2], limits["body"])
    expected += clipped_mean(GRADIENTS[2:], limits["head"])
    assert distance(grads, expected) < 1e-5
    norms = optaxclip.per_example_norms(loss, prefix={"body": 0, "head": 0})
    found = jax.jit(norms)(PARAMS, X, LABELS)
    np.testing.assert_allclose(found["body"], body, rtol=1e-5)


def test_an_array_limits_each_leaf_and_may_be_traced():
    limits = np.asarray([np.median(norms_of([g])) for g in GRADIENTS], np.float32)

    @jax.jit
    def step(limits):
        return optaxclip.clipped_value_and_grad(loss, limits)(PARAMS, X, LABELS)

    examples, grads = step(limits)
    assert examples.norm.shape == (8, 3)
    pairs = zip(GRADIENTS, limits, strict=True)
    expected = [clipped_mean([g], limit)[0] for g, limit in pairs]
    assert distance(grads, expected) < 1e-5


def weighted(factors):
    """The mean of the examples with these factors."""
    return [np.einsum("n,n...->...", factors, g) / len(g) for g in GRADIENTS]


def test_responses_drop_normalize_and_auto_s():
    _, grads = run(response=responses.drop)
    assert distance(grads, weighted(NORMS <= LIMIT)) < 1e-5
    _, grads = run(response=responses.normalize)
    assert distance(grads, weighted(LIMIT / NORMS)) < 1e-5
    _, grads = run(response=responses.auto_s(0.5))
    assert distance(grads, weighted(LIMIT / (NORMS + 0.5))) < 1e-5


def test_a_denominator_divides_the_sum():
    _, grads = run(denominator=5)
    assert distance(grads, [g * 8 / 5 for g in clipped_mean(GRADIENTS, LIMIT)]) < 1e-5


def test_padding_leaves_the_mean_of_the_rest():
    mask = np.arange(8) < 6
    x = X.at[7].set(jnp.nan)
    _, grads = run(batch=(x, LABELS), mask=mask)
    expected = clipped_mean([g[:6] for g in GRADIENTS], LIMIT)
    assert distance(grads, expected) < 1e-5
    _, grads = run(mask=np.zeros(8, bool))
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("size", [1, 4])
def test_microbatches_give_the_same(size):
    mask = np.arange(8) != 3
    examples, grads = run(mask=mask)
    chunked, in_chunks = run(mask=mask, microbatch_size=size)
    assert distance(in_chunks, jax.tree.leaves(grads)) < 1e-6
    np.testing.assert_allclose(chunked.norm, examples.norm, rtol=1e-6)
    np.testing.assert_allclose(chunked.value, examples.value, rtol=1e-6)


@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_axes_are_those_of_vmap_and_a_key_is_split(microbatch_size):
    def noisy(params, batch, scale, key):
        kept = jax.random.bernoulli(key, shape=(7,))
        x = jnp.where(kept, batch["x"], 0.0) * scale
        return jnp.sum(jnp.sin(x @ params["body"]["w"]))

    batch = {"x": X[:, 0].T, "ignored": 3}
    in_axes = ({"x": 1, "ignored": None}, None, 0)
    key = jax.random.key(1)
    step = optaxclip.clipped_value_and_grad(
        noisy, LIMIT, in_axes=in_axes, microbatch_size=microbatch_size
    )
    examples, grads = jax.jit(step)(PARAMS, batch, 2.0, key)
    args = (batch, 2.0, jax.random.split(key, 8))
    gradients = stacked_gradients(noisy, PARAMS, args, in_axes)
    np.testing.assert_allclose(examples.norm, norms_of(gradients), rtol=1e-5)
    assert distance(grads, clipped_mean(gradients, LIMIT)) < 1e-5


@pytest.mark.parametrize(
    ("check_vma", "microbatch_size"), [(True, None), (True, 1), (False, None)]
)
def test_examples_may_be_spread_over_a_mesh(check_vma, microbatch_size):
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    spread, whole = PartitionSpec("data"), PartitionSpec()
    step = jax.shard_map(
        optaxclip.clipped_value_and_grad(
            loss, LIMIT, axis_name="data", microbatch_size=microbatch_size
        ),
        mesh=mesh,
        in_specs=(whole, spread, spread),
        out_specs=(spread, whole),
        check_vma=check_vma,
    )
    examples, grads = jax.jit(step)(PARAMS, X, LABELS)
    np.testing.assert_allclose(examples.norm, NORMS, rtol=1e-5)
    assert distance(grads, clipped_mean(GRADIENTS, LIMIT)) < 1e-5


def test_a_key_is_folded_differently_on_every_device():
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    spread, whole = PartitionSpec("data"), PartitionSpec()

    def drawn(params, x, key):
        return (params * x).sum(), jax.random.uniform(key)

    step = jax.shard_map(
        optaxclip.clipped_grad(drawn, 1.0, has_aux=True, axis_name="data"),
        mesh=mesh,
        in_specs=(whole, spread, whole),
        out_specs=(whole, spread),
    )
    _, numbers = jax.jit(step)(jnp.ones(3), random(0, 8, 3), jax.random.key(0))
    assert len(np.unique(numbers)) == 8


BROKEN = {"nan": np.nan, "inf": np.inf}


def raw(params, x, label):
    return loss(params, x, label) + jnp.sum(x) * jnp.sum(params["head"])


RAW_GRADIENTS = stacked_gradients(raw, PARAMS, (X, LABELS))


@cache
def compiled_raw(microbatch_size):
    return jax.jit(
        optaxclip.clipped_value_and_grad(raw, LIMIT, microbatch_size=microbatch_size)
    )


@pytest.mark.parametrize("which", [[0], [2, 3], [7], range(8)], ids=str)
@pytest.mark.parametrize("value", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_a_broken_example_counts_as_zeros_and_spoils_no_other(
    value, microbatch_size, which
):
    which = np.asarray(which)
    x = X.at[which, 0, 0].set(value)
    examples, grads = compiled_raw(microbatch_size)(PARAMS, x, LABELS)
    good = ~np.isin(np.arange(8), which)
    norms = norms_of(RAW_GRADIENTS)
    np.testing.assert_allclose(examples.norm[good], norms[good], rtol=1e-5)
    assert not np.any(np.isfinite(examples.norm[~good]))
    factors = np.where(good, np.minimum(1, LIMIT / norms), 0)
    expected = [np.einsum("n,n...->...", factors, g) / 8 for g in RAW_GRADIENTS]
    if np.any(good):
        assert distance(grads, expected) < 1e-5
    else:
        assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(grads))


@jax.jit
def clipped_in_units(scale):
    def scaled(params, x, label):
        return loss(params, x, label) * scale

    step = optaxclip.clipped_value_and_grad(scaled, LIMIT * scale)
    return step(PARAMS, X, LABELS)


@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1.0, 1e18, 1e37])
def test_squares_that_overflow_or_vanish_are_no_matter(scale):
    examples, grads = clipped_in_units(scale)
    np.testing.assert_allclose(examples.norm / scale, NORMS, rtol=1e-5)
    got = jax.tree.map(lambda g: g / scale, grads)
    assert distance(got, clipped_mean(GRADIENTS, LIMIT)) < 1e-5


@jax.jit
def clipped_dot(params, x):
    def dot(params, x):
        return sum(jnp.dot(p, x) * 2.0 for p in params)

    return optaxclip.clipped_value_and_grad(dot, 1.0)(params, x)


@pytest.mark.parametrize("ones", [(1.0,), (1.0, 1.0)])
@pytest.mark.parametrize("size", [2.0**125, 2.0**126, 1e38, 2.0**127, 3e38])
def test_the_largest_of_all_gradients_are_clipped(size, ones):
    params = [jnp.zeros(2) for _ in ones]
    examples, grads = clipped_dot(params, jnp.asarray([[size / 2, 0.0]]))
    norm = size * len(ones) ** 0.5
    expected = norm if norm < np.finfo(np.float32).max.item() else np.inf
    np.testing.assert_allclose(examples.norm, expected, rtol=1e-6)
    np.testing.assert_allclose(grads, [[len(ones) ** -0.5, 0.0]] * len(ones), rtol=1e-6)


SIGNS = np.asarray([1.0, -1.0] * 32)
CANCELLED = {
    "product": (lambda p, x: SIGNS @ jnp.sum(x @ p, axis=1), (200, 200), (64, 200)),
    "kernel": (
        lambda p, x: (
            jax.lax.conv_general_dilated(
                x[None], p, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
            )[0].sum(1)
            @ SIGNS
        ),
        (1, 200, 200),
        (64, 200),
    ),
    "table": (lambda p, x: SIGNS @ jnp.sum(p[ROWS] * x, axis=1), (300, 40), (64, 40)),
    "tied": (
        lambda p, x: SIGNS @ jnp.sum(p[ROWS] * x + x @ p[:40].T @ x.T @ x, axis=1),
        (300, 40),
        (64, 40),
    ),
}
ROWS = jnp.arange(64) // 2


def of_few_bits(x):
    """Rounded so that sums of these numbers, at most 64 of about 3, are exact."""
    return jnp.round(x * 1024) / 1024


def norms_in_float64(function, params, x):
    """A reference that does not round where float32 cancels."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x))
        return norms_of(stacked_gradients(function, wide[0], (wide[1],)))


@pytest.mark.parametrize("case", CANCELLED)
def test_a_norm_is_right_where_positions_cancel_each_other(case):
    function, shape, of_x = CANCELLED[case]
    x = of_few_bits(random(0, 3, *of_x, scale=1e-2) + 3)
    x = x.at[1].add(of_few_bits(random(1, *of_x)))  # here nothing is cancelled
    params = jnp.zeros(shape)
    found = jax.jit(optaxclip.per_example_norms(function))(params, x)
    expected = norms_in_float64(function, params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


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
        steps = jnp.asarray(order(len(a)), jnp.int32)

        def add(i, total):
            return total + jnp.einsum(rest, a[steps[i]], b[steps[i]])

        start = jnp.einsum(rest, a[steps[0]], b[steps[0]])
        return jax.lax.fori_loop(1, len(a), add, start)

    return contract


ORDERS = {
    "one after another": np.arange,
    "shuffled": lambda n: np.random.default_rng(0).permutation(n),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_a_norm_is_right_in_whatever_order_products_are_added(order, monkeypatch):
    monkeypatch.setattr(products, "contract", one_by_one(order))
    # From positions that all but cancel each other to some that do not cancel at all;
    # only two, since the roundings of many make up for each other.
    spread = np.geomspace(0.01, 10, 200)[:, None, None]
    x = of_few_bits(3 + random(0, 200, 2, 2000) * jnp.asarray(spread, jnp.float32))
    params = jnp.zeros((2000, 100))

    def difference(params, x):
        return SIGNS[:2] @ jnp.sum(x @ params, axis=1)

    found = jax.jit(optaxclip.per_example_norms(difference))(params, x)
    expected = norms_in_float64(difference, params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def clip_reads(read):
    return jax.jit(optaxclip.clipped_grad(read, 1.0))


@pytest.mark.parametrize(
    ("dtype", "rows"), [("int8", 300), ("uint8", 300), ("int16", 60), ("uint32", 60)]
)
def test_rows_may_be_read_by_indices_of_any_type(dtype, rows):
    def read(table, ids):
        return jnp.sum(jnp.tanh(jnp.take(table, ids, axis=0, mode="clip") + 1))

    ids = jnp.asarray([[3, 7, 3], [0, 59, 59]], dtype)
    params = random(0, rows, 4)
    expected = clipped_mean(stacked_gradients(read, params, (ids,)), 1.0)
    assert distance(clip_reads(read)(params, ids), expected) < 1e-6


@pytest.mark.parametrize("mode", ["promise_in_bounds", "clip", "fill", None])
def test_rows_beyond_the_table_count_as_jax_counts_them(mode):
    def read(table, ids):
        return jnp.sum(jnp.tanh(table.at[ids].get(mode=mode, fill_value=0) + 1))

    params, ids = random(0, 60, 4), jnp.asarray([[3, 60, 1000], [0, 59, 60]])
    expected = clipped_mean(stacked_gradients(read, params, (ids,)), 1.0)
    assert distance(clip_reads(read)(params, ids), expected) < 1e-6


@pytest.mark.parametrize("prefix", [1.0, {"a": 2.0, "b": 1.0}, np.ones(1, np.float32)])
def test_parameters_may_hold_no_numbers(prefix):
    def dot(params, x):
        return jnp.dot(params["b"], x) + jnp.sum(params["a"])

    params = {"a": jnp.zeros((0, 2)), "b": jnp.zeros(2)}
    x = jnp.asarray([[3.0, 4.0]])
    grads = jax.jit(optaxclip.clipped_grad(dot, prefix))(params, x)
    assert grads["a"].shape == (0, 2)
    np.testing.assert_allclose(grads["b"], [0.6, 0.8], rtol=1e-6)
    norms = jax.jit(optaxclip.per_example_norms(dot, prefix=0))(params, x)
    np.testing.assert_allclose(norms, 5.0, rtol=1e-6)


@pytest.mark.parametrize("microbatch_size", [None, 1])
def test_what_examples_share_may_be_no_array(microbatch_size):
    def chosen(params, x, flag, options):
        found = jnp.dot(params, x) if flag else 0.0 * params.sum()
        return {"twice": 2 * found}[options["name"]]

    step = optaxclip.clipped_grad(
        chosen, np.inf, in_axes=(0, None, None), microbatch_size=microbatch_size
    )
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.5]])
    grads = jax.jit(lambda p: step(p, x, True, {"name": "twice"}))(jnp.zeros(2))
    np.testing.assert_allclose(grads, [3.0, 4.5], rtol=1e-6)


def test_a_parameter_divided_by_zero_is_loud():
    def divided(p, x):
        return jnp.sum(x @ (p / 0.0))

    norms = optaxclip.per_example_norms(divided)(jnp.ones((3, 2)), jnp.ones((2, 1, 3)))
    assert not np.any(np.isfinite(norms))


WEIGHED = {
    "vector": (lambda p, x: jnp.dot(p, x[0]), (2,)),
    "matrix": (lambda p, x: jnp.sum(x @ p.T), (1, 2)),
    "wide matrix": (lambda p, x: jnp.sum(x @ p.T) / 9, (9, 2)),
    "table": (lambda p, x: jnp.sum(p[:1] * x), (40, 2)),
    "kernel": (lambda p, x: jnp.sum(jnp.convolve(x[0], p, "valid")), (2,)),
}


@pytest.mark.parametrize("case", WEIGHED)
def test_a_weight_may_be_smaller_than_a_float(case):
    function, shape = WEIGHED[case]
    x = jnp.asarray([[[1e20, 0.0]]])
    step = jax.jit(optaxclip.clipped_grad(function, 1e-20))
    grads = step(jnp.zeros(shape), x)
    assert np.isclose(np.linalg.norm(grads / 1e-20), 1, rtol=1e-6)


def test_float64_is_measured_in_float64():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: np.asarray(p, np.float64), PARAMS)
        x = np.asarray(X, np.float64)
        gradients = stacked_gradients(loss, params, (x, LABELS))
        step = optaxclip.clipped_value_and_grad(loss, LIMIT)
        examples, grads = jax.jit(step)(params, x, LABELS)
        np.testing.assert_allclose(examples.norm, norms_of(gradients), rtol=1e-13)
        assert distance(grads, clipped_mean(gradients, LIMIT)) < 1e-13


@pytest.mark.parametrize("channels", [1, 20])
def test_kernels_are_measured_in_float64(channels):
    def convolved(kernel, x):
        numbers = ("NWC", "WIO", "NWC")
        y = jax.lax.conv_general_dilated(
            x[None], kernel, (1,), "SAME", dimension_numbers=numbers
        )
        return jnp.sum(jnp.tanh(y))

    with jax.enable_x64(True):
        batch = (random(0, 3, 4, channels, dtype=jnp.float64),)
        kernel = random(1, 2, channels, 20, dtype=jnp.float64)
        expected = clipped_mean(stacked_gradients(convolved, kernel, batch), 1.0)
        step = jax.jit(optaxclip.clipped_grad(convolved, 1.0))
        assert distance(step(kernel, *batch), expected) < 1e-13


def test_complex_parameters_are_clipped_by_modulus():
    params = jax.lax.complex(random(0, 4, 3), random(1, 4, 3))

    def modulus(params, x):
        return jnp.sum(jnp.abs(x.astype(jnp.complex64) @ params) ** 2)

    batch = (random(2, 5, 4),)
    gradients = jax.jit(jax.vmap(jax.grad(modulus), (None, 0)))(params, *batch)
    norms = np.linalg.norm(np.abs(gradients).reshape(5, -1), axis=1)
    limit = float(np.median(norms))
    factors = np.minimum(1, limit / norms)
    expected = np.einsum("n,n...->...", factors, np.asarray(gradients)) / 5
    step = jax.jit(optaxclip.clipped_value_and_grad(modulus, limit))
    examples, grads = step(params, *batch)
    np.testing.assert_allclose(examples.norm, norms, rtol=1e-5)
    np.testing.assert_allclose(grads, expected, rtol=1e-4)


def test_edge_limits():
    traced = jax.jit(lambda c: optaxclip.clipped_grad(loss, c)(PARAMS, X, LABELS))
    assert distance(traced(np.inf), [g.mean(0) for g in GRADIENTS]) < 1e-5
    for limit in (0.0, -1.0):
        grads = jax.tree.leaves(traced(limit))
        assert all(np.all(np.asarray(g) == 0) for g in grads)
    assert all(np.all(np.isnan(g)) for g in jax.tree.leaves(traced(np.nan)))


@pytest.mark.parametrize(
    ("max_norm", "response"),
    [
        (0.3, responses.shrink),
        ({"body": 0.2, "head": 0.4}, responses.shrink),
        (0.3, responses.normalize),
        (0.3, responses.auto_s()),
        (0.3, responses.drop),
        (0.3, responses.soften()),
    ],
)
def test_no_example_moves_the_sum_by_more_than_the_limits(max_norm, response):
    bound = np.sqrt(sum(c**2 for c in jax.tree.leaves(max_norm)))
    x = X.at[5].mul(1e4)

    @jax.jit
    def total(x, mask):
        step = optaxclip.clipped_grad(
            loss, max_norm, response=response, denominator=4.0
        )
        return step(PARAMS, x, LABELS, mask=mask)

    whole = total(x, np.ones(8, bool))
    for i in range(8):
        rest = total(x, np.arange(8) != i)
        moved = jax.tree.map(lambda a, b: np.asarray(a - b, np.float64), whole, rest)
        distance = np.sqrt(sum((m**2).sum() for m in jax.tree.leaves(moved)))
        assert distance <= bound / 4 * (1 + 1e-5)


def test_second_argument_vmaps_over_limits():
    limits = jnp.asarray([LIMIT / 2, LIMIT, 2 * LIMIT])
    step = jax.jit(
        jax.vmap(lambda c: optaxclip.clipped_grad(loss, c)(PARAMS, X, LABELS))
    )
    many = step(limits)
    for i, limit in enumerate(limits):
        got = jax.tree.map(lambda g, i=i: g[i], many)
        assert distance(got, clipped_mean(GRADIENTS, float(limit))) < 1e-5


def call(params=PARAMS, batch=(X, LABELS), function=loss, mask=None, **options):
    step = optaxclip.clipped_value_and_grad(function, 1.0, **options)
    return step(params, *batch, mask=mask)


INTEGERS = {"w": jnp.ones(3), "steps": jnp.ones(3, jnp.int32)}
WRONG = {
    r"batch argument 2 has 7 examples, but batch argument 1 has 8": {
        "batch": (X, LABELS[:7])
    },
    r"params must hold floating-point arrays alone, but \['steps'\] is int32": {
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
    r"the batch must hold at least one example": {"batch": (X[:0], LABELS[:0])},
    r"batch argument 1 must have its examples along axis 0, but has shape \(\)": {
        "batch": (1.0, LABELS)
    },
    r"in_axes must have an entry for each of the 2 arguments": {"in_axes": (0,)},
    r"in_axes must name an axis of examples": {"in_axes": None},
    r"in_axes must hold ints, or None for what all examples share, not 'a'": {
        "in_axes": "a"
    },
    r"in_axes must hold ints, or None .* not True": {"in_axes": (0, True)},
    r"which \{'x': 0\} is not for batch argument 1 of structure": {
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
    r"denominator must be a number above 0, not -1": {"denominator": -1.0},
    r"denominator must be a number above 0, not 0": {"denominator": 0},
    r"denominator must be a number, not 1j": {"denominator": 1j},
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
    with pytest.raises((TypeError, ValueError), match=sentence):
        run(WRONG_LIMITS[sentence])


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

    params = {
        "table": jnp.ones((40, 9)),
        "w": jnp.ones((30, 9)),
        "floor": jnp.ones((4, 9)),
        "n": jnp.ones((), jnp.float32),
        "unused": jnp.ones(2),
    }
    optaxclip.explain(told, params, jnp.ones((4, 30)), jnp.ones(4, jnp.int32))
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: line for line in lines[1:]}
    assert "rows" in found["['table']"]
    assert "inner products" in found["['w']"]
    assert "example by example" in found["['floor']"]
    assert "none" in found["['unused']"]


def test_optax_noise_follows_in_a_chain():
    gradient = optaxclip.clipped_grad(loss, 1.0, denominator=8)
    optimizer = optax.chain(optax.add_noise(1e-4, 0.0, 0), optax.sgd(0.1))
    grads = jax.jit(gradient)(PARAMS, X, LABELS)
    with jax.numpy_dtype_promotion("standard"):  # as Optax's noise needs it
        updates, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    assert all(np.all(np.isfinite(u)) for u in jax.tree.leaves(updates))
