"""Another JAX: what it does not document may be named otherwise, moved or gone."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir
from jax.sharding import Mesh, PartitionSpec
from per_example import clipped_mean, distance, random, stacked_gradients

import optaxclip
from optaxclip.jaxprs import evaluate_precisely

# How JAX will make some of its calls, which a user may choose already.
COMING = ("jax_remat3", "jax_custom_vjp3", "jax_custom_jvp3")
REMAT3 = getattr(jax.config, "jax_remat3", False)


def told(loss, *args):
    """What is told of a loss with one leaf: its way, and why."""
    (row,) = optaxclip.explain(loss, *args).rows
    return row.way, row.why


def is_right(loss, params, *batch):
    """Whether the gradients come out as JAX's own, clipped."""
    gradients = stacked_gradients(loss, params, batch)
    grads = jax.jit(optaxclip.clipped_grad(loss, 1.0))(params, *batch)
    return distance(grads, clipped_mean(gradients, 1.0)) < 1e-5


def fresh(code):
    """What code prints in a Python that has imported nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_needs_the_class_of_closed_jaxprs_by_its_name():
    code = """
import jax
import jax.extend.core
vars(jax.extend.core).pop("ClosedJaxpr", None)
import jax.numpy as jnp
import optax
import optaxclip
from optaxclip.jaxprs import cut

optimizer = optaxclip.skip_nonfinite(optax.sgd(1.0, momentum=0.5))
step, state = jax.jit(optimizer.update), optimizer.init(jnp.zeros(2))
for first in (1.0, jnp.nan, 2.0):
    updates, state = step(jnp.array([first, 0.0]), state)
    print(*updates)
print(len(cut(jax.make_jaxpr(lambda x: x + 1)(1.0), set())))
loss = lambda w, x: jnp.sum(jax.checkpoint(lambda w: jnp.tanh(x @ w))(w))
print(*optaxclip.clipped_grad(loss, 1e9)(jnp.zeros(2), jnp.ones((3, 2))))
"""
    printed = ["-1.0 -0.0", "0.0 0.0", "-2.5 -0.0", "1", "1.0 1.0"]
    assert fresh(code).splitlines() == printed


def layers(params, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params)[0]


def by_the_slope(params, x):
    """A penalty on the gradient by the input, as critics have."""
    slope = jax.grad(lambda x: jnp.sum(jax.checkpoint(layers)(params, x) ** 2))(x)
    return jnp.sum(slope**2)


def traced_before(params, x):
    return jnp.sum(jax.jit(layers).trace(params, x)(params, x) ** 2)


@pytest.mark.skipif(REMAT3, reason="a checkpoint to come leaves no such call")
def test_a_gradient_by_the_input_is_a_closed_call():
    params, x = jnp.ones((2, 8, 8)), jnp.ones((3, 8))
    primitives = str(jax.make_jaxpr(jax.grad(by_the_slope))(params, x))
    assert "closed_call" in primitives or "eval_jaxpr" in primitives


@pytest.mark.parametrize("loss", [by_the_slope, traced_before])
def test_products_inside_a_closed_call_are_found(loss):
    if loss is traced_before and "__call__" not in vars(jax.stages.Traced):
        pytest.skip("this JAX calls nothing that it traced before")
    params, x = random(0, 2, 64, 64, scale=0.1), random(1, 2, 3, 64)
    if not (REMAT3 and loss is by_the_slope):  # there it is formed, and as right
        assert told(loss, params, x[0])[0] == "inner products"
    assert is_right(loss, params, x)


def outlined(name, parameter):
    """A matrix whose gradient comes out of a call that no one has heard of."""
    call = Primitive(name)
    call.multiple_results = True

    def evaluate(*values, **params):
        return jaxpr_as_fun(params[parameter])(*values)

    def batched(values, dims, **params):
        found = jax.vmap(lambda *x: evaluate(*x, **params), dims)(*values)
        return found, [0] * len(found)

    call.def_impl(evaluate)
    call.def_abstract_eval(lambda *_, **params: params[parameter].out_avals)
    batching.primitive_batchers[call] = batched
    mlir.register_lowering(call, mlir.lower_fun(evaluate, multiple_results=True))

    @jax.custom_vjp
    def times(w, x):
        return x @ w

    def backward(residuals, cotangent):
        w, x = residuals
        inside = jax.make_jaxpr(lambda x, c: [x.T @ c])(x, cotangent)
        return *call.bind(x, cotangent, **{parameter: inside}), cotangent @ w.T

    times.defvjp(lambda w, x: (x @ w, (w, x)), backward)
    return times


@pytest.mark.parametrize(
    ("name", "parameter"),
    [("outline", "jaxpr"), ("outline", "program"), ("scan", "jaxpr"), ("jit", "body")],
)
def test_a_call_that_is_not_known_is_named_and_taken_as_it_is(name, parameter):
    """Also one that has the name of a known call, but other parameters."""
    times = outlined(name, parameter)

    def loss(w, x):
        return jnp.sum(jnp.tanh(times(w, x)))

    params, x = random(0, 13, 7), random(1, 5, 3, 13)
    assert told(loss, params, x[0]) == (
        "example by example",
        f"it comes out of the call {name}, whose inside is not known",
    )
    assert is_right(loss, params, x)


def test_what_is_spread_over_a_mesh_is_not_looked_into():
    split, whole = PartitionSpec("model"), PartitionSpec()
    layer = jax.shard_map(
        lambda w, x: jax.lax.psum(x @ w, "model"),
        mesh=Mesh(np.asarray(jax.devices()[:2]), ("model",)),
        in_specs=(split, split),
        out_specs=whole,
    )
    params, x = jnp.ones((8, 5)), jnp.ones(8)
    way, reason = told(lambda w, x: jnp.sum(layer(w, x)), params, x)
    assert way == "example by example"
    assert "the call shard_map" in reason


def test_the_ways_to_come_hide_no_product():
    """Each of the three layers is made in its own one."""
    flags = [flag for flag in COMING if hasattr(jax.config, flag)]
    if not flags:
        pytest.skip("this JAX has none of them")
    code = f"""
import jax
import jax.numpy as jnp
for flag in {flags}:
    jax.config.update(flag, True)
from test_jaxprs import is_right, layers, random
import optaxclip

@jax.custom_vjp
def by_vjp(w, x):
    return x @ w

by_vjp.defvjp(
    lambda w, x: (x @ w, (w, x)), lambda kept, c: (kept[1].T @ c, c @ kept[0].T)
)

@jax.custom_jvp
def by_jvp(w, x):
    return x @ w

@by_jvp.defjvp
def by_jvp_rule(primals, tangents):
    (w, x), (dw, dx) = primals, tangents
    return x @ w, x @ dw + dx @ w

def again(w, x):
    return jax.checkpoint(lambda w, x: layers(w[None], x))(w, x)

for layer in (by_vjp, by_jvp, again):
    loss = lambda w, x: jnp.sum(jnp.tanh(jax.nn.relu(layer(w, x))))
    params, x = random(0, 64, 64, scale=0.1), random(1, 4, 3, 64)
    print(optaxclip.explain(loss, params, x[0]))
    print(is_right(loss, params, x))
"""
    printed = fresh(code)
    assert printed.count("inner products") == printed.count("True") == 3


def test_a_program_is_evaluated_precisely_where_it_asks_for_no_precision():
    def called(x):
        def step(total, _):
            return total + x @ x, None

        return jax.jit(lambda x: jnp.matmul(x, x, precision="high"))(x), jax.lax.cond(
            jnp.sum(x) > 0, lambda: jax.lax.scan(step, x, None, length=2)[0], lambda: x
        )

    with jax.default_matmul_precision(None):
        traced = jax.make_jaxpr(called)(jnp.eye(2))
        found = jax.make_jaxpr(lambda x: evaluate_precisely(traced, [x]))(jnp.eye(2))
    assert [str(traced).count(word) for word in ("HIGHEST", "HIGH,")] == [0, 1]
    assert [str(found).count(word) for word in ("HIGHEST", "HIGH,")] == [2, 1]
