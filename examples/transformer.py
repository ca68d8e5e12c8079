"""Train a small transformer on text, with and without guards against bad batches.

    python transformer.py                          Python's own sources, in two minutes
    python transformer.py --data shakespeare.txt   any text in UTF-8

Three of the batches are corrupted: their characters are noise, and their loss is a
thousand times too large, as after a faulty read and a broken normalization. Adam
divides by the size of past gradients. So such a batch does double damage: it moves the
parameters far off, and it makes all steps tiny for as long as Adam remembers it. The
same model is trained on the same batches six times:

- without clipping, measured by an infinite limit;
- `clip_global_norm` shrinks every gradient to a norm of at most 1;
- `zclip` shrinks norms far above their running mean;
- `autoclip` shrinks to a percentile of past norms;
- `adagc` shrinks each tensor to its usual norm;
- `skip_spikes` skips steps whose loss or norm stands out.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from command_line import Parser, until_interrupted, whole_number

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from text_data import Text, TextDataError, standard_library, text_file, windows
from tqdm import tqdm
from transformer_report import History, conclusion, draw, table

import optaxclip

CONTEXT, BATCH, WIDTH, HEADS, LAYERS = 64, 16, 64, 4, 2
LEARNING_RATE = 3e-3
TOO_LARGE = 1000.0
FETCH_EVERY = 20


class Block(nnx.Module):
    """Causal attention, then a network for each position."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """Predicts each character from the previous ones."""

    def __init__(self, characters: int, rngs: nnx.Rngs):
        self.embed = nnx.Embed(characters, WIDTH, rngs=rngs)
        self.position = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, characters, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        x = self.embed(text) + self.position(jnp.arange(text.shape[1]))
        mask = nnx.make_causal_mask(text)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


class Batches(NamedTuple):
    """The data of all runs: rows of characters, and the factor on each loss."""

    rows: np.ndarray
    factors: np.ndarray


def make_batches(text: Text, steps: int, seed: int) -> Batches:
    """Cut random rows out of the text, and corrupt three batches."""
    random = np.random.default_rng(seed)
    starts = random.integers(0, len(text.train) - CONTEXT, (steps, BATCH))
    rows = windows(text.train, starts, CONTEXT + 1)
    factors = np.ones(steps, np.float32)
    for part in (0.4, 0.6, 0.8):
        step = int(part * steps)
        rows[step] = random.integers(0, len(text.characters), rows[step].shape)
        factors[step] = TOO_LARGE
    return Batches(rows, factors)


def optimizers(steps: int) -> dict[str, optax.GradientTransformationExtraArgs]:
    """Combine each of the six with the same optimizer."""
    adam = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    warmup = min(50, steps // 4)
    clips = {
        "no clipping": optaxclip.clip_global_norm(jnp.inf),
        "clip_global_norm": optaxclip.clip_global_norm(1.0),
        "zclip": optaxclip.zclip(warmup_steps=warmup),
        "autoclip": optaxclip.autoclip(),
        "adagc": optaxclip.adagc(warmup_steps=warmup),
    }
    return {
        **{name: optax.chain(clip, adam) for name, clip in clips.items()},
        "skip_spikes": optaxclip.skip_spikes(adam, min_steps=warmup),
    }


def losses_of(model: nnx.GraphDef[Transformer], params: Any, rows: jax.Array):
    """The loss of predicting each character from the previous ones."""
    logits = nnx.merge(model, params)(rows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:])


@partial(jax.jit, static_argnums=0)
@partial(jax.value_and_grad, argnums=1)
def loss_and_gradient(
    model: nnx.GraphDef[Transformer], params: Any, rows: jax.Array, factor: jax.Array
):
    """Return the mean loss and its gradient; all six runs share this program."""
    return factor * losses_of(model, params, rows).mean()


def make_train_step(
    optimizer: optax.GradientTransformationExtraArgs,
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """Combine clipping, update and report in one function."""

    # Donated: the new state reuses the memory of the old one.
    @partial(jax.jit, donate_argnames="state")
    def train_step(state: tuple[Any, Any], loss: jax.Array, grads: Any):
        params, opt_state = state
        updates, opt_state = optimizer.update(grads, opt_state, params, value=loss)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), {"loss": loss, **norms(opt_state)}

    return train_step


def norms(opt_state: Any) -> dict[str, jax.Array]:
    """Return the norm of the whole gradient before and after, for any scope."""
    report = optaxclip.report(opt_state)
    if "skip_spikes/norm" in report:
        before = report["skip_spikes/norm"]
        return {"before": before, "after": before * (1 - report["skip_spikes/skipped"])}
    told = {key.rpartition("/")[2]: numbers for key, numbers in report.items()}
    before, after = told["pre_norm"], told["post_norm"]
    return {"before": jnp.linalg.norm(before), "after": jnp.linalg.norm(after)}


def train(
    model: nnx.GraphDef[Transformer],
    start: Any,
    optimizer: optax.GradientTransformationExtraArgs,
    batches: Batches,
    bar: tqdm,
) -> tuple[History, Any]:
    """Train once, and return the numbers of all steps and the final parameters."""
    train_step = make_train_step(optimizer)
    params = jax.tree.map(jnp.copy, start)  # Donated; others need these.
    state, metrics, history = (params, optimizer.init(params)), [], []
    for number, batch in enumerate(zip(*batches, strict=True), start=1):
        loss, grads = loss_and_gradient(model, state[0], *batch)
        state, step_metrics = train_step(state, loss, grads)
        metrics.append(step_metrics)
        # Reading a number waits for it, so read those of many steps at once.
        if number % FETCH_EVERY == 0 or number == len(batches.factors):
            history += jax.device_get(metrics)
            bar.update(len(metrics))
            metrics = []
    steps = {name: np.stack([step[name] for step in history]) for name in history[0]}
    return steps, state[0]


def main() -> None:
    parser = Parser(__doc__, picture="transformer.png", seeded=True)
    add = parser.add_argument
    add("--data", type=Path, metavar="FILE", help="any text in UTF-8")
    add("--steps", type=whole_number(50), default=400, metavar="N", help="default: 400")
    args = parser.parse_args()
    try:
        text = text_file(args.data) if args.data else standard_library()
    except TextDataError as error:
        parser.error(str(error))
    if len(text.test) < 2 * CONTEXT:
        parser.error(f"{text.name} is too short: it needs {20 * CONTEXT} characters.")
    batches = make_batches(text, args.steps, args.seed)
    corrupted = np.flatnonzero(batches.factors > 1)
    model, start = nnx.split(Transformer(len(text.characters), nnx.Rngs(args.seed)))
    starts = np.linspace(0, len(text.test) - CONTEXT - 1, 256, dtype=int)
    test_rows = windows(text.test, starts, CONTEXT + 1)
    test_losses = jax.jit(partial(losses_of, model))
    runs, held_out = {}, {}
    ways = optimizers(args.steps)
    bar = tqdm(total=len(ways) * args.steps, unit="step", mininterval=0.5)
    with until_interrupted(held_out), bar:
        for name, optimizer in ways.items():
            bar.set_description(name)
            history, params = train(model, start, optimizer, batches, bar)
            held_out[name] = float(test_losses(params, test_rows).mean())
            runs[name] = history

    print(table(runs, held_out))
    said = conclusion(runs, held_out, corrupted)
    print(said)
    draw(runs, corrupted, f"A transformer on {text.name}", said, args.output)
    print(f"The picture is in {args.output}.")
    if len(runs) == len(ways):
        best = min(held_out, key=held_out.__getitem__)
        assert best != "no clipping", (
            "a corrupted batch does harm if nothing is clipped"
        )
        skipped = runs["skip_spikes"]["after"] == 0
        assert skipped[corrupted].all(), "skip_spikes skips every corrupted batch"


if __name__ == "__main__":
    main()
