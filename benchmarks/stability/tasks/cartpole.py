"""A pole on a cart, balanced by an actor-critic that learns from its own episodes.

The system of Barto, Sutton and Anderson (1983) as in Gymnasium's CartPole-v1, with
episodes of at most 200 steps, and policy gradients with a learned baseline.
"""

import jax
import jax.numpy as jnp
import optax

from benchmarks.stability.task import Params, Task, half_decades, normal

EPISODES, LONGEST, HIDDEN, TEST = 8, 200, 16, 16
DISCOUNT, VALUE_SHARE = 0.99, 0.5


def init(key: jax.Array) -> Params:
    keys = jax.random.split(key, 4)
    return {
        name: {
            "first": normal(keys[2 * n], 4, HIDDEN),
            "first_bias": jnp.zeros(HIDDEN),
            "last": normal(keys[2 * n + 1], HIDDEN, outputs, gain=0.1),
            "last_bias": jnp.zeros(outputs),
        }
        for n, (name, outputs) in enumerate((("policy", 2), ("value", 1)))
    }


def answer(layers: Params, state: jax.Array) -> jax.Array:
    hidden = jnp.tanh(state @ layers["first"] + layers["first_bias"])
    return hidden @ layers["last"] + layers["last_bias"]


def moved(state: jax.Array, action: jax.Array) -> jax.Array:
    """One fiftieth of a second of Euler's method."""
    _, speed, angle, turning = state
    force = jnp.where(action == 1, 10.0, -10.0)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    pushed = (force + 0.05 * turning**2 * sine) / 1.1
    tilting = (9.8 * sine - cosine * pushed) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    driven = pushed - 0.05 * tilting * cosine / 1.1
    return state + 0.02 * jnp.stack([speed, driven, turning, tilting])


def played(params: Params, key: jax.Array):
    """Play one episode; return states, actions, and which steps were before its end."""
    start_key, key = jax.random.split(key)
    start = jax.random.uniform(start_key, (4,), minval=-0.05, maxval=0.05)

    def step(carry: tuple[jax.Array, jax.Array], key: jax.Array):
        state, alive = carry
        action = jax.random.categorical(key, answer(params["policy"], state))
        after = moved(state, action)
        fallen = (jnp.abs(after[0]) > 2.4) | (jnp.abs(after[2]) > 0.2095)
        return (jnp.where(alive, after, state), alive & ~fallen), (state, action, alive)

    keys = jax.random.split(key, LONGEST)
    return jax.lax.scan(step, (start, jnp.array(True)), keys)[1]


def batch(key: jax.Array, variant: jax.Array) -> jax.Array:
    del variant
    return jax.random.split(key, EPISODES)


def loss(params: Params, key: jax.Array) -> jax.Array:
    """The loss of one episode that the policy itself played."""
    states, actions, alive = played(jax.lax.stop_gradient(params), key)

    def earlier(later: jax.Array, reward: jax.Array):
        total = reward + DISCOUNT * later
        return total, total

    _, returns = jax.lax.scan(earlier, 0.0, jnp.float32(alive), reverse=True)
    values = answer(params["value"], states)[:, 0]
    chosen = jax.nn.log_softmax(answer(params["policy"], states))
    chosen = jnp.take_along_axis(chosen, actions[:, None], axis=1)[:, 0]
    advantages = returns - values
    losses = VALUE_SHARE * advantages**2 - jax.lax.stop_gradient(advantages) * chosen
    return jnp.sum(losses * alive) / LONGEST


def score(params: Params, key: jax.Array) -> jax.Array:
    """The share of the longest episode that is missing, or NaN for a broken policy."""
    _, _, alive = jax.vmap(played, (None, 0))(params, jax.random.split(key, TEST))
    finite = jnp.isfinite(optax.tree.norm(params))
    return jnp.where(finite, jnp.mean(~alive), jnp.nan)


TASKS = (
    Task(
        name="cartpole",
        title="cart and pole, actor-critic, Adam",
        init=init,
        batch=batch,
        loss=loss,
        score=score,
        measured="share of 200 steps for which the pole was down",
        direction=optax.scale_by_adam,
        rates=half_decades(-6, 0),
        steps=150,
        failed=0.93,
        solved=0.1,
    ),
)
