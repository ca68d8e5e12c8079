"""Weights that go through many nonlinear functions before they are used."""

import jax
import jax.numpy as jnp
import numpy as np
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

STEPS, WIDTH, EXAMPLES = 60, 48, 8
WEIGHTS, X = numbers(0, WIDTH, WIDTH), numbers(1, EXAMPLES, WIDTH) / 10


def nonlinear(w):
    """One step, of which the gradient is a sum."""
    return jnp.tanh(w) * 0.9 + w * 0.1


def through(step, times=STEPS):
    """A product with a weight after many steps."""

    def loss(w, x):
        for _ in range(times):
            w = step(w)
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    return loss


def used_twice(w, x):
    """Two products of the same steps, and a third that enters between them."""
    first = nonlinear(nonlinear(w))
    last = nonlinear(nonlinear(first))
    return jnp.sum(jnp.sin(x @ last) + jnp.cos(last @ x) + jnp.tanh(x @ first))


def penalized(w, x):
    """All examples add something alike."""
    first = nonlinear(nonlinear(w))
    return jnp.sum(jnp.sin(x @ nonlinear(first))) + 0.1 * jnp.sum(first**2)


def chosen(w):
    """A select, a quotient, a difference and a minus."""
    return jnp.where(w > 0.1, -w / (1 + w**2), 0.0) - jnp.cos(w)


LOSSES = {
    "nonlinear": through(nonlinear),
    "chosen": through(chosen, 3),
    "turned": through(lambda w: w + 0.1 * jnp.tanh(w).T, 10),
    "used twice": used_twice,
    "penalized": penalized,
}
PARAMS = dict.fromkeys(sorted(LOSSES), WEIGHTS)


def total(params, x):
    """All losses, each of a weight of its own."""
    return sum(loss(params[kind], x) for kind, loss in LOSSES.items())


def test_weights_after_many_steps_are_clipped_like_their_gradients():
    with jax.enable_x64(True):
        gradients = jit_quickly(jax.vmap(jax.grad(total), (None, 0)))(PARAMS, X)
        gradients = {kind: [np.asarray(g)] for kind, g in gradients.items()}
    limits = {kind: float(np.median(norms_of(g))) for kind, g in gradients.items()}
    clip = jit_quickly(optaxclip.clipped_value_and_grad(total, limits))
    examples, grads = clip(jax.tree.map(jnp.float32, PARAMS), jnp.float32(X))
    for kind, gradient in gradients.items():
        norms = norms_of(gradient)
        np.testing.assert_allclose(examples.norm[kind], norms, 1e-5, err_msg=kind)
        wanted = clipped_mean(gradient, limits[kind])
        assert distance(grads[kind], wanted) < 1e-5, kind


def test_many_steps_of_a_weight_take_no_more_memory_than_all_its_gradients():
    loss, arrays = LOSSES["nonlinear"], (jnp.float32(WEIGHTS), jnp.float32(X))
    held = temporary_memory(optaxclip.clipped_grad(loss, 1.0), *arrays)
    stacked = temporary_memory(clipped_one_by_one(loss), *arrays)
    assert held < 1.1 * stacked


def test_many_steps_of_a_weight_are_one_for_each_example():
    """The loop over examples multiplies once, and applies no step."""
    gradient = optaxclip.clipped_grad(LOSSES["nonlinear"], 1.0)
    program = jax.make_jaxpr(gradient)(jnp.float32(WEIGHTS), jnp.float32(X))
    loops = [e for e in program.jaxpr.eqns if e.primitive.name == "scan"]
    assert max(len(str(loop).splitlines()) for loop in loops) < 2 * STEPS
