"""Choose a clipping limit by cross-validation, trying all candidates at once.

The data follow y = 4 x1 + 5 x2 + noise. The inputs are spread widely and the learning
rate is high, so plain SGD on mini-batches of 10 overshoots further with every step.
Clipping each number of the gradient to [-c, c] fixes this if c is right: if it is too
tight, training never reaches the goal; if too loose, it keeps jumping past it.

A limit may be a traced array, so `cross_validate` runs all limits, shuffles and folds
in one program. The picture is the U-shaped curve of the held-out error over the limit.

    python linear_regression.py
"""

from command_line import Parser

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optaxclip
from optaxclip.plotting import plot_sweep
from optaxclip.tuning import cross_validate

POINTS, BATCH, EPOCHS, SEEDS = 100, 10, 20, 5
LEARNING_RATE = 0.1
TRUE_WEIGHTS = np.array([4.0, 5.0])


def mean_squared_error(model, inputs, targets):
    """The mean over examples."""
    return jnp.mean((model(inputs).squeeze(-1) - targets) ** 2)


def fit(limit, inputs, targets, bound=jnp.inf):
    """Fit a line by clipped SGD.

    `bound` is not gradient clipping: it keeps the parameters themselves within
    [-bound, bound], only to show what that does.
    """
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    clipped_sgd = optax.chain(
        optaxclip.clip_value(limit),
        optax.sgd(LEARNING_RATE),
        optaxclip.clip_weights(bound),
    )
    optimizer = nnx.Optimizer(model, clipped_sgd, wrt=nnx.Param)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def step(carry, rows):
        model, optimizer = carry
        grads = nnx.grad(mean_squared_error)(model, inputs[rows], targets[rows])
        optimizer.update(model, grads)
        return carry

    shuffle = np.random.default_rng(0)
    order = np.stack([shuffle.permutation(len(inputs)) for _ in range(EPOCHS)])
    step((model, optimizer), order.reshape(-1, BATCH))
    return model


def main():
    """Choose c, draw the errors, fit with the best c, check the claims."""
    args = Parser(__doc__, picture="linear_regression.png").parse_args()
    input_key, noise_key = jax.random.split(jax.random.key(0))
    inputs = 3 * jax.random.normal(input_key, (POINTS, 2))
    noise = 0.5 * jax.random.normal(noise_key, (POINTS,))
    targets = inputs @ TRUE_WEIGHTS + noise

    def held_out_error(limit, key, kept, held_out):
        model = fit(limit, inputs[kept], targets[kept])
        return mean_squared_error(model, inputs[held_out], targets[held_out])

    limits = jnp.geomspace(0.01, 100, 9)
    sweep = cross_validate(held_out_error, limits, rows=POINTS, seeds=SEEDS)
    print(sweep)
    axes = plot_sweep(sweep)
    axes.set(xlabel="limit c", ylabel="held-out error")
    axes.figure.savefig(args.output)
    print(f"The picture is in {args.output}.")

    @jax.jit
    def weights_with(limit, bound=jnp.inf):
        return fit(limit, inputs, targets, bound).kernel[...].squeeze(-1)

    weights = weights_with(sweep.best)
    unclipped = weights_with(jnp.inf)
    bounded = weights_with(sweep.best, bound=1.0)
    print(f"weights with c = {sweep.best:.2f}:", weights)
    print("weights without clipping:", unclipped)
    print("weights with parameters, not gradients, kept in [-1, 1]:", bounded)

    assert jnp.abs(weights - TRUE_WEIGHTS).max() < 0.2, "clipped SGD recovers 4 and 5"
    assert jnp.abs(unclipped - TRUE_WEIGHTS).max() > 100, "unclipped SGD diverges"
    assert bounded.max() <= 1, "a bound of 1 on the parameters rules out 4 and 5"


if __name__ == "__main__":
    main()
