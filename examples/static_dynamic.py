"""A constant limit, a scheduled one, and one that follows the weights.

A network with 64 hidden units learns a function of 3 of its 20 inputs. One target
in fifty is broken, off by 30 or so, and the gradient of every mini-batch with one of
them is many times too long. The loss includes an L1 and an L2 penalty on the
parameters: as part of the loss, they are clipped with the rest of the gradient. The
errors in the table are on clean, held-out targets.

* constant: `clip_global_norm(1.0)`, the same limit for all steps.
* scheduled: any `optax.Schedule` instead: loose while there is far to go, tight when
  only noise is left.
* adaptive: `agc`, one limit per unit in proportion to the unit's own weights (the
  table shows the largest of them).

There is no picture, since the four numbers of the table say it all.

    python static_dynamic.py
"""

from command_line import Parser, until_interrupted

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optaxclip

EXAMPLES, BATCH, EPOCHS, LEARNING_RATE = 1000, 50, 50, 0.05
STEPS = EPOCHS * EXAMPLES // BATCH
L1, L2 = 0.003, 0.001

CLIPS = {
    "no limit": optaxclip.clip_global_norm(jnp.inf),
    "constant": optaxclip.clip_global_norm(1.0),
    "scheduled": optaxclip.clip_global_norm(
        optax.exponential_decay(3.0, transition_steps=STEPS, decay_rate=0.05)
    ),
    "adaptive": optaxclip.agc(0.1),
}


class MLP(nnx.Module):
    """20 - 64 - 1 with a ReLU between."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(20, 64, rngs=rngs)
        self.output = nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, inputs):
        return self.output(nnx.relu(self.hidden(inputs))).squeeze(-1)


@jax.jit
def draw_data(key, broken):
    """Draw inputs and targets; a share `broken` of the targets is off by 30 or so."""
    input_key, where_key, error_key = jax.random.split(key, 3)
    inputs = jax.random.normal(input_key, (EXAMPLES, 20))
    targets = 2 * jnp.abs(inputs[:, 0]) + 1.5 * inputs[:, 1] - inputs[:, 2]
    is_broken = jax.random.bernoulli(where_key, broken, (EXAMPLES,))
    errors = 30 * jax.random.normal(error_key, (EXAMPLES,))
    return inputs, targets + is_broken * errors


def mean_squared_error(model, inputs, targets):
    """The error in the table."""
    return jnp.mean((model(inputs) - targets) ** 2)


def regularized_loss(model, inputs, targets):
    """The training loss: the error and the two penalties."""
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    l1 = sum(jnp.abs(param).sum() for param in params)
    l2 = sum(jnp.square(param).sum() for param in params)
    return mean_squared_error(model, inputs, targets) + L1 * l1 + L2 * l2


def train(clip, inputs, targets):
    """Return a trained model and the report of every step."""
    model = MLP(nnx.Rngs(0))
    clipped_sgd = optax.chain(clip, optax.sgd(LEARNING_RATE))
    optimizer = nnx.Optimizer(model, clipped_sgd, wrt=nnx.Param)

    @nnx.jit
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def step(carry, rows):
        model, optimizer = carry
        grads = nnx.grad(regularized_loss)(model, inputs[rows], targets[rows])
        optimizer.update(model, grads)
        return carry, optaxclip.report(optimizer.opt_state)

    shuffle = np.random.default_rng(0)
    order = np.stack([shuffle.permutation(EXAMPLES) for _ in range(EPOCHS)])
    _, report = step((model, optimizer), order.reshape(STEPS, BATCH))
    return model, report


def main():
    """Train with each clip, print a table, check the claims."""
    Parser(__doc__).parse_args()
    train_key, test_key = jax.random.split(jax.random.key(0))
    train_data = draw_data(train_key, broken=0.02)
    test_data = draw_data(test_key, broken=0.0)

    errors = {}
    print("            limit: first, last   clipped   test error")
    with until_interrupted(errors):
        for name, clip in CLIPS.items():
            model, report = train(clip, *train_data)
            errors[name] = nnx.jit(mean_squared_error)(model, *test_data)
            told = {key.rpartition("/")[2]: numbers for key, numbers in report.items()}
            limits, share = told["limit"], told["clipped_fraction"].mean()
            print(f"{name:10} {limits[0]:13.2f}, {limits[-1]:4.2f}", end=" ")
            print(f"{share:9.0%} {errors[name]:12.3f}")

    unclipped = errors.pop("no limit")
    for name, error in errors.items():
        assert error < unclipped / 10, f"a limit that is {name} ignores the broken"


if __name__ == "__main__":
    main()
