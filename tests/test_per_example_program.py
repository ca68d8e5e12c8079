"""A traced program gives what is asked for, and computes nothing else."""

import gc
import itertools
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from per_example import clipped_mean, distance, norms_of, random, stacked_gradients
from quickly import jit_quickly

import optaxclip
from optaxclip.per_example.batches import one_example
from optaxclip.per_example.tracing import trace


def traced(loss, params, *batch):
    """A trace with its plans, and the batch's recorded evaluation as a jaxpr."""
    in_axes = (0,) * len(batch)
    found = trace(loss, params, one_example(in_axes, batch), False)
    record = jax.make_jaxpr(lambda p, *b: found.record(p, b, in_axes).kept)(
        params, *batch
    )
    return found, record


def shapes_in(jaxpr):
    """The shapes of all values that a jaxpr computes, also inside its calls."""
    for eqn in jaxpr.eqns:
        yield from (out.aval.shape for out in eqn.outvars)
        for value in eqn.params.values():
            parts = value if isinstance(value, tuple) else (value,)
            for part in parts:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from shapes_in(inner)


def looped(params, sequence):
    def step(h, x):
        h = jnp.tanh(x @ params["x"] + h @ params["h"])
        return h, h

    return jnp.sum(jax.lax.scan(step, jnp.zeros(17), sequence)[1] ** 2)


def layered(params, x):
    @jax.checkpoint
    def layer(x, w):
        return jnp.tanh(x @ w), None

    return jnp.sum(jax.lax.scan(layer, x, params)[0] ** 2)


def embedded(table, tokens):
    return jnp.sum(jnp.tanh(jnp.take(table, tokens, axis=0).mean(0)))


CASES = {
    "recurrent": (
        looped,
        {"x": random(0, 13, 17), "h": random(1, 17, 17)},
        (random(2, 5, 3, 13),),
        {(5, 13, 17), (5, 17, 13), (5, 17, 17)},
    ),
    "layers": (
        layered,
        random(0, 4, 11, 11),
        (random(1, 5, 3, 11),),
        {(5, 11, 11), (5, 4, 11, 11), (4, 5, 11, 11)},
    ),
    "table": (
        embedded,
        random(0, 43, 7),
        (jnp.zeros((5, 3), jnp.int32),),
        {(5, 43, 7)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_no_gradient_of_a_single_example_is_formed(case):
    loss, params, batch, stacked = CASES[case]
    _, record = traced(loss, params, *batch)
    assert not stacked & set(shapes_in(record.jaxpr))
    whole = jax.make_jaxpr(jax.vmap(jax.grad(loss), (None, 0)))(params, *batch)
    assert stacked & set(shapes_in(whole.jaxpr))  # so the test would see one


def test_the_loss_is_called_once():
    calls = []

    def loss(w, x):
        calls.append(x.shape)
        return jnp.sum(jnp.tanh(x @ w))

    jax.make_jaxpr(optaxclip.clipped_grad(loss, 1.0))(
        jnp.ones((3, 2)), jnp.ones((4, 3))
    )
    assert calls == [(3,)]


def test_what_a_loss_closes_over_is_freed_with_it():
    def constant_after_use():
        constant = jnp.array([3.0, 4.0])
        clipped = optaxclip.clipped_grad(
            lambda w, x: jnp.sum(jnp.tanh(x @ w) * constant), 1.0
        )
        jax.block_until_ready(clipped(jnp.ones((3, 2)), jnp.ones((4, 3))))
        return weakref.ref(constant)

    freed = constant_after_use()
    gc.collect()
    assert freed() is None


def test_what_a_checkpoint_computes_again_is_kept_apart():
    _, params, batch, _ = CASES["layers"]
    _, record = traced(layered, params, *batch)
    assert "optimization_barrier" in str(record)


def halved(state, unread):
    """A state that a loop halves once for each entry of what no step reads."""
    return jax.lax.scan(lambda h, _: (h / 2, None), state, unread)[0]


def over_a_tree(w, x):
    """A layer for each of three kernels, in a tree with leaves that no layer reads."""
    tree = {"w": jnp.stack([w, w, w]) / 2, "unread": jnp.outer(jnp.ones(3), x)}
    step = jax.checkpoint(lambda h, p: jnp.tanh(h @ p["w"]))
    return jax.lax.scan(lambda h, p: (step(h, p), None), x, tree)[0]


UNREAD = {
    "a count": lambda w, x: halved(x @ w, jnp.zeros(3)),
    "numbers of the example": lambda w, x: halved(x @ w, x),
    "where no parameter is": lambda w, x: halved(x, x) @ w,
    "an argument of a map": lambda w, x: jax.lax.map(lambda _: jnp.tanh(x @ w), x),
    "a leaf of a tree": over_a_tree,
}


def test_inputs_that_no_step_of_a_loop_reads_may_be_anything():
    w, x = random(0, 4, 4), random(1, 5, 4)

    def loss(params, x):
        return sum(jnp.sum(f(params[kind], x) ** 2) for kind, f in UNREAD.items())

    params = dict.fromkeys(sorted(UNREAD), w)
    limits = dict.fromkeys(params, 1.0)
    clip = jax.jit(optaxclip.clipped_value_and_grad(loss, limits))
    examples, grads = clip(params, x)
    gradients = stacked_gradients(loss, params, (x,))
    for kind, gradient in zip(params, gradients, strict=True):
        norms = norms_of([gradient])
        np.testing.assert_allclose(examples.norm[kind], norms, 1e-5, err_msg=kind)
        assert distance(grads[kind], clipped_mean([gradient], 1.0)) < 1e-5, kind


@pytest.mark.parametrize("again", [lambda f: f, jax.checkpoint], ids=["", "checkpoint"])
def test_a_callback_sees_in_every_place_what_it_sees_under_vmap(again):
    seen = []

    def told(x):
        jax.debug.callback(seen.append, x)
        return x

    @again
    def layer(w, x):
        return jnp.tanh(told(x) @ w)

    def loss(w, x):
        stack = jnp.stack([told(w), w / 2])  # What all share is told once.
        step = lambda i, h: layer(stack[i] * (1 + i.astype(h.dtype)), h)  # noqa: E731
        h = jax.lax.fori_loop(0, 2, step, jnp.tanh(x @ jnp.tanh(w)))
        h, counted = jax.lax.scan(lambda h, i: (layer(w, h), i), h, jnp.arange(2.0))
        h = jax.lax.cond(x[0] > 0, lambda: layer(w, h), lambda: told(h) @ jnp.sin(w))
        return jnp.sum(h) + jnp.sum(counted) + 1e-2 * jnp.sum(w**2)

    def seen_by(function):
        seen.clear()
        found = jax.jit(function)(w, x)
        jax.effects_barrier()
        return found, sorted(tuple(np.ravel(part)) for part in seen)

    w, x = random(0, 4, 4), random(1, 3, 4)
    gradients, wanted = seen_by(jax.vmap(jax.grad(loss), (None, 0)))
    norms, got = seen_by(optaxclip.per_example_norms(loss))
    assert list(map(len, got)) == list(map(len, wanted))
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(wanted), 1e-4, 1e-6)
    np.testing.assert_allclose(norms, norms_of([gradients]), rtol=1e-5)


def test_a_random_key_may_be_part_of_a_program():
    def loss(w, x, key):
        return jnp.sum(x * w) * jax.random.uniform(key)

    keys = jax.random.split(jax.random.key(0), 5)
    found, _ = traced(loss, jnp.ones(3), jnp.ones((5, 3)), keys)
    recorded = found.record(jnp.ones(3), (jnp.ones((5, 3)), keys), (0, 0))
    np.testing.assert_allclose(
        recorded.value, 3 * jax.vmap(jax.random.uniform)(keys), rtol=1e-6
    )


# Before JAX 0.9 what was traced with `check_vma` could not be evaluated again.
CHECKS = [False] if jax.__version_info__ < (0, 9) else [False, True]


@pytest.mark.parametrize("check_vma", CHECKS)
def test_a_loss_may_be_spread_over_a_mesh_itself(check_vma):
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("model",))
    split, whole = PartitionSpec("model"), PartitionSpec()

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(split, split),
        out_specs=whole,
        check_vma=check_vma,
    )
    def layer(w, x):
        return jax.lax.psum(x @ w, "model")

    def loss(params, x):
        return jnp.sum(jnp.tanh(layer(params["split"], x)) @ params["whole"])

    params = {"split": random(0, 8, 5), "whole": random(1, 5, 3)}
    batch = (random(2, 6, 8),)
    gradients = stacked_gradients(loss, params, batch)
    grads = jax.jit(optaxclip.clipped_grad(loss, 1.0))(params, *batch)
    assert distance(grads, clipped_mean(gradients, 1.0)) < 1e-5


SIZES = {"b": 3, "i": 2, "j": 4, "k": 5}


@pytest.mark.parametrize("positions", [2, 40])
@pytest.mark.parametrize("shared", ["", "b"])
def test_axes_may_be_contracted_in_any_order(shared, positions):
    def normal(seed, axes):
        return random(seed, *((SIZES | {"t": positions})[axis] for axis in axes))

    # Each axis in each place, and once in the opposite order.
    axes = f"{shared}ijk"
    orders = [axes[i:] + axes[:i] for i in range(len(axes))] + [axes[::-1]]
    results = f"t{shared}k", f"k{shared}t"
    pairs = zip(orders, itertools.cycle(results), strict=False)
    cases = [f"t{shared}ij,{order}->{result}" for order, result in pairs]
    params = {case: normal(0, case.split(",")[1].split("-")[0]) for case in cases}
    weights = {result: normal(1, result) for result in results}

    def loss(params, x):
        contracted = {case: jnp.einsum(case, x, p) for case, p in params.items()}
        terms = [y * weights[case.split(">")[1]] for case, y in contracted.items()]
        return sum(map(jnp.sum, terms))

    batch = (jnp.stack([normal(seed, f"t{shared}ij") for seed in range(3)]),)
    gradients = stacked_gradients(loss, params, batch)
    limits = dict.fromkeys(params, 1.0)
    step = optaxclip.clipped_value_and_grad(loss, limits)
    examples, grads = jit_quickly(step)(params, *batch)
    for case, of_case in zip(sorted(params), gradients, strict=True):
        norms = norms_of([of_case])
        np.testing.assert_allclose(examples.norm[case], norms, rtol=1e-5)
        assert distance(grads[case], clipped_mean([of_case], 1.0)) < 1e-5
