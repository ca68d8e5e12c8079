"""Clipping gradients bounds the step; clipping weights bounds where it may lead.

A 10-50-10 network learns the identity by plain SGD in four ways: without clipping, with
clipped gradients, with clipped weights, and with both; first by value, then by norm.
Without clipping the weights go wherever the loss sends them. A gradient clip shortens
each step, so the weights get there later. A weight clip never lets them leave its
bounds, no matter how long the steps are.

    python gradient_vs_weight_clipping.py
"""

from command_line import Parser, until_interrupted

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

import optaxclip

EXAMPLES, BATCH, EPOCHS, LEARNING_RATE = 500, 10, 100, 0.01
MAX_GRADIENT_VALUE, MAX_WEIGHT_VALUE = 0.01, 0.3
MAX_GRADIENT_NORM, MAX_WEIGHT_NORM = 0.1, 2.5
# Black, and colors of Okabe and Ito, which the color-blind can tell apart.
STYLES = {
    "no clipping": ("-", "#000000"),
    "gradients": ("-", "#0072b2"),
    "weights": ("-", "#d55e00"),
    "both": ("--", "#e69f00"),
}


class Network(nnx.Module):
    """10 - 50 - 10 with a ReLU between."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(10, 50, rngs=rngs)
        self.output = nnx.Linear(50, 10, rngs=rngs)

    def __call__(self, inputs):
        return self.output(nnx.relu(self.hidden(inputs)))


def by_value(max_gradient, max_weight):
    """Return plain SGD with bounds on single numbers."""
    return optax.chain(
        optaxclip.clip_value(max_gradient),
        optax.sgd(LEARNING_RATE),
        optaxclip.clip_weights(max_weight),
    )


def by_norm(max_gradient, max_weight):
    """Return plain SGD with bounds on the norms of the gradient and of each tensor."""
    return optax.chain(
        optaxclip.clip_global_norm(max_gradient),
        optax.sgd(LEARNING_RATE),
        optaxclip.clip_weight_norm(max_weight),
    )


# For each: the optimizer, both bounds, and the measure that the second one bounds.
VERSIONS = {
    "clipped by value": (
        by_value,
        MAX_GRADIENT_VALUE,
        MAX_WEIGHT_VALUE,
        "largest weight",
    ),
    "clipped by norm": (by_norm, MAX_GRADIENT_NORM, MAX_WEIGHT_NORM, "largest tensor"),
}


def four_ways(clipped_sgd, max_gradient, max_weight, inputs):
    """Train with none, one and both of two clips; an infinite bound clips nothing."""
    none = jnp.inf
    bounds = {
        "no clipping": (none, none),
        "gradients": (max_gradient, none),
        "weights": (none, max_weight),
        "both": (max_gradient, max_weight),
    }
    shuffle = np.random.default_rng(0)
    orders = [shuffle.permutation(EXAMPLES) for _ in range(EPOCHS)]
    batches = inputs[np.concatenate(orders)].reshape(-1, BATCH, inputs.shape[-1])

    @jax.jit
    @jax.vmap
    def trained(bounds):
        return train(clipped_sgd(*bounds), batches)

    histories = trained(jnp.array(list(bounds.values())))
    return {
        way: {name: np.asarray(values[i]) for name, values in histories.items()}
        for i, way in enumerate(bounds)
    }


def train(transformation, batches):
    """Train a new network; return every step's loss, gradient norm and weight sizes."""
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def steps(carry, batch):
        model, optimizer = carry

        def loss(model):
            return jnp.mean((model(batch) - batch) ** 2)

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        weights = jax.tree.leaves(nnx.state(model, nnx.Param))
        return carry, {
            "loss": value,
            "gradient norm": optaxclip.tree_norm(grads),
            "weight norm": optaxclip.tree_norm(weights),
            "largest weight": optaxclip.tree_norm(weights, ord=jnp.inf),
            "largest tensor": jnp.max(
                jnp.stack([optaxclip.tree_norm(weight) for weight in weights])
            ),
        }

    return steps((model, optimizer), batches)[1]


def table(title, histories):
    """Print the final numbers of each way."""
    print(f"{title:<22} loss  gradient norm  weight norm  largest weight  tensor norm")
    for way, history in histories.items():
        last = {name: values[-1] for name, values in history.items()}
        loss = history["loss"][-EXAMPLES // BATCH :].mean()
        print(f"  {way:<17} {loss:7.4f} {last['gradient norm']:14.3f}", end="")
        print(f" {last['weight norm']:12.3f} {last['largest weight']:15.3f}", end="")
        print(f" {last['largest tensor']:12.3f}")


def draw(versions, path):
    """Plot gradient norms above and weight norms below, one column per version."""
    figure = Figure(figsize=(6.4, 5.8), dpi=125, layout="constrained")
    columns = len(versions)
    axes = figure.subplots(2, columns, sharex=True, sharey="row", squeeze=False)
    for column, (title, histories) in enumerate(versions.items()):
        for row, name in enumerate(("gradient norm", "weight norm")):
            plot = axes[row, column]
            for way, history in histories.items():
                line, color = STYLES[way]
                means = history[name].reshape(EPOCHS, -1).mean(axis=1)
                epochs = np.arange(1, EPOCHS + 1)
                plot.plot(epochs, means, line, color=color, label=way)
            plot.grid(alpha=0.3)
            plot.spines[["top", "right"]].set_visible(False)
        axes[0, column].set(title=title, yscale="log")
        axes[1, column].set(xlabel="epoch", xlim=(1, EPOCHS))
    axes[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0, 0].yaxis.set_major_formatter("{x:g}")
    axes[0, 0].minorticks_off()
    axes[0, 0].set_ylabel("gradient norm before clipping")
    axes[1, 0].set_ylabel("norm of all weights")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, ncols=4, loc="outside upper center")
    figure.supxlabel(
        "Clipped gradients get there later; clipped weights never leave their bounds.",
        fontsize="medium",
    )
    figure.savefig(path)


def check(histories, bound, bounded):
    """Check the claims about four ways whose weights are bounded in this measure."""
    free = histories["no clipping"]
    assert free[bounded].max() > bound, "the weights would leave the bound"
    for way in ("weights", "both"):
        assert histories[way][bounded].max() <= bound * 1.000001, "they do not"
    for way, history in histories.items():
        assert history["loss"][-1] < history["loss"][0] / 2, f"{way}: it learns"
    slow = histories["gradients"]["loss"].mean()
    assert slow > free["loss"].mean(), "smaller steps take longer"


def main():
    """Train eight times, print both tables, save the plot, check the claims."""
    args = Parser(__doc__, picture="gradient_vs_weight_clipping.png").parse_args()
    inputs = jax.random.normal(jax.random.key(0), (EXAMPLES, 10))
    versions = {}
    with until_interrupted(versions):
        for title, (clipped_sgd, *bounds, _) in VERSIONS.items():
            versions[title] = four_ways(clipped_sgd, *bounds, inputs)
            table(title, versions[title])
    draw(versions, args.output)
    print(f"The picture is in {args.output}.")
    for title, histories in versions.items():
        _, _, bound, bounded = VERSIONS[title]
        check(histories, bound, bounded)


if __name__ == "__main__":
    main()
