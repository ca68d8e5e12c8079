"""A small network whose gradients are clipped to a global norm of 1.

The network has ten inputs, a hidden layer of 100 ReLU units and ten outputs; it is
trained by plain SGD on the mean squared error. TensorFlow's `tf.clip_by_global_norm`
returns the norm before clipping along with the clipped gradients. Here the optimizer
clips, and `optaxclip.report` reads the norms before and after from its state. There is
no picture, since the table that is printed is the point.

    python mlp_regression.py
"""

from command_line import Parser, until_interrupted

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optaxclip

EXAMPLES, BATCH, EPOCHS = 1000, 50, 100
LEARNING_RATE, MAX_NORM = 0.01, 1.0


class MLP(nnx.Module):
    """10 - 100 - 10 with a ReLU between."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(10, 100, rngs=rngs)
        self.output = nnx.Linear(100, 10, rngs=rngs)

    def __call__(self, inputs):
        return self.output(nnx.relu(self.hidden(inputs)))


def mean_squared_error(model, inputs, targets):
    """The mean over examples and outputs."""
    return jnp.mean((model(inputs) - targets) ** 2)


@nnx.jit
def train_epoch(model, optimizer, inputs, targets):
    """Take one step per batch, in place; return every step's loss, norm and report."""

    @nnx.scan(in_axes=(nnx.Carry, 0, 0), out_axes=(nnx.Carry, 0))
    def step(carry, inputs, targets):
        model, optimizer = carry
        loss, grads = nnx.value_and_grad(mean_squared_error)(model, inputs, targets)
        optimizer.update(model, grads)
        norm = optaxclip.tree_norm(grads)  # Only to check the report below.
        return carry, (loss, norm, optaxclip.report(optimizer.opt_state))

    return step((model, optimizer), inputs, targets)[1]


def main():
    """Train for 100 epochs, print a table, check the claims."""
    Parser(__doc__).parse_args()
    data_key, map_key = jax.random.split(jax.random.key(0))
    inputs = jax.random.normal(data_key, (EXAMPLES, 10))
    targets = inputs @ jax.random.normal(map_key, (10, 10))

    model = MLP(nnx.Rngs(0))
    clipped_sgd = optax.chain(
        optaxclip.clip_global_norm(MAX_NORM), optax.sgd(LEARNING_RATE)
    )
    optimizer = nnx.Optimizer(model, clipped_sgd, wrt=nnx.Param)

    shuffle = np.random.default_rng(0)
    history = []
    print("epoch   loss  norm before  norm after  clipped")
    with until_interrupted(history):
        for epoch in range(EPOCHS):
            rows = shuffle.permutation(EXAMPLES).reshape(-1, BATCH)
            batches = inputs[rows], targets[rows]
            loss, norm, report = train_epoch(model, optimizer, *batches)
            before = report["clip_global_norm/pre_norm"]
            after = report["clip_global_norm/post_norm"]
            history.append((loss, norm, before, after))
            if epoch % 10 == 0 or epoch == EPOCHS - 1:
                share = report["clip_global_norm/clipped_fraction"].mean()
                print(f"{epoch:5} {loss.mean():6.2f} {before.mean():12.2f}", end=" ")
                print(f"{after.mean():11.2f} {share:8.0%}")

    loss, norm, before, after = np.array(history).swapaxes(0, 1)
    assert np.allclose(before, norm), "the report has the norm before clipping"
    assert after.max() <= MAX_NORM * 1.00001, "no step exceeds the limit"
    if len(history) == EPOCHS:
        assert loss[-1].mean() < loss[0].mean() / 100, "it learns within the limit"


if __name__ == "__main__":
    main()
