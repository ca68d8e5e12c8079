"""What public trainers write by hand, in NumPy, and the one line that replaces it.

Each row of docs/recipes/trainers.md is here under its name, and says by how much the
two differ.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxclip
from optaxclip.thresholds import Ema, HistoricalSigma

PAGE = Path(__file__).parent.parent / "docs" / "recipes" / "trainers.md"
STACKED = {"embedding": 0, "layers": 1}  # layers run under a scan
SHAPES = {"embedding": (16, 8), "layers": {"bias": (3, 8), "kernel": (3, 8, 8)}}


def gradients(size, seed=0):
    """Normal numbers of a size."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(size * rng.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


SIZES = (1e-3, 0.1, 1.0, 30.0, 0.5, 2.0, 100.0, 0.01, 1.0, 5.0)
STEPS = [gradients(size, seed) for seed, size in enumerate(SIZES)]


def wide(tree):
    """The same in float64."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def norm(tree):
    """The norm of a tree."""
    return np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree)))


def rms(x, axes=None):
    """The root mean square of an array, or of each of its slices."""
    return np.sqrt((x**2).mean(axes, keepdims=True))


def together(scale):
    """Each step's tree times what its norm gives."""
    return lambda steps: [
        jax.tree.map(lambda x, g=g: x * scale(norm(g)), g) for g in steps
    ]


def each(clip):
    """Each leaf of each step by itself."""
    return lambda steps: [jax.tree.map(clip, g) for g in steps]


def by_layer(clip):
    """Each leaf of each step, or each slice of the stacked ones, by itself."""

    def clip_tree(grads):
        layers = jax.tree.map(lambda x: clip(x, tuple(range(1, x.ndim))), grads)
        return {**layers, "embedding": clip(grads["embedding"])}

    return lambda steps: list(map(clip_tree, steps))


def of_history(window, sigmas):
    """Levanter's clip by the last norms: mean plus sigmas, from half a window on."""

    def clip(steps):
        norms, clipped = [], []
        for grads in steps:
            size, past = norm(grads), norms[-window:]
            limit = np.mean(past) + sigmas * max(np.std(past), 1e-6) if past else 0
            judged = len(past) >= window // 2 and size > limit
            clipped.append(
                jax.tree.map(lambda x, s=limit / size if judged else 1: x * s, grads)
            )
            norms.append(size)
        return clipped

    return clip


CLIPS = {
    ("MaxText, maxdiffusion, Stoix, Mava, purejaxrl, Tunix, kauldron, big_vision"): (
        optaxclip.clip_global_norm(1.0),
        together(lambda n: 1 if n < 1 else 1 / n),
    ),
    "brax, scenic, praxis": (
        optaxclip.clip_global_norm(1.0),
        together(lambda n: min(1, 1 / n)),
    ),
    "axlearn": (
        optaxclip.clip_global_norm(1.0),
        together(lambda n: min(1, 1 / (n + 1e-8))),
    ),
    "AlgoPerf, Megatron": (
        optaxclip.clip_global_norm(1.0),
        together(lambda n: min(1, 1 / (n + 1e-6))),
    ),
    "praxis, one variable at a time": (
        optaxclip.clip_tensor_norm(1.0),
        each(lambda x: x * min(1, 1 / norm(x))),
    ),
    "praxis and T5X, in Adafactor": (
        optaxclip.clip_tensor_rms(1.0),
        each(lambda x: x / max(1, rms(x))),
    ),
    "Levanter and axlearn, scanned layers": (
        optaxclip.clip_tensor_rms(1.0, leading_axes=STACKED),
        by_layer(lambda x, axes=None: x / np.maximum(1, rms(x, axes))),
    ),
    "numpyro": (optaxclip.clip_value(10.0), each(lambda x: np.clip(x, -10, 10))),
    "Levanter, `clip_update_norm`": (
        optaxclip.clip_global_norm(HistoricalSigma(2.0, window=4, min_steps=2)),
        of_history(4, 2.0),
    ),
}


def said(name):
    """By how much the two differ, as the page has it."""
    return float(table()[name].split()[0])


def table():
    """The rows of the page: the name, and the number by which the two differ."""
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \|.*\| ([^|]+) \|$", page, re.MULTILINE)
    return {name: text for name, text in rows if name not in ("trainer", "---")}


@pytest.mark.parametrize("name", CLIPS)
def test_the_line_that_replaces_a_clip_differs_by_as_little_as_the_page_says(name):
    clip, theirs = CLIPS[name]
    state, update = clip.init(STEPS[0]), jax.jit(clip.update)
    most = 0.0
    for grads, wanted in zip(STEPS, theirs(list(map(wide, STEPS))), strict=True):
        ours, state = update(grads, state)
        error = norm(jax.tree.map(np.subtract, wide(ours), wanted))
        most = max(most, error / norm(wanted))
    assert said(name) / 20 <= most <= said(name), most


def numbers(seed, count=300):
    """Norms of a run: they drift, and one in forty is a spike, of 3 to 300 times."""
    rng = np.random.default_rng(seed)
    usual = np.exp(0.3 * rng.normal(size=count) - np.linspace(0, 1, count))
    spikes = 3 * 100 ** rng.uniform(size=count)
    return usual * np.where(rng.uniform(size=count) < 1 / 40, spikes, 1.0)


def above_average(factor, decay):
    """The axlearn rule: above a multiple of an average that starts at 1."""

    def skips(norms):
        mean, count, skipped = 1.0, 0, []
        for size in norms:
            skipped.append(not size < factor * mean)
            if not skipped[-1]:
                kept = decay * (1 - decay**count) / (1 - decay ** (count + 1))
                mean, count = kept * mean + (1 - kept) * size, count + 1
        return skipped

    return skips


def above_sigmas(window, sigmas):
    """Levanter's SkipStep, whose history takes in what it skips; MaxText's is alike."""

    def skips(norms):
        skipped = []
        for i, size in enumerate(norms):
            past = norms[max(0, i - window - 1) : i]
            limit = np.mean(past) + sigmas * max(np.std(past), 1e-6) if i else 0
            skipped.append(i >= window // 2 and not size <= limit)
        return skipped

    return skips


SGD = optax.sgd(1.0)
SKIPS = {
    "Megatron, praxis, xtuner, verl": (
        optaxclip.skip_above(SGD, 3.0),
        lambda norms: [not size <= 3.0 for size in norms],
    ),
    "axlearn, `skip_and_clip_by_global_norm`": (
        optaxclip.skip_above(SGD, Ema(20.0, decay=0.99)),
        above_average(20.0, 0.99),
    ),
    "Levanter and MaxText, skips": (
        optaxclip.skip_spikes(SGD, sigmas=6.0, window=128, min_steps=64),
        above_sigmas(128, 6.0),
    ),
}


@pytest.mark.parametrize("name", SKIPS)
def test_the_line_that_replaces_a_skip_decides_as_the_page_says(name):
    optimizer, theirs = SKIPS[name]
    runs = np.stack([numbers(seed) for seed in range(8)]).astype(np.float32)

    def step(state, size):
        updates, state = optimizer.update(size, state)
        return state, updates == 0

    def run(sizes):
        return jax.lax.scan(step, optimizer.init(sizes[0]), sizes)[1]

    ours = np.asarray(jax.jit(jax.vmap(run))(runs))
    wanted = np.stack([theirs(list(map(float, sizes))) for sizes in runs])
    told = (
        f"{(ours != wanted).sum()} of {ours.size} steps; "
        f"the trainer skipped {wanted.sum()}"
    )
    assert table()[name].startswith(told), told


def test_qk_clip_differs_from_that_of_maxtext_by_as_little_as_the_page_says():
    rng = np.random.default_rng(0)
    plain, heads, limit = 4, 3, 100.0
    params = {name: rng.normal(size=(6, heads, 7)) for name in ("wq_b", "wkv_b")}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    logits = np.array([50.0, 130.0, 900.0])
    shares = optaxclip.attention.latent_attention_shares("wq_b", "wkv_b", plain)
    clip = optaxclip.attention.qk_clip(limit, shares=shares)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(clip.update)(
        zeros, clip.init(params), params, max_logits=jnp.asarray(logits, jnp.float32)
    )
    ours = wide(optax.apply_updates(params, updates))
    wanted = wide(params)
    scale = np.minimum(1, limit / (logits + 1e-6))[:, None]
    wanted["wq_b"][..., plain:] *= scale
    for name in wanted:
        wanted[name][..., :plain] *= np.sqrt(scale)
    most = norm(jax.tree.map(np.subtract, ours, wanted)) / norm(wanted)
    assert said("MaxText, QK-Clip") / 20 <= most <= said("MaxText, QK-Clip"), most


def test_watch_differs_from_a_norm_in_bfloat16_by_what_the_page_says():
    clip, most, own = optaxclip.watch(params=False), 0.0, 0.0
    update = jax.jit(clip.update)
    for grads in STEPS:
        grads = jax.tree.map(lambda x: x.astype(jnp.bfloat16), grads)
        _, state = update(grads, clip.init(grads))
        ours = wide(optaxclip.report(state)["watch/update_norm/each"])
        theirs = [jnp.linalg.norm(jnp.ravel(x)) for x in jax.tree.leaves(grads)]
        truth = np.array([norm(x) for x in jax.tree.leaves(wide(grads))])
        most = max(most, *(np.abs(ours / wide(theirs) - 1)))
        own = max(own, *(np.abs(ours / truth - 1)))
    text = table()["EasyDeL"]
    assert said("EasyDeL") / 20 <= most <= said("EasyDeL"), most
    (within,) = re.findall(r"within (\S+) of the true norm", text)
    assert own <= float(within), own


def test_every_row_of_the_page_is_here():
    by_themselves = {"EasyDeL", "MaxText, QK-Clip"}
    elsewhere = {"Levanter, MuonH"}  # test_spheres
    none = {"FermiNet, DeepQMC"}
    others = by_themselves | elsewhere | none
    assert table().keys() == CLIPS.keys() | SKIPS.keys() | others
