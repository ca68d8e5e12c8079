"""Losses that rematerialize in a scan: clipped in two passes, whatever is in them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from per_example import (
    clipped_mean,
    distance,
    norms_of,
    random,
    stacked_gradients,
    temporary_memory,
)
from quickly import jit_quickly

import optaxclip
from optaxclip.per_example import program

WIDE, LAYERS = 24, 3
KERNELS = {
    "a": random(0, LAYERS, WIDE, WIDE, scale=0.3),
    "b": random(1, LAYERS, WIDE, WIDE, scale=0.3),
    "bias": random(2, LAYERS, WIDE, scale=0.3),
}
PARAMS = {"layers": KERNELS, "head": random(3, WIDE, 5)}
INPUTS = random(4, 6, 4, WIDE)


@partial(jax.checkpoint, policy=None)
def layer(x, p):
    return jnp.tanh(x @ p["a"] + p["bias"][None]) @ p["b"], None


def scanned(params, x):
    x, _ = jax.lax.scan(layer, x, params["layers"])
    return jnp.sum(jnp.log(x @ params["head"] + 30))


def short(params, x):
    """A penalty without any loop."""
    head = params["head"]
    return jnp.sum(jnp.tanh(x @ head)) + jnp.sum(head**2)


def kernels(params):
    return [params["layers"]["a"], params["layers"]["b"]]


def penalized(params, x):
    return scanned(params, x) + 0.1 * sum(jnp.sum(w**2) for w in kernels(params))


def penalized_by_layer(params, x):
    """The penalty is added up in the loop, and another one outside of it."""

    @jax.checkpoint
    def step(carry, p):
        x, penalty = carry
        return (layer(x, p)[0], penalty + jnp.sum(p["a"] ** 2)), None

    (x, penalty), _ = jax.lax.scan(step, (x, 0.0), params["layers"])
    return jnp.sum(x @ params["head"]) + penalty + jnp.sum(params["layers"]["a"] ** 3)


def turned(params, x):
    """Kernels that are stored in another order than the loop takes them."""
    moved = {
        k: jnp.swapaxes(w, 1, 2) for k, w in params["layers"].items() if w.ndim > 2
    }
    return penalized({**params, "layers": {**params["layers"], **moved}}, x)


def in_parts(params, x):
    """Two loops, each over a part of the layers; there is a penalty on all."""
    for part in (slice(None, 1), slice(1, None)):
        some = {name: w[part] for name, w in params["layers"].items()}
        x, _ = jax.lax.scan(layer, x, some)
    penalty = sum(jnp.sum(w[1:] ** 2) for w in kernels(params))
    return jnp.sum(x @ params["head"]) + penalty + jnp.sum(params["layers"]["bias"])


def masked(params, x):
    """Kernels of which no rule knows the norm."""
    mask = np.tril(np.ones((WIDE, WIDE), np.float32))

    @jax.checkpoint
    def step(x, p):
        return layer(x, p | {"a": p["a"] * mask})

    x, _ = jax.lax.scan(step, x, params["layers"])
    return jnp.sum(x @ params["head"])


def convolved(params, x):
    """Convolutions, and a penalty on their kernels."""

    @jax.checkpoint
    def step(x, p):
        kernel = p["a"][None]
        x = jax.lax.conv_general_dilated(
            x[None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )[0]
        return layer(jnp.tanh(x), p)

    x, _ = jax.lax.scan(step, x, params["layers"])
    return jnp.sum(x @ params["head"]) + jnp.sum(params["layers"]["a"] ** 2)


LOSSES = [
    scanned, penalized, penalized_by_layer, turned, in_parts, masked, convolved,
]  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_values_are_those_of_every_example_clipped(loss):
    gradients = stacked_gradients(loss, PARAMS, (INPUTS,))
    norms = norms_of(gradients)
    limit = float(np.median(norms))
    gradient = jit_quickly(optaxclip.clipped_value_and_grad(loss, limit))
    examples, grads = gradient(PARAMS, INPUTS)
    np.testing.assert_allclose(examples.norm, norms, rtol=1e-5)
    assert distance(grads, clipped_mean(gradients, limit)) < 1e-5


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_only_the_inputs_of_the_layers_are_held(loss):
    program = str(jax.make_jaxpr(optaxclip.clipped_grad(loss, 1.0))(PARAMS, INPUTS))
    for layers in (1, 2, LAYERS):  # A checkpoint itself holds its inputs.
        assert program.count(f"f32[{layers},6,4,{WIDE}]") <= 1


@pytest.mark.parametrize("broken", [None, 0, 4])
def test_each_leaf_may_have_a_limit_of_its_own(broken):
    x, good = np.array(INPUTS), np.ones(6)
    if broken is not None:
        x[broken, 0, 0], good[broken] = np.nan, 0
    gradients = stacked_gradients(penalized, PARAMS, (INPUTS,))
    norms = [norms_of([g]) for g in gradients]
    limits = [float(np.median(n)) for n in norms]
    given = jax.tree.unflatten(jax.tree.structure(PARAMS), limits)
    grads = jit_quickly(optaxclip.clipped_grad(penalized, given))(PARAMS, x)
    factors = [np.minimum(1, c / n) * good for c, n in zip(limits, norms, strict=True)]
    pairs = zip(factors, gradients, strict=True)
    wanted = [np.einsum("n,n...->...", f, g) / 6 for f, g in pairs]
    assert distance(grads, wanted) < 1e-5


def large(dtype, penalty=0.0):
    """Layers of which the values of one are a small part of all that is held."""

    def loss(params, x):
        layers = jax.tree.map(lambda w: w.astype(dtype), params["layers"])
        x, _ = jax.lax.scan(layer, x.astype(dtype), layers)
        found = jnp.sum((x @ params["head"].astype(dtype)).astype(jnp.float32) ** 2)
        return found + penalty * sum(jnp.sum(w**2) for w in kernels(params))

    return loss


MANY = {"layers": {"a": 1.0, "b": 2.0, "bias": 0.3}, "head": 0.5}


@pytest.mark.parametrize(
    ("loss", "limits"),
    [
        (large(jnp.float32, 1e-3), 1.0),
        (large(jnp.float32), MANY),
        (large(jnp.bfloat16), 1.0),
        (large(jnp.bfloat16, 1e-3), MANY),
    ],
    ids=["a penalty", "many limits", "bfloat16", "all of it"],
)
def test_memory_is_near_that_of_the_plain_gradient(loss, limits):
    wide, layers = 64, 6
    kernel, bias = jnp.zeros((layers, wide, wide)), jnp.zeros((layers, wide))
    inside = {"a": kernel, "b": kernel, "bias": bias}
    params = {"layers": inside, "head": jnp.zeros((wide, 8))}
    x = jnp.zeros((256, 16, wide))

    def plain(params, x):
        return jnp.mean(jax.vmap(loss, (None, 0))(params, x))

    clipped = temporary_memory(optaxclip.clipped_grad(loss, limits), params, x)
    # XLA allocates the inputs of the layers for both passes: 1.8 for very many layers.
    assert clipped < 1.8 * temporary_memory(jax.grad(plain), params, x)


@pytest.mark.parametrize("penalty", [0.0, 1e-3])
def test_an_example_moves_layers_in_bfloat16_by_no_more_than_its_limit(penalty):
    loss = large(jnp.bfloat16, penalty)
    gradient = optaxclip.clipped_grad(loss, 0.5, denominator=1, dtype=jnp.float32)
    step = jit_quickly(gradient)
    for i in range(6):
        grads = step(PARAMS, INPUTS, mask=jnp.arange(6) == i)
        leaves = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads)]
        moved = np.sqrt(sum((g**2).sum() for g in leaves))
        assert moved == pytest.approx(0.5, rel=2e-6)


def test_layers_in_bfloat16_are_as_right_as_those_of_jax():
    exact = stacked_gradients(large(jnp.float32), PARAMS, (INPUTS,))
    limit = float(np.median(norms_of(exact)))
    wanted, loss = clipped_mean(exact, limit), large(jnp.bfloat16)
    rounded = clipped_mean(stacked_gradients(loss, PARAMS, (INPUTS,)), limit)
    grads = jit_quickly(optaxclip.clipped_grad(loss, limit))(PARAMS, INPUTS)
    assert distance(grads, wanted) < 1.2 * distance(rounded, wanted)


MESH = {"axis_types": (jax.sharding.AxisType.Auto,)}


@pytest.mark.parametrize("loss", [penalized, short])
@pytest.mark.parametrize("check_vma", [False, True])
def test_a_penalty_is_not_added_up_over_a_mesh(loss, check_vma):
    gradients = stacked_gradients(loss, PARAMS, (INPUTS,))
    limit = float(np.median(norms_of(gradients)))
    each, whole = PartitionSpec("data"), PartitionSpec()
    step = jax.shard_map(
        optaxclip.clipped_grad(loss, limit, axis_name="data"),
        mesh=jax.make_mesh((2,), ("data",), **MESH),
        in_specs=(whole, each),
        out_specs=whole,
        check_vma=check_vma,
    )
    wanted = clipped_mean(gradients, limit)
    assert distance(jit_quickly(step)(PARAMS, INPUTS), wanted) < 1e-5


def test_no_device_gathers_the_batch():
    mesh = jax.make_mesh((2,), ("data",), **MESH)
    x = jax.device_put(INPUTS, NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    step = jit_quickly(optaxclip.clipped_grad(penalized, 1.0))
    assert "all-gather" not in str(step.lower(params, x).compile().as_text())


@jax.checkpoint
def long(x, w):
    """More equations than a call of what is traced takes."""
    for i in range(24):
        x = jnp.sin(x + i)
    return x @ w


@pytest.mark.parametrize("depth", [2, 6])
def test_blocks_that_repeat_are_traced_once(depth, monkeypatch):
    counted = []

    def counting(eqn, *args, **changed):
        counted.append(eqn.primitive.name)
        return evaluate(eqn, *args, **changed)

    evaluate = program.evaluate
    monkeypatch.setattr(program, "evaluate", counting)

    def loss(params, x):
        for w in params:
            x = long(x, w)
        return jnp.sum(x**2)

    params, x = list(KERNELS["a"]) * (depth // 2), INPUTS
    params = params[:depth]
    gradient = optaxclip.clipped_grad(loss, 1e30)
    grads = jit_quickly(gradient)(params, x)
    # The forward pass of each, and the backward pass of one.
    assert counted.count("cos") == 24
    wanted = clipped_mean(stacked_gradients(loss, params, (x,)), 1e30)
    assert distance(grads, wanted) < 1e-5


@pytest.mark.parametrize("prevent_cse", [False, True])
def test_blocks_that_repeat_with_other_numbers_are_others(prevent_cse):
    block = jax.checkpoint(lambda x, w, i: long(x * i, w), prevent_cse=prevent_cse)

    def loss(params, x):
        for i, w in enumerate(params):
            x = block(x, w, i + 1)
        return jnp.sum(x**2)

    params = list(KERNELS["a"])
    wanted = clipped_mean(stacked_gradients(loss, params, (INPUTS,)), 1e30)
    grads = jit_quickly(optaxclip.clipped_grad(loss, 1e30))(params, INPUTS)
    assert distance(grads, wanted) < 1e-5
