"""The small trees of the matrix, the ways to clip them, and how results compare."""

from contextlib import contextmanager
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

SHAPES = {"conv": (2, 2, 3), "dense": {"bias": (4,), "kernel": (3, 4)}, "scale": ()}

# What is asked of the way that a strategy goes, and not of its numbers, is asked of
# these two leaves, which compile in half the time.
FEW = {"bias": (4,), "kernel": (4, 4)}


def tree_of(dtype, size=1.0, seed=0, shapes=SHAPES):
    """A tree of numbers between size / 2 and size, of both signs.

    Put where JAX has its arrays: it would compile a program to take in each shape.
    """
    rng = np.random.default_rng(seed)

    def leaf(shape):
        number = rng.uniform(0.5, 1.0, shape) * rng.choice([-1.0, 1.0], shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            number = number * np.exp(2j * np.pi * rng.uniform(size=shape))
        return jax.device_put(np.asarray(number * size, dtype))

    return jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple))


def mixed_tree(size=1.0):
    """Half, bfloat, single and complex precision beside one another."""
    tree = tree_of(jnp.float32, size)
    tree["conv"] = tree_of(jnp.bfloat16, size)["conv"]
    tree["dense"]["kernel"] = tree_of(jnp.float16, size)["dense"]["kernel"]
    tree["scale"] = tree_of(jnp.complex64, size, seed=1)["scale"]
    return tree


def params_for(updates):
    """Parameters of 2 beside the updates; leaves that nobody clips stay as they are."""

    def leaf(x):
        if isinstance(x, float):
            return 2.0
        is_number = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)
        return np.full(x.shape, 2, x.dtype) if is_number else x

    return jax.tree.map(leaf, updates)


def clip(strategy, updates, limit, params=None, **options):
    """Clip once, eagerly or in a trace; a number as limit is known at construction."""
    params = params_for(updates) if params is None else params
    transformation = strategy.make(limit, **options)
    return transformation.update(updates, transformation.init(params), params)[0]


def constant_clip(strategy, updates, limit, params=None):
    """Clip once, under jit, with a limit known at construction."""
    params = params_for(updates) if params is None else params
    return jax.jit(lambda u, p: clip(strategy, u, limit, p))(updates, params)


@partial(jax.jit, static_argnums=0)
def start(strategy, params):
    """The first state, under jit."""
    return strategy.make(1.0).init(params)


@partial(jax.jit, static_argnums=0)
def step(strategy, updates, state, params, limit):
    """One step under jit with a traced limit: one program for each kind of tree."""
    return strategy.make(limit).update(updates, state, params)


# The same, whose updates and state make room for new ones.
donating_step = jax.jit(step, static_argnums=0, donate_argnums=(1, 2))


def as_limit(limit):
    """A limit that can be traced: float32, if it is a number."""
    return limit if isinstance(limit, jax.Array) else np.float32(limit)


def traced_clip(strategy, updates, limit):
    """Clip once, under jit, with a traced limit."""
    params = params_for(updates)
    state = start(strategy, params)
    return step(strategy, updates, state, params, as_limit(limit))[0]


def together(programs, *args):
    """Call functions of the same arguments as one program, which compiles sooner.

    What fails while it is traced fails alone: its exception stands for its result.
    """
    results, sound = {}, {}
    for name, program in programs.items():
        jitted = jax.jit(program)
        try:
            jitted.eval_shape(*args)
            sound[name] = jitted
        except Exception as error:
            results[name] = error
    run = jax.jit(lambda *args: [call(*args) for call in sound.values()])
    return results | dict(zip(sound, run(*args), strict=True))


def result_of(results, name):
    """One result of `together`."""
    if isinstance(results[name], Exception):
        raise results[name]
    return results[name]


@contextmanager
def in_case(case):
    """Say of a loop's failure in which case it was."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the case of {case}")
        raise


def wide(leaf):
    """The same numbers in float64 or complex128."""
    leaf = np.asarray(leaf)
    return leaf.astype(np.complex128 if np.iscomplexobj(leaf) else np.float64)


def expected(strategy, updates, limit, params=None):
    """The oracle's answer, a list of leaves."""
    params = params_for(updates) if params is None else params
    leaves = [[wide(x) for x in jax.tree.leaves(tree)] for tree in (updates, params)]
    with np.errstate(all="ignore"):  # numbers are zero, limits are infinite, too
        return strategy.oracle(*leaves, limit)


def rtol(dtype, working=jnp.float32):
    """One rounding of the leaf's dtype, some of the dtype that norms are taken in."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return 0.0
    return float(max(16 * jnp.finfo(working).eps, jnp.finfo(dtype).eps))


def assert_close(actual, desired, working=jnp.float32):
    """Leaf by leaf, within the rounding of the leaf's own dtype."""
    for got, want in zip(
        jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True
    ):
        tolerance = rtol(jnp.asarray(got).dtype, working)
        error = getattr(want, "error", 0.0)
        np.testing.assert_allclose(wide(got), wide(want), rtol=tolerance, atol=error)


def assert_same_bits(actual, desired):
    """The same structure, and leaf by leaf the same dtype, shape and bits."""
    chex.assert_trees_all_equal_structs(actual, desired)
    for got, want in zip(
        jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True
    ):
        got, want = np.asarray(got), np.asarray(want)
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        assert got.tobytes() == want.tobytes(), f"{got} is not {want}"
