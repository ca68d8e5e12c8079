"""Random small programs: whatever the walk makes of them, the gradients agree."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from per_example import clipped_mean, distance, norms_of, random, stacked_gradients
from quickly import jit_quickly

import optaxclip

WIDTH = 4


def spread(w, x):
    return jnp.broadcast_to(w, x.shape)


def looped(x, p):
    step = lambda h, row: (jnp.tanh(h @ p["a"] + row @ p["b"]), h)  # noqa: E731
    return jax.lax.scan(step, x[0], x)[1]


def chosen(x, p):
    return jax.lax.cond(
        x.sum() > 0, lambda: x @ p["a"] + spread(p["c"], x), lambda: jnp.sin(x)
    )


def convolved(x, p):
    image = x[None, :, :]
    return jax.lax.conv_general_dilated(
        image, p["k"], (1,), ((1, 1),), dimension_numbers=("NWC", "WIO", "NWC")
    )[0]


def counted(x, p):
    kernels = jnp.stack([p["a"], p["b"]])

    @jax.checkpoint
    def layer(i, h):
        return jnp.tanh(h @ (kernels[i] * (1 + i.astype(h.dtype))))

    return jax.lax.fori_loop(0, 2, layer, x)


def told(x, p):
    jax.debug.callback(lambda _: None, x)
    return x


STEPS = {
    "a": lambda x, p: x @ p["a"],
    "a transposed": lambda x, p: x @ p["a"].T,
    "b scaled": lambda x, p: x @ (0.5 * p["b"]),
    "b from the left": lambda x, p: p["b"] @ x,
    "ab": lambda x, p: x @ (p["a"] @ p["b"]),
    "tanh a": lambda x, p: x @ jnp.tanh(p["a"]),
    "half of a": lambda x, p: jnp.concatenate([x @ p["a"][:, :2], x[:, 2:]], axis=1),
    "bias": lambda x, p: x + spread(p["c"], x),
    "scale": lambda x, p: x * spread(p["c"], x),
    "divided": lambda x, p: x / spread(2 + p["c"] ** 2, x),
    "sine": lambda x, p: jnp.sin(x),
    "square": lambda x, p: x * x * 0.3,
    "relu": lambda x, p: jax.nn.relu(x),
    "outer": lambda x, p: x + jnp.einsum("ta,b->tb", x, p["c"]),
    "reshaped": lambda x, p: (
        x.reshape(-1, 2, 2).transpose(0, 2, 1).reshape(-1, WIDTH)
        @ p["a"].reshape(2, 2, WIDTH).reshape(WIDTH, WIDTH)
    ),
    "attention": lambda x, p: jax.nn.softmax(x @ p["a"] @ x.T) @ x,
    "rows": lambda x, p: x + p["t"][jnp.argmax(x, axis=1)],
    "checkpoint": lambda x, p: jax.checkpoint(lambda y, w: jnp.tanh(y @ w))(x, p["b"]),
    "jit": lambda x, p: jax.jit(lambda y, w: y @ w + y @ w.T)(x, p["a"]),
    "loop": looped,
    "loop by counter": counted,
    "loop that reads nothing": lambda x, p: jax.lax.map(lambda _: x[0] @ p["a"], x),
    "callback": told,
    "cond": chosen,
    "convolution": convolved,
    "vmap": lambda x, p: jax.vmap(lambda row: row @ p["a"])(x),
    "frozen": lambda x, p: x @ jax.lax.stop_gradient(p["b"]),
}

PARAMS = {
    "a": random(0, WIDTH, WIDTH, scale=0.5),
    "b": random(1, WIDTH, WIDTH, scale=0.5),
    "c": random(2, WIDTH),
    "k": random(3, 3, WIDTH, WIDTH, scale=0.4),
    "t": random(4, WIDTH, WIDTH),
}


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4),
    st.sampled_from([0.0, 1e-2]),
)
def test_random_programs_equal_every_example_clipped(steps, decay):
    def loss(params, x):
        for step in steps:
            x = STEPS[step](x, params)
        loss = jnp.sum(jnp.sin(x)) + jnp.sum(x) * 0.1
        squares = sum(jnp.sum(w**2) for w in params.values()) if decay else 0.0
        return loss + decay * squares

    batch = (random(5, 3, WIDTH, WIDTH),)
    gradients = stacked_gradients(loss, PARAMS, batch)
    norms = norms_of(gradients)
    limit = float(np.median(norms))
    clip = optaxclip.clipped_value_and_grad(loss, limit)
    examples, grads = jit_quickly(clip)(PARAMS, *batch)
    np.testing.assert_allclose(examples.norm, norms, rtol=1e-5, atol=1e-6)
    if limit > 0:
        assert distance(grads, clipped_mean(gradients, limit)) < 1e-5
