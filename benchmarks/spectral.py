"""How accurate and how fast the maps of singular values are.

Errors are relative to numpy.linalg.svd in float64: the largest entry and the spectral
norm of the difference, divided by the largest singular value. Times compare the
projection with the same one by jnp.linalg.svd, alternating in one run; the table shows
medians, and the number of singular values above the limit.

    python benchmarks/spectral.py [--size 1024] [--repeats 7] [--speed-only]
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import optaxclip

RATIOS = (0.9, 1.001, 1.5, 4.0, 32.0, 256.0)
SHAPES = ((1, 1), (8, 8), (64, 64), (1024, 16), (16, 1024), (256, 256), (1024, 1024))
SCALES = (1e-20, 1e-10, 1.0, 1e10, 1e20)


def matrix(shape, sizes, seed=0):
    """A matrix with random singular vectors and these singular values."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(n, len(sizes))))[0] for n in shape)
    return ((u * sizes) @ v.T).astype(np.float32)


def kinds(k):
    """Spectra that are hard: steep ones, clustered ones, ones with zeros."""
    rng = np.random.default_rng(1)
    return {
        "condition 1e2": np.logspace(0, -2, k),
        "condition 1e6": np.logspace(0, -6, k),
        "clustered": 1 + 1e-3 * rng.uniform(-1, 1, size=k),
        "rank deficient": np.where(np.arange(k) <= k // 3, 1.0, 0.0),
        "zero": np.zeros(k),
    }


def mapped(strategy):
    """A strategy as a function of a matrix and a limit, under jit."""

    @jax.jit
    def run(updates, limit):
        clip = strategy(limit)
        return clip.update(updates, clip.init(updates))[0]

    return run


@jax.jit
def by_decomposition(updates, limit):
    """The projection by a plain singular value decomposition."""
    u, sizes, v = jnp.linalg.svd(updates, full_matrices=False)
    return (u * jnp.minimum(sizes, limit)) @ v


def projected(sizes, limit):
    """Clip singular values."""
    return np.minimum(sizes, limit)


def bent(sizes, scale):
    """Saturate singular values smoothly."""
    return sizes / np.sqrt(1 + (sizes / scale) ** 2)


def errors(run, value, updates, ratio):
    """Return the largest entry and the spectral norm of the error, both relative."""
    u, sizes, v = np.linalg.svd(updates.astype(np.float64), full_matrices=False)
    top = max(sizes[0], np.finfo(np.float32).tiny)
    limit = np.float32(top / ratio)
    difference = np.asarray(run(updates, limit)) - (u * value(sizes, limit)) @ v
    return np.abs(difference).max() / top, np.linalg.norm(difference, 2) / top


def accuracy():
    """Print the worst error of each shape and kind, over ratios and scales."""
    maps = {
        "hard": (mapped(optaxclip.clip_singular_values), projected),
        "soft": (mapped(optaxclip.soft_clip_singular_values), bent),
    }
    print(f"Worst error relative to the largest, largest / limit in {RATIOS}:")
    print("map   shape          spectrum         entry     norm")
    for name, (run, value) in maps.items():
        for shape in SHAPES:
            for kind, sizes in kinds(min(shape)).items():
                scales = SCALES if max(shape) <= 64 else (1.0,)
                found = [
                    errors(run, value, matrix(shape, sizes * scale), ratio)
                    for scale in scales
                    for ratio in RATIOS
                ]
                entry, norm = map(max, zip(*found, strict=True))
                print(f"{name}  {shape!s:13}  {kind:14} {entry:8.1e} {norm:8.1e}")


def seconds(pause, run, *arguments):
    """Time one call, after a pause.

    LAPACK, which both ways may call, keeps its threads awake for 50 ms or more after it
    returns, and they take cores from whatever comes next.
    """
    time.sleep(pause)
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - start


def cases(size):
    """Yield matrices and limits: none, some or large parts of a spectrum above.

    Each comes with a name.
    """
    normal = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    top = np.linalg.norm(normal, 2)
    yield "normal, limit far above", normal, 20 * top
    for ratio in (0.99, 1.05, 4):
        yield f"normal, limit top / {ratio}", normal, top / ratio
    steep = matrix((size, size), np.logspace(0, -6, size))
    yield "condition 1e6, limit top / 100", steep, 1 / 100


def speed(size, repeats, pause):
    """Print the median times of both ways for several matrices and limits."""
    run = mapped(optaxclip.clip_singular_values)
    multiply = jax.jit(jnp.matmul)
    print(f"{size} x {size} float32 on {jax.devices()[0].device_kind}, median ms:")
    print(
        "case                            above     clip      svd    ratio     product"
    )
    for name, updates, limit in cases(size):
        above = int(np.sum(np.linalg.svd(updates, compute_uv=False) > limit))
        arguments = updates, np.float32(limit)
        times = {"clip": [], "svd": [], "product": []}
        for _ in range(repeats + 1):
            times["clip"].append(seconds(pause, run, *arguments))
            times["svd"].append(seconds(pause, by_decomposition, *arguments))
            times["product"].append(seconds(pause, multiply, updates, updates))
        clip, svd, product = (statistics.median(t[1:]) * 1e3 for t in times.values())
        print(
            f"{name:32} {above:4} {clip:8.1f} {svd:8.1f} {svd / clip:8.1f} "
            f"{product:11.1f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--pause", type=float, default=0.2, help="seconds")
    parser.add_argument("--speed-only", action="store_true")
    options = parser.parse_args()
    if not options.speed_only:
        accuracy()
    speed(options.size, options.repeats, options.pause)
