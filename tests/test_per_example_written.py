"""Stacked kernels that a loop reads by its counter, or by another index."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from per_example import (
    clipped_mean,
    clipped_one_by_one,
    distance,
    norms_of,
    numbers,
    temporary_memory,
)
from quickly import jit_quickly

import optaxclip

LAYERS, WIDTH, EXAMPLES = 4, 64, 24
SHAPE = (LAYERS, WIDTH, WIDTH)
KERNELS = numbers(0, *SHAPE) / WIDTH**0.5
X = numbers(1, EXAMPLES, WIDTH)


def over(indices, read=lambda w, i: w[i], wrap=lambda layer: layer):
    """A layer for each index."""

    def loss(w, x):
        layer = wrap(lambda x, i: (jnp.tanh(x @ read(w, i)), None))
        return jnp.sum(lax.scan(layer, x, indices)[0] ** 2)

    return loss


def counted(start, stop, read=lambda w, i: w[i], wrap=lambda layer: layer):
    """A layer for each number that a loop counts."""

    def loss(w, x):
        layer = wrap(lambda i, x: jnp.tanh(x @ read(w, i)))
        return jnp.sum(lax.fori_loop(start, stop, layer, x) ** 2)

    return loss


def downwards(w, x):
    """A loop that counts down by itself, and starts with a layer of its own."""

    def layer(carry, _):
        x, i = carry
        return (jnp.tanh(x @ w[i]), i - 1), None

    start = jnp.tanh(x @ w[LAYERS - 1]), jnp.int32(LAYERS - 2)
    return jnp.sum(lax.scan(layer, start, None, LAYERS - 1)[0][0] ** 2)


def in_rounds(w, x):
    """A loop that another runs twice."""

    def layers(_, x):
        return lax.fori_loop(0, LAYERS, lambda i, x: jnp.tanh(x @ w[i]), x)

    return jnp.sum(lax.fori_loop(0, 2, layers, x) ** 2)


def by_what_it_reads(w, x):
    """Layers that each example chooses."""
    return over(jnp.argsort(x)[:LAYERS] % LAYERS)(w, x)


def pair(w, i):
    """Two kernels side by side, of which the next step may take one again."""
    first, second = lax.dynamic_slice_in_dim(w, i, 2)
    return first + 2 * second


def scaled(w, i):
    """A kernel times a number of its step."""
    return w[i] * (1 + i.astype(w.dtype)) / LAYERS


def row_of(i):
    """A row of one index, which a scalar chooses."""
    none = jnp.zeros(1, i.dtype)
    return lax.select(i > 0, none + i, none)


STEPS = np.arange(LAYERS, dtype=np.int32)
# No gradient is formed.
KNOWN = {
    "counter": counted(0, LAYERS),
    "counter from 1 on": counted(1, LAYERS),
    "counted down from the end": counted(0, LAYERS, lambda w, i: w[LAYERS - 1 - i]),
    "negative counter": counted(-LAYERS, 0),
    "checkpoint": counted(0, LAYERS, wrap=jax.checkpoint),
    "range": lambda w, x: over(jnp.arange(LAYERS))(w, x),
    "reversed": lambda w, x: over(jnp.arange(LAYERS)[::-1])(w, x),
    "in any order": over(np.array([2, 0, 3, 1])),
    "two of them": over(np.array([3, 0])),
    "gathered": over(STEPS, lambda w, i: jnp.take(w, i, axis=0)),
    "sliced": over(STEPS, lambda w, i: lax.dynamic_index_in_dim(w, i, 0, False)),
    "out of bounds": over(STEPS + 1, lambda w, i: lax.dynamic_slice_in_dim(w, i, 1)[0]),
    "of a row of indices": counted(0, LAYERS, lambda w, i: w[row_of(i)][0]),
    "last axis": over(STEPS, lambda w, i: w.transpose(1, 2, 0)[:, :, i]),
    "again and again": counted(0, 2 * LAYERS, lambda w, i: w[i % LAYERS]),
    "each for two steps": counted(0, 2 * LAYERS, lambda w, i: w[i // 2]),
    "some twice": over(np.array([0, 2, 2, 1])),
    "downwards": downwards,
}
OTHERS = {
    "one for nearly all": over(np.array([0, 0, 0, 0, 0, 1, 2, 3])),
    "pairs": counted(0, LAYERS // 2, lambda w, i: pair(w, 2 * i)),
    "pairs that overlap": counted(0, LAYERS - 1, pair),
    "rounds": in_rounds,
    "no round": lambda w, x: counted(0, 0)(w, x) + jnp.sum(x @ w[1]),
    "chosen": by_what_it_reads,
}
LOSSES = KNOWN | OTHERS


PARAMS = dict.fromkeys(sorted(LOSSES), KERNELS)


def total(params, x):
    """All losses, each of kernels of its own."""
    return sum(loss(params[kind], x) for kind, loss in LOSSES.items())


def gradients_of(loss, params):
    """The gradients of all examples, computed in float64."""
    with jax.enable_x64(True):
        found = jit_quickly(jax.vmap(jax.grad(loss), (None, 0)))(params, X)
        return jax.tree.map(np.asarray, found)


def narrow(params):
    """The same in float32."""
    return jax.tree.map(jnp.float32, params)


def test_kernels_that_a_loop_reads_are_clipped_like_their_gradients():
    gradients = gradients_of(total, PARAMS)
    limits = {kind: float(np.median(norms_of([g]))) for kind, g in gradients.items()}
    clip = jit_quickly(optaxclip.clipped_value_and_grad(total, limits))
    examples, grads = clip(narrow(PARAMS), narrow(X))
    for kind, gradient in gradients.items():
        norms = norms_of([gradient])
        np.testing.assert_allclose(examples.norm[kind], norms, 1e-5, err_msg=kind)
        wanted = clipped_mean([gradient], limits[kind])
        assert distance(grads[kind], wanted) < 1e-5, kind


AGAIN = {
    "read": KNOWN["checkpoint"],
    "read and scaled": counted(0, LAYERS, scaled, jax.checkpoint),
    "read in a scan and scaled": over(STEPS, scaled, jax.checkpoint),
}


@pytest.mark.parametrize("kind", AGAIN)
def test_kernels_that_a_loop_counts_are_right_if_layers_are_computed_again(kind):
    loss = AGAIN[kind]
    gradients = [gradients_of(loss, KERNELS)]
    limit = float(np.median(norms_of(gradients)))
    clip = jit_quickly(optaxclip.clipped_value_and_grad(loss, limit))
    example, grad = clip(narrow(KERNELS), narrow(X))
    np.testing.assert_allclose(example.norm, norms_of(gradients), rtol=1e-5)
    assert distance(grad, clipped_mean(gradients, limit)) < 1e-5


@pytest.mark.parametrize("kind", AGAIN)
def test_only_the_inputs_of_layers_are_held_if_they_are_computed_again(kind):
    gradient = optaxclip.clipped_grad(AGAIN[kind], 1.0)
    program = str(jax.make_jaxpr(gradient)(narrow(KERNELS), narrow(X)))
    assert program.count(f"f32[{LAYERS},{EXAMPLES},{WIDTH}]") <= 1


@pytest.mark.parametrize("kind", ["counter", "counter from 1 on", "checkpoint"])
def test_kernels_that_a_loop_counts_take_the_memory_of_the_batch_gradient(kind):
    loss = KNOWN[kind]
    plain = jax.grad(lambda w, x: jnp.mean(jax.vmap(loss, (None, 0))(w, x)))
    arrays = narrow(KERNELS), narrow(X)
    stacked = temporary_memory(clipped_one_by_one(loss), *arrays)
    most = 2 * temporary_memory(plain, *arrays) + 0.15 * stacked
    held = temporary_memory(optaxclip.clipped_grad(loss, 1.0), *arrays)
    assert held < min(most, stacked)


def test_no_gradient_is_formed_of_a_kernel_that_is_read_at_a_known_place():
    rows = optaxclip.explain(total, narrow(PARAMS), narrow(X[0])).rows
    ways = dict(zip(PARAMS, (row.way for row in rows), strict=True))
    assert {kind: ways[kind] for kind in KNOWN} == dict.fromkeys(
        KNOWN, "inner products"
    )
