"""Parameters that reach the products of a loss by linear steps of any kind."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from per_example import (
    clipped_mean,
    distance,
    integers,
    norms_of,
    random,
    stacked_gradients,
)
from quickly import jit_quickly

import optaxclip
from optaxclip.per_example import sums

WIDE, NARROW = 24, 20
MASK = jnp.asarray(np.tril(np.ones((WIDE, NARROW))), jnp.float32)
FROZEN, ALONG = random(90, 4, NARROW), random(91, NARROW)
cast = jax.jit(lambda w: w.astype(jnp.bfloat16))


def of_scan(p, x):
    """Kernels stacked by layers, and put together in the loop."""

    def layer(h, w):
        return jnp.tanh(h @ jnp.concatenate([w[:, :4], w[:, 4:]], 1).T), None

    return jax.lax.scan(layer, x, p)[0]


def of_steps(p, x):
    """A row of a table at every step."""
    ids = jnp.argsort(x)[:5]
    return jax.lax.scan(lambda h, i: (jnp.tanh(h + p[i]), None), x[:4], ids)[0]


def of_loop(p, x):
    """One kernel in a loop, scaled by what all examples share."""
    return jax.lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ (0.5 * p).T), x)


# Each takes a parameter and the numbers of an example; then the way of its leaf.
SHAPE = (WIDE, NARROW)
KINDS = {
    "penalty": (lambda p, x: x @ p + 0.01 * jnp.sum(p**2), SHAPE, "one by one"),
    "mask": (lambda p, x: x @ (p * MASK), SHAPE, "one by one"),
    "scaled columns": (lambda p, x: x @ (p * ALONG[None]), SHAPE, "inner products"),
    "divided": (lambda p, x: x @ (p / ALONG[0]), SHAPE, "inner products"),
    "index": (lambda p, x: x @ p[1] + x @ p[0], (3, *SHAPE), "inner products"),
    "unstack": (lambda p, x: sum(x @ w for w in p), (2, *SHAPE), "inner products"),
    "stack": (lambda p, x: x @ jnp.stack([p, 2 * p]), SHAPE, "inner products"),
    "split": (
        lambda p, x: jnp.prod(jnp.stack([x @ w for w in jnp.split(p, 2, 1)]), 0),
        SHAPE,
        "inner products",
    ),
    "concatenated": (
        lambda p, x: x @ jnp.concatenate([p, FROZEN.T @ FROZEN], axis=0)[:WIDE],
        SHAPE,
        "one by one",
    ),
    "padded": (lambda p, x: x @ jnp.pad(p, ((0, 0), (1, 2))), SHAPE, "one by one"),
    "reversed": (lambda p, x: x @ p[:, ::-1], SHAPE, "inner products"),
    "low rank": (lambda p, x: x @ (p @ FROZEN), (WIDE, 4), "inner products"),
    "summed": (lambda p, x: x @ p.sum(0), (3, *SHAPE), "one by one"),
    "reshaped": (
        lambda p, x: x @ p.reshape(WIDE, 2, NARROW)[:, 0],
        (WIDE, 2 * NARROW),
        "inner products",
    ),
    "normalized": (lambda p, x: x @ (p / jnp.sqrt(jnp.sum(p**2))), SHAPE, "one by one"),
    "outer": (lambda p, x: p * x[:, None] * ALONG[None], SHAPE, "example by example"),
    "row": (
        lambda p, x: p[jnp.argmax(x)] * x[:4],
        (50, 4),
        "rows",
    ),
    "steps": (of_steps, (50, 4), "rows"),
    "scan": (of_scan, (2, WIDE, WIDE), "one by one"),
    "loop": (of_loop, (WIDE, WIDE), "inner products"),
    "two uses": (lambda p, x: jnp.tanh(x @ p) @ p.T, SHAPE, "inner products"),
}
PARAMS = {
    kind: random(i, *shape, scale=0.3)
    for i, (kind, (_, shape, _)) in enumerate(KINDS.items())
}


def loss(params, x):
    return sum(jnp.sum(jnp.sin(of(params[k], x))) for k, (of, *_) in KINDS.items())


def test_each_kind_is_clipped_like_its_gradients_and_in_its_way():
    batch = (random(70, 4, WIDE),)
    gradients = stacked_gradients(loss, PARAMS, batch)
    limits = {
        kind: float(np.median(norms_of([g])))
        for kind, g in zip(sorted(PARAMS), gradients, strict=True)
    }
    step = jit_quickly(optaxclip.clipped_value_and_grad(loss, limits))
    examples, grads = step(PARAMS, *batch)
    for kind, gradient in zip(sorted(PARAMS), gradients, strict=True):
        norms = norms_of([gradient])
        np.testing.assert_allclose(examples.norm[kind], norms, 2e-5, err_msg=kind)
        wanted = clipped_mean([gradient], limits[kind])
        assert distance(grads[kind], wanted) < 1e-5, kind
    rows = optaxclip.explain(loss, PARAMS, batch[0][0]).rows
    found = {kind: row.way for kind, row in zip(sorted(PARAMS), rows, strict=True)}
    assert found == {kind: way for kind, (_, _, way) in KINDS.items()}


def test_a_penalty_alone_is_the_same_for_all_examples():
    def penalized(params, x):
        return jnp.dot(params["w"], x) + jnp.sum(params["other"] ** 2) / 2

    params = {"other": random(0, 5), "w": random(1, 3)}
    batch = (random(2, 4, 3),)
    gradients = stacked_gradients(penalized, params, batch)
    examples, grads = jax.jit(optaxclip.clipped_value_and_grad(penalized, 1.5))(
        params, *batch
    )
    np.testing.assert_allclose(examples.norm, norms_of(gradients), rtol=1e-5)
    assert distance(grads, clipped_mean(gradients, 1.5)) < 1e-5


def test_parameters_in_bfloat16_are_summed_in_float32_after_a_jitted_cast():
    def narrow(w, x):
        return jnp.sum(jnp.tanh(x @ cast(w)).astype(jnp.float32) ** 2)

    w, x = random(0, 24, 24), random(1, 64, 24).astype(jnp.bfloat16)
    gradients = stacked_gradients(narrow, w, (x,))
    grads = jax.jit(optaxclip.clipped_grad(narrow, 1e9))(w, x)
    assert distance(grads, [g.mean(0) for g in gradients]) < 2**-8


def test_what_scales_a_matrix_is_not_rounded_with_its_layer():
    def scaled(w, x):
        y = x.astype(jnp.bfloat16) @ (w * 1.0038).astype(jnp.bfloat16)
        return jnp.sum(y.astype(jnp.float32) ** 2)

    w, x = jnp.full((24, 20), 0.01), jnp.ones((2, 24))
    gradients = stacked_gradients(scaled, w, (x,))
    norms = jax.jit(optaxclip.per_example_norms(scaled))(w, x)
    np.testing.assert_allclose(norms, norms_of(gradients), rtol=1e-5)


def test_a_small_integer_may_be_a_factor():
    def product(w, x):
        y = jnp.dot(x, w, preferred_element_type=jnp.float32)
        return jnp.sum(jnp.tanh(y) ** 2)

    w, x = random(0, 24, 24, scale=0.2), integers(1, 7, 5, 3, 24).astype(jnp.int8)
    gradients = stacked_gradients(product, w, (x,))
    limit = float(np.median(norms_of(gradients)))
    with jax.numpy_dtype_promotion("standard"):
        grads = jax.jit(optaxclip.clipped_grad(product, limit))(w, x)
    assert distance(grads, clipped_mean(gradients, limit)) < 1e-5


def test_rows_of_a_text_longer_than_a_row_are_sorted():
    def read(table, tokens):
        return jnp.sum(jnp.sin(table[tokens]) * jnp.arange(30.0)[:, None])

    table, tokens = random(0, 50, 4), integers(1, 12, 5, 30)
    gradients = stacked_gradients(read, table, (tokens,))
    norms = jax.jit(optaxclip.per_example_norms(read))(table, tokens)
    np.testing.assert_allclose(norms, norms_of(gradients), rtol=1e-5)


def test_the_precision_for_which_a_loss_asks_is_kept():
    def precise(w, x):
        return jnp.sum(jnp.tanh(jnp.matmul(x, w, precision="highest")))

    w, x = random(0, 24, 24), random(1, 3, 5, 24)
    program = str(jax.make_jaxpr(optaxclip.clipped_grad(precise, 1.0))(w, x))
    assert program.count("dot_general") == program.count("Precision.HIGHEST") / 2


def growing(steps):
    def loss(params, x):
        v = params["v"]
        for _ in range(steps):
            v = v + 0.1 * (-v + x @ params["w"])
        return jnp.sum(v**2)

    return loss


def equations(jaxpr):
    return str(jaxpr).count(" = ")


def test_tracing_grows_with_the_program_and_not_with_the_paths_through_it():
    params, x = {"v": jnp.ones(4), "w": jnp.eye(4)}, random(0, 2, 4)
    counts = [
        equations(
            jax.make_jaxpr(optaxclip.clipped_grad(growing(steps), 1.0))(params, x)
        )
        for steps in (6, 12)
    ]
    assert counts[1] < 3 * counts[0]
    gradients = stacked_gradients(growing(6), params, (x,))
    grads = jax.jit(optaxclip.clipped_grad(growing(6), 1.0))(params, x)
    assert distance(grads, clipped_mean(gradients, 1.0)) < 1e-5


def test_a_parameter_may_be_scaled_any_number_of_times():
    def scaled(w, x):
        for _ in range(400):
            w = 0.999 * w
        return jnp.sum(jnp.tanh(x @ w))

    table = optaxclip.explain(scaled, jnp.ones((24, 24)), jnp.ones(24))
    assert [row.way for row in table.rows] == ["inner products"]


def diffused(steps):
    """A loss whose kernel goes through a sum of itself in every step."""

    def loss(w, x):
        for _ in range(steps):
            w = w + 0.1 * (w.T - w)
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    return loss


def test_a_parameter_may_be_a_sum_of_itself_any_number_of_times():
    w, x = random(0, 4, 4), random(1, 2, 4)
    counts = [
        equations(jax.make_jaxpr(optaxclip.clipped_grad(diffused(n), 1.0))(w, x))
        for n in (15, 30)
    ]
    assert counts[1] < 3 * counts[0]
    gradients = stacked_gradients(diffused(15), w, (x,))
    grads = jax.jit(optaxclip.clipped_grad(diffused(15), 1.0))(w, x)
    assert distance(grads, clipped_mean(gradients, 1.0)) < 1e-5


def test_a_derivative_of_the_clipped_gradient_keeps_custom_rules():
    rounded = jax.custom_jvp(lambda x: jnp.round(x))
    rounded.defjvp(lambda primals, tangents: (rounded(*primals), tangents[0]))

    def straight(w, x):
        return jnp.sum(rounded(x * w) ** 2)

    x, w = jnp.asarray([[1.3, 2.6], [0.4, 3.1]]), jnp.asarray([1.7, 0.9])
    total = lambda w: jnp.sum(optaxclip.clipped_grad(straight, 1e9)(w, x))  # noqa: E731
    slope = jax.jit(jax.grad(total))(w)
    np.testing.assert_allclose(slope, np.mean(2 * np.square(x), axis=0), rtol=1e-6)


def test_an_ensemble_takes_one_decision():
    members = jax.vmap(optaxclip.clipped_grad(growing(1), 1.0), (0, None))
    params = {"v": jnp.ones((3, 4)), "w": jnp.ones((3, 4, 4))}
    assert " cond[" in str(jax.make_jaxpr(members)(params, random(0, 2, 4)))


@partial(jax.checkpoint, policy=None)
def layer(x, w):
    return jnp.tanh(x @ w["a"]) @ w["b"], None


def rematerialized(params, x):
    """Layers in a scan, and a head that they do not contain."""
    x, _ = jax.lax.scan(layer, x, params["layers"])
    return jnp.sum(jnp.log(x @ params["head"] + 30)) + 1e-3 * jnp.sum(
        params["head"] ** 2
    )


LAYERS = {"a": random(0, 3, 16, 24, scale=0.3), "b": random(1, 3, 24, 16, scale=0.3)}
REMATERIALIZED = {"head": random(2, 16, 8), "layers": LAYERS}
INPUTS = random(3, 6, 4, 16)


@jax.jit
def in_two_passes(scale, limits, x):
    """The one program of the tests below."""

    def scaled(params, x):
        return rematerialized(params, x) * scale

    return optaxclip.clipped_value_and_grad(scaled, limits)(REMATERIALIZED, x)


HEAD, *OF_LAYERS = stacked_gradients(rematerialized, REMATERIALIZED, (INPUTS,))
NORMS = {"head": norms_of([HEAD]), "layers": norms_of(OF_LAYERS)}
LIMITS = {name: float(np.median(norms)) for name, norms in NORMS.items()}


@pytest.mark.parametrize("broken", [None, 0, 4])
def test_a_loss_that_rematerializes_is_clipped_in_two_passes(broken):
    x, good = np.array(INPUTS), np.ones(6)
    if broken is not None:
        x[broken, 0, 0], good[broken] = np.nan, 0
    examples, grads = in_two_passes(1.0, LIMITS, x)
    for name, norms in NORMS.items():
        found = np.asarray(examples.norm[name])[good == 1]
        np.testing.assert_allclose(found, norms[good == 1], rtol=1e-5)
    factors = {k: np.minimum(1, LIMITS[k] / NORMS[k]) * good for k in NORMS}
    pairs = [(factors["head"], HEAD), *((factors["layers"], g) for g in OF_LAYERS)]
    wanted = [np.einsum("n,n...->...", f, g) / 6 for f, g in pairs]
    assert distance(grads, wanted) < 1e-5


def test_two_passes_hold_nothing_of_a_layer_and_measure_extremes():
    grad = optaxclip.clipped_grad(rematerialized, 1.0)
    program = str(jax.make_jaxpr(grad)(REMATERIALIZED, INPUTS))
    assert "f32[3,6,4,24]" not in program  # cotangents of all layers
    for scale in (1e-25, 1e25):
        examples, _ = in_two_passes(scale, LIMITS, INPUTS)
        for name, norms in NORMS.items():
            found = np.asarray(examples.norm[name], np.float64) / scale
            np.testing.assert_allclose(found, norms, rtol=1e-5)


def narrowed(dtype):
    """One matrix, multiplied in another type by a layer that is computed again."""

    @jax.checkpoint
    def layer(w, x):
        return x.astype(dtype) @ w.astype(dtype)

    return lambda w, x: jnp.sum(layer(w, x).astype(jnp.float32))


def test_an_example_moves_a_sum_of_layers_in_bfloat16_by_no_more_than_its_limit():
    x = jnp.linspace(jnp.full(24, 0.9), jnp.full(24, 1.3), 600)
    gradient = optaxclip.clipped_grad(narrowed(jnp.bfloat16), 1.0, denominator=1)
    step, w = jax.jit(gradient), jnp.zeros((24, 8))
    with_one, without = (step(w, x, mask=jnp.arange(600) < n) for n in (512, 511))
    moved = np.linalg.norm(np.asarray(with_one - without, np.float64))
    assert moved == pytest.approx(gradient.sensitivity(), rel=1e-3)


def test_a_large_denominator_does_not_underflow_in_layers_of_float16():
    x, w, loss = random(0, 4, 24), random(1, 24, 8), narrowed(jnp.float16)
    gradients = stacked_gradients(loss, w, (x,))
    grads = jax.jit(optaxclip.clipped_grad(loss, 1e-3, denominator=1e6))(w, x)
    wanted = [g * 4e-6 for g in clipped_mean(gradients, 1e-3)]
    assert distance(grads, wanted) < 1e-5


def test_two_passes_shrink_large_gradients_to_small_limits():
    _, grads = in_two_passes(1e24, dict.fromkeys(LIMITS, 1e-18), INPUTS)
    parts = clipped_mean([HEAD], 1e-42), clipped_mean(OF_LAYERS, 1e-42)
    assert distance(grads, [g * 1e24 for part in parts for g in part]) < 1e-5


def hinge(w, x):
    return jnp.maximum(0.0, jnp.sum(jnp.tanh(x @ w)))


def penalized(w, x):
    return jnp.sum(jnp.tanh(x @ w)) + 1e-2 * jnp.sum(w**2)


@pytest.mark.parametrize("loss", [hinge, penalized])
def test_what_is_zero_or_does_not_cancel_is_measured_once(loss, monkeypatch):
    asked, again = [], sums.measured_again

    def told(*args):
        jax.debug.callback(asked.append, args[-2])
        return again(*args)

    monkeypatch.setattr(sums, "measured_again", told)
    w, x = random(0, 400, 400) ** 2, random(1, 4, 400)
    x = x.at[0].set(-jnp.abs(x[0]))  # where the hinge is flat
    norms = jax.jit(optaxclip.per_example_norms(loss))(w, x)
    jax.effects_barrier()
    assert not asked
    wanted = norms_of(stacked_gradients(loss, w, (x,)))
    assert wanted[0] == 0 or loss is penalized
    np.testing.assert_allclose(norms, wanted, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_rows_of_a_table_are_multiplied_by_its_penalty(shape, dtype):
    """Indices are no numbers: an inner product with them was off by a fifth."""

    def loss(table, rows):
        read = table[rows].astype(dtype)
        return jnp.sum(jnp.sin(read.astype(jnp.float32))) + 0.1 * jnp.sum(table**2)

    table, rows = random(0, *shape), integers(1, 6, 5, 4)
    assert optaxclip.explain(loss, table, rows[0]).rows[0].way == "rows"
    norms = jax.jit(optaxclip.per_example_norms(loss))(table, rows)
    wanted = norms_of(stacked_gradients(loss, table, (rows,)))
    rtol = 1e-5 if dtype == jnp.float32 else 5e-3
    np.testing.assert_allclose(norms, wanted, rtol=rtol)
