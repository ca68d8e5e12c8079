"""The models on which per-example clipping must equal JAX's gradients, clipped."""

import warnings

import flax.linen as linen
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from per_example import integers, random

N = 6  # examples


def drawn(init, *args):
    """Parameters of the shapes that a library's `init` gives, which may be slow."""
    leaves, treedef = jax.tree.flatten(jax.eval_shape(init, *args))
    numbers = [random(i, *leaf.shape, scale=0.5) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, numbers)


def cross_entropy(logits, label):
    return jax.nn.logsumexp(logits, axis=-1) - logits[label]


def dense(x, w, b):
    y = x @ w
    return y + jnp.broadcast_to(b, y.shape)


def mlp():
    params = [(random(i, 9, 9), random(i, 9)) for i in range(2)]

    def loss(params, x, label):
        for w, b in params[:-1]:
            x = jax.nn.relu(dense(x, w, b))
        return cross_entropy(dense(x, *params[-1]), label)

    return loss, params, (random(5, N, 9), integers(6, 9, N))


def convolutions():
    params = {
        "plain": random(0, 3, 3, 2, 8, scale=0.3),
        "grouped": random(1, 3, 2, 4, 12, scale=0.3),
        "dilated": random(2, 2, 2, 12, 20, scale=0.3),
        "up": random(3, 2, 2, 20, 4, scale=0.3),
        "bias": random(4, 4),
    }

    def convolve(x, w, **options):
        return jax.lax.conv_general_dilated(
            x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
        )

    def loss(params, image):
        x = convolve(
            image[None], params["plain"], window_strides=(2, 1), padding="SAME"
        )
        x = convolve(
            jnp.tanh(x),
            params["grouped"],
            window_strides=(1, 2),
            padding=((1, 0), (2, 1)),
            feature_group_count=2,
        )
        x = convolve(
            jnp.tanh(x),
            params["dilated"],
            window_strides=(1, 1),
            padding=((-1, 1), (0, 0)),
            rhs_dilation=(1, 2),
        )
        x = convolve(
            jnp.tanh(x),
            params["up"],
            window_strides=(1, 1),
            padding=((1, 1), (0, 1)),
            lhs_dilation=(2, 2),
        )
        x = x + jnp.broadcast_to(params["bias"], x.shape)
        return jnp.sum(jnp.tanh(x) ** 2)

    return loss, params, (random(7, N, 7, 8, 2),)


def normalized():
    """Group norm and layer norm."""
    params = {
        "w": random(0, 8, 8),
        "group": random(1, 8),
        "scale": random(2, 8),
        "bias": random(3, 8),
    }

    def standardize(x):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)

    def loss(params, x):
        x = standardize((x @ params["w"]).reshape(5, 2, 4)).reshape(5, 8)
        x = x * jnp.broadcast_to(params["group"], x.shape)
        x = dense(standardize(x), jnp.diag(params["scale"]), params["bias"])
        return jnp.sum(1 + jnp.sin(x))  # no value is small because it cancels

    return loss, params, (random(4, N, 5, 8),)


def tied():
    """An embedding whose matrix is also the output's; some tokens come twice."""
    params = {"table": random(0, 37, 24), "w": random(1, 24, 24, scale=0.2)}

    def loss(params, tokens, labels):
        x = jnp.tanh(params["table"][tokens] @ params["w"])
        return jax.vmap(cross_entropy)(x @ params["table"].T, labels).mean()

    return loss, params, (integers(2, 9, N, 5), integers(3, 37, N, 5))


def small_tied():
    """A table so small that each example's gradient is smaller than its factors."""
    params = random(0, 7, 4)

    def loss(table, tokens):
        return jnp.sum(jax.nn.logsumexp(table[tokens] @ table.T, axis=-1))

    return loss, params, (integers(2, 7, N, 9),)


def embedding():
    """Rows read by jnp.take, some of them beyond the table, with two indices."""
    params = {"a": random(0, 40, 12), "b": random(1, 8, 9, 12)}

    def loss(params, tokens):
        x = jnp.take(params["a"], tokens, axis=0, mode="fill", fill_value=0.0)
        y = params["b"][tokens[:-1] % 8, tokens[1:] % 9]
        return jnp.sum(jnp.tanh(x.mean(0) + y.mean(0)) ** 2)

    return loss, params, (integers(2, 45, N, 6),)


def attention():
    heads, width, features = 2, 16, 8
    params = {name: random(i, width, heads, features) for i, name in enumerate("qkv")}
    params |= {"o": random(4, heads, features, width), "scale": random(5, width)}
    params = jax.tree.map(lambda x: x * 0.3, params)

    def loss(params, x, label):
        y = x * jnp.broadcast_to(params["scale"], x.shape)
        q, k, v = (jnp.einsum("td,dhk->thk", y, params[n]) for n in "qkv")
        weights = jax.nn.softmax(jnp.einsum("thk,shk->hts", q, k))
        y = jnp.einsum("hts,shk->thk", weights, v)
        x = x + jnp.einsum("thk,hkd->td", y, params["o"])
        return cross_entropy(x.mean(0), label)

    return loss, params, (random(8, N, 5, width), integers(9, width, N))


def lstm():
    width = 13
    params = {
        "x": random(0, 9, 4 * width, scale=0.4),
        "h": random(1, width, 4 * width, scale=0.4),
        "b": random(2, 4 * width),
    }

    def loss(params, sequence):
        def step(carry, x):
            h, c = carry
            gates = x @ params["x"] + h @ params["h"] + params["b"]
            i, f, g, o = jnp.split(gates, 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        start = (jnp.zeros(width), jnp.zeros(width))
        _, states = jax.lax.scan(step, start, sequence)
        return jnp.sum(states**2)

    return loss, params, (random(3, N, 5, 9),)


def scanned():
    """Layers under scan, each rematerialized."""
    params = (random(0, 4, 10, 10, scale=0.4), random(1, 4, 10))

    def loss(params, x):
        @jax.checkpoint
        def layer(x, weights):
            return jnp.tanh(dense(x, *weights)), None

        x, _ = jax.lax.scan(layer, x, params)
        return jnp.sum(x**2)

    return loss, params, (random(2, N, 3, 10),)


def unrolled():
    """One matrix used three times."""
    params = random(0, 11, 11, scale=0.3)

    def loss(w, x):
        for _ in range(3):
            x = jnp.tanh(x @ w)
        return jnp.sum(x**2)

    return loss, params, (random(1, N, 11),)


def lora():
    """A frozen matrix with trained adapters."""
    frozen = random(0, 12, 12)
    params = {"a": random(1, 12, 3), "b": random(2, 3, 12, scale=0.1)}

    def loss(params, x):
        y = x @ frozen + 0.5 * ((x @ params["a"]) @ params["b"])
        return jnp.sum(jnp.tanh(y) ** 2)

    return loss, params, (random(3, N, 4, 12),)


def merged_lora():
    """Adapters multiplied with each other before they meet an example."""
    _, params, batch = lora()

    def merged(params, x):
        return jnp.sum(jnp.tanh(x @ (params["a"] @ params["b"])) ** 2)

    return merged, params, batch


def frozen_part():
    params = {"frozen": random(0, 6, 6), "trained": random(1, 6, 6)}

    def loss(params, x):
        x = jnp.tanh(x @ jax.lax.stop_gradient(params["frozen"]))
        return jnp.sum((x @ params["trained"]) ** 2)

    return loss, params, (random(2, N, 6),)


def branches():
    """Layers chosen by the example, under cond, and a scaled weight."""
    params = {"a": random(0, 13, 9), "b": random(1, 13, 9)}

    def loss(params, x):
        y = jax.lax.cond(
            x.sum() > 0,
            lambda p: x @ (p["a"] * 0.3),
            lambda p: jnp.sin(x @ p["b"]),
            params,
        )
        return jnp.sum(y**2)

    return loss, params, (random(2, N, 3, 13),)


def custom_rules():
    """Custom derivatives hold: one that differs from its function, one fused layer."""

    @jax.custom_jvp
    def rounded(w):
        return jnp.round(w)

    rounded.defjvps(lambda dw, out, w: 2 * dw)

    @jax.custom_vjp
    def layer(x, w):
        return jnp.tanh(x @ w)

    def forward(x, w):
        y = jnp.tanh(x @ w)
        return y, (x, w, y)

    def backward(kept, cotangent):
        x, w, y = kept
        cotangent = cotangent * (1 - y**2)
        return cotangent @ w.T, x.T @ cotangent

    layer.defvjp(forward, backward)
    params = {"w": random(0, 12, 9), "rounded": random(1, 9, 7, scale=2.0)}

    def loss(params, x):
        return jnp.sum((layer(x, params["w"]) @ rounded(params["rounded"])) ** 2)

    return loss, params, (random(2, N, 3, 12),)


def without_rules():
    """Parameters that are used in other ways than products."""
    params = {"max": random(0, 7), "tanh": random(1, 7, 4), "power": random(2, 3)}

    def loss(params, x):
        y = x @ jnp.tanh(params["tanh"])
        z = jnp.abs(x[:3]) ** params["power"]
        return jnp.sum(jnp.maximum(x, params["max"]) ** 2) + jnp.sum(y**2) + z.sum()

    return loss, params, (random(3, N, 7),)


def experts():
    """Axes that both factors share; a weight that is concatenated and sliced."""
    params = {
        "w": random(0, 3, 17, 14, scale=0.2),
        "in": random(1, 17, 8, scale=0.2),
        "out": random(2, 17, 9, scale=0.2),
    }

    def loss(params, x):
        w = jnp.concatenate([params["in"], params["out"]], axis=1)
        y = jnp.einsum("etd,edf->etf", x @ w, params["w"])
        return jnp.sum(jnp.tanh(y) ** 2)

    return loss, params, (random(3, N, 3, 2, 17),)


def flax_nnx():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 6, (3, 3), rngs=rngs)
            self.norm = nnx.LayerNorm(6, rngs=rngs)
            self.embed = nnx.Embed(11, 6, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(
                num_heads=2, in_features=6, decode=False, use_bias=False, rngs=rngs
            )
            self.out = nnx.Linear(6, 5, rngs=rngs)

        def __call__(self, image, token):
            x = self.norm(self.conv(image)).reshape(-1, 6)
            return self.out(jnp.tanh(self.attention(x)).mean(0) + self.embed(token))

    abstract = nnx.eval_shape(lambda: Model(nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    params = drawn(lambda: state)

    def loss(params, image, token, label):
        return cross_entropy(nnx.merge(graph, params)(image, token), label)

    batch = (random(0, N, 4, 4, 1), integers(1, 11, N), integers(2, 5, N))
    return loss, params, batch


def flax_linen():
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.GroupNorm(num_groups=2)(linen.Dense(8)(x))
            x = linen.RNN(linen.SimpleCell(7))(jax.nn.relu(x)[None])[0]
            return linen.Dense(5)(x[-1])

    model = Model()
    params = drawn(model.init, jax.random.key(0), jnp.zeros((5, 6)))

    def loss(params, x, label):
        return cross_entropy(model.apply(params, x), label)

    return loss, params, (random(0, N, 5, 6), integers(1, 5, N))


def equinox():
    eqx = pytest.importorskip("equinox")

    def build(key):
        return eqx.nn.MLP(6, 4, 8, 1, key=key), eqx.nn.Conv1d(2, 3, 3, key=key)

    shapes = eqx.filter_eval_shape(build, jax.random.key(0))
    params, static = eqx.partition(
        shapes, lambda x: isinstance(x, jax.ShapeDtypeStruct)
    )
    params = drawn(lambda: params)

    def loss(params, x):
        mlp, conv = eqx.combine(params, static)
        return jnp.sum(mlp(x) ** 2) + jnp.sum(conv(x.reshape(2, 3)) ** 2)

    return loss, params, (random(0, N, 6),)


def haiku():
    with warnings.catch_warnings():  # JAX 0.8 deprecates what its import reads
        warnings.simplefilter("ignore", DeprecationWarning)
        import haiku as hk

    @hk.without_apply_rng
    @hk.transform
    def model(x, token):
        x = hk.LayerNorm(-1, True, True)(hk.Conv1D(8, 3)(x))
        x = x + hk.Embed(11, 8)(token)
        h, _ = hk.dynamic_unroll(hk.GRU(7), x, jnp.zeros(7))
        return hk.Linear(5)(h[-1])

    batch = (random(0, N, 4, 3), integers(1, 11, N), integers(2, 5, N))
    params = drawn(model.init, jax.random.key(0), *(x[0] for x in batch[:2]))

    def loss(params, x, token, label):
        return cross_entropy(model.apply(params, x, token), label)

    return loss, params, batch


MODELS = [
    mlp,
    convolutions,
    normalized,
    tied,
    small_tied,
    embedding,
    attention,
    lstm,
    scanned,
    unrolled,
    lora,
    merged_lora,
    frozen_part,
    branches,
    custom_rules,
    without_rules,
    experts,
    flax_nnx,
    flax_linen,
    equinox,
    haiku,
]
