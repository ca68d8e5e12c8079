"""How big a group of numbers is: against one line of NumPy in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import tree_of, wide
from unchecked import unchecked

import optaxclip
from optaxclip import norms, scopes
from optaxclip.leaves import counted
from optaxclip.measuring import measure

EPS = float(jnp.finfo(jnp.float32).eps)
WHOLE = scopes.whole()

NORMS = {"l1": norms.l1, "l2": norms.l2, "linf": norms.linf, "rms": norms.rms}
NORMS |= {"mean": norms.mean, "p3": norms.p_norm(3), "p50": norms.p_norm(50)}
ORDERS = {"l1": 1, "l2": 2, "linf": np.inf, "rms": 2, "mean": 1, "p3": 3, "p50": 50}
every_norm = pytest.mark.parametrize("name", NORMS)


def number(name, x):
    """By what the norm of x is divided."""
    return x.size ** (1 / ORDERS[name]) if name in ("rms", "mean") else 1


def oracle(name, x):
    """The norm of float64 numbers, in units of the largest of them."""
    top = np.abs(x).max(initial=0.0) or 1.0
    return top * np.linalg.norm(x.ravel() / top, ORDERS[name]) / number(name, x)


def flat(tree):
    """All numbers of a tree, in float64."""
    return np.concatenate([np.zeros(0), *(wide(x).ravel() for x in counted(tree))])


def magnitude(norm, scope, tree):
    """What a scope and a norm find together."""
    return measure(norm, scope.arrange(tree), counted(tree))


def measured(norm, tree, scope=WHOLE):
    """The same in float64, which holds what a float32 may not."""
    value, unit = magnitude(norm, scope, tree)
    return jax.tree.map(lambda v, u: wide(v) * wide(u), value, unit)


TREES = {
    "ordinary": lambda: tree_of(jnp.float32),
    "1e20": lambda: tree_of(jnp.float32, 1e20),
    "3e38": lambda: tree_of(jnp.float32, 3e38),
    "1e-30": lambda: tree_of(jnp.float32, 1e-30),
    "1.5e-38": lambda: tree_of(jnp.float32, 3e-38),  # from here down to the half
    "f16 300": lambda: tree_of(jnp.float16, 300.0),
    "bf16 1e20": lambda: tree_of(jnp.bfloat16, 1e20),
    "complex": lambda: tree_of(jnp.complex64),
    "complex 1e20": lambda: tree_of(jnp.complex64, 1e20),
    "complex 1e-30": lambda: tree_of(jnp.complex64, 1e-30),
    "complex 4e38": lambda: [jnp.array([3e38 - 3e38j, 1.0]), jnp.array([2e38])],
    "zero": lambda: tree_of(jnp.float32, 0.0),
    "1e19 and 1e-19": lambda: [jnp.array([1e19, 1e-19])],
    "1e-19 and zeros": lambda: [jnp.zeros(5), jnp.array([1e-19, 0.0])],
    "1e19, 1 and 1e-30": lambda: [jnp.array([1e19]), jnp.ones(3), jnp.array([1e-30])],
    "f16 300 and f32 1e20": lambda: [jnp.float16(300), jnp.array([1e20, -2e20])],
    "a number": lambda: jnp.asarray(-2.5),
    "size zero and two": lambda: [jnp.zeros((0, 3)), jnp.array([3.0, 4.0])],
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
@every_norm
def test_a_norm_is_what_float64_finds(name, tree):
    tree = tree()
    wanted = oracle(name, flat(tree))
    np.testing.assert_allclose(measured(NORMS[name], tree), wanted, rtol=8 * EPS)
    if wanted <= jnp.finfo(jnp.float32).max:
        plain = optaxclip.tree_norm(tree, NORMS[name])
        np.testing.assert_allclose(plain, wanted, rtol=8 * EPS)


@every_norm
def test_the_norm_of_no_numbers_is_zero(name):
    for tree in ({}, None, jnp.zeros((0, 3)), [jnp.arange(3)]):
        assert measured(NORMS[name], tree) == 0


@every_norm
def test_a_norm_beyond_float32_reads_as_infinity(name):
    tree = jnp.full(100_000, 3e38)
    size = optaxclip.tree_norm(tree, NORMS[name])
    exceeds = oracle(name, wide(tree)) > jnp.finfo(jnp.float32).max
    assert np.isinf(size) == exceeds


@pytest.mark.parametrize("size", [0.0, 1e-28, 1.0, 1e20, 3e38])
@every_norm
def test_numbers_that_the_compiler_knows_are_measured_like_others(name, size):
    """As the zeros are that jax.grad gives to parameters that are not used."""
    known = jnp.full(3, size)
    found = jax.jit(lambda: magnitude(NORMS[name], WHOLE, known))()
    wanted = oracle(name, wide(known))
    np.testing.assert_allclose(wide(found.value) * wide(found.unit), wanted, 8 * EPS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@every_norm
def test_a_norm_of_what_is_not_finite_is_not_finite(name, bad):
    assert not np.isfinite(optaxclip.tree_norm([jnp.ones(3), bad], NORMS[name]))


@st.composite
def numbers_of_two_magnitudes(draw, columns=1):
    """Floats around two powers of two, in any proportion, of both signs."""
    size = draw(st.sampled_from([1, 2, 33, 5000]))
    exponents = np.array([draw(st.integers(-125, 127)) for _ in range(2)])
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chosen = exponents[
        (rng.random((size, columns)) < draw(st.floats(0, 1))).astype(int)
    ]
    chosen = np.clip(chosen + rng.integers(-1, 2, chosen.shape), -125, 127)
    signs = rng.choice([-1.0, 1.0], chosen.shape)
    return (signs * rng.uniform(1, 2, chosen.shape) * 2.0**chosen).astype(np.float32)


@pytest.mark.parametrize("name", ["l1", "l2", "mean", "rms"])
@given(x=numbers_of_two_magnitudes())
def test_no_power_of_two_is_too_large_or_small_for_one_group(name, x):
    wanted = oracle(name, wide(x))
    np.testing.assert_allclose(measured(NORMS[name], x), wanted, rtol=64 * EPS)


@pytest.mark.parametrize("name", ["l1", "l2"])
@given(
    x=numbers_of_two_magnitudes(columns=4),
    exponents=st.lists(st.integers(-125, 127), min_size=4, max_size=4),
    zero=st.booleans(),
)
def test_each_of_many_groups_has_a_unit_that_suits_it(name, x, exponents, zero):
    """The first column keeps both magnitudes, another may be all zeros."""
    x[:, 1:] = np.sign(x[:, 1:]) * np.float32(2) ** np.array(exponents[1:], np.float32)
    x[:, 3] *= not zero
    wanted = [oracle(name, column) for column in wide(x).T]
    (units,) = measured(NORMS[name], x, scopes.unit())
    np.testing.assert_allclose(units.ravel(), wanted, rtol=64 * EPS)
    tensors = measured(NORMS[name], list(x.T), scopes.tensor())
    np.testing.assert_allclose(tensors, wanted, rtol=64 * EPS)


@pytest.mark.parametrize("name", ["l2", "linf", "p3"])
def test_float64_is_measured_in_float64(name):
    with jax.enable_x64(True):
        for size in (1.0, 1e200, 1e-200, 1e308):
            x = size * np.random.default_rng(0).uniform(0.5, 1, 50)
            value, unit = magnitude(NORMS[name], WHOLE, x)
            wanted = oracle(name, x / size)
            found = float(value) * (float(unit) / size)
            np.testing.assert_allclose(found, wanted, rtol=1e-14)


def slope(name, x):
    """The closed form of the derivative, as jax.grad gives it for complex numbers."""
    if ORDERS[name] == np.inf:
        return np.where(np.abs(x) == np.abs(x).max(), np.conj(np.sign(x)), 0)
    share = np.abs(x) / (oracle(name, x) * number(name, x))
    return np.conj(np.sign(x)) * share ** (ORDERS[name] - 1) / number(name, x)


@partial(jax.jit, static_argnums=0)
def gradient(name, tree):
    """The derivative of the norm of a tree."""
    return jax.grad(partial(optaxclip.tree_norm, ord=NORMS[name]))(tree)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("size", [1.0, 1e20, 3e38, 1e-30])
@every_norm
def test_the_derivative_is_the_closed_form(name, size, dtype):
    tree = tree_of(dtype, size)
    found = gradient(name, tree)
    wanted = slope(name, flat(tree))
    np.testing.assert_allclose(flat(found), wanted, rtol=64 * EPS, atol=EPS)


@every_norm
def test_the_derivative_at_zero_is_zero_or_where_largest_tie_shared(name):
    found = gradient(name, jnp.zeros(4))
    np.testing.assert_array_equal(found, 0.25 if name == "linf" else 0.0)


@every_norm
def test_the_derivative_beside_a_zero_is_a_subgradient(name):
    """The norm of any step is at least what the derivative says."""
    x = np.array([0.0, 3.0, -4.0, 0.0])
    found = gradient(name, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found[1:3], slope(name, x)[1:3], rtol=64 * EPS)
    for step in np.random.default_rng(0).normal(size=(20, 4)):
        rise = oracle(name, x + step) - oracle(name, x)
        assert rise >= wide(found) @ step - 16 * EPS


@every_norm
def test_forward_and_backward_derivatives_agree(name):
    x, direction = jnp.array([3.0, -4.0, 1.0]), jnp.array([1.0, 2.0, -2.0])
    norm = partial(optaxclip.tree_norm, ord=NORMS[name])
    _, forward = jax.jit(partial(jax.jvp, norm))((x,), (direction,))
    backward = gradient(name, x) @ direction
    np.testing.assert_allclose(forward, backward, rtol=16 * EPS)


def test_the_second_derivative_of_l2_is_the_closed_form():
    x = jnp.array([3.0, -4.0, 12.0])
    direction = wide(x) / 13
    wanted = (np.eye(3) - np.outer(direction, direction)) / 13
    found = jax.jit(jax.hessian(optaxclip.tree_norm))(x)
    np.testing.assert_allclose(found, wanted, atol=EPS)


def test_a_norm_of_order_one_two_or_infinity_is_the_one_with_a_name():
    assert norms.p_norm(1) == norms.p_norm(1.0) == norms.l1
    assert norms.p_norm(2) == norms.p_norm(2.0) == norms.l2
    assert norms.p_norm(np.inf) == norms.linf
    assert norms.as_norm(norms.rms) is norms.rms


@pytest.mark.parametrize("order", [0.999, 0, -2, float("nan"), float("-inf")])
def test_an_order_below_one_is_refused(order):
    with pytest.raises(ValueError, match=r"ord must be at least 1 or infinity, not"):
        norms.p_norm(order)


@pytest.mark.parametrize("order", [jnp.asarray(2.0), "2", None, np.float32(2)])
def test_an_order_that_is_no_python_number_is_refused(order):
    with unchecked(), pytest.raises(TypeError, match=r"^ord must be a Python number"):
        optaxclip.tree_norm(jnp.ones(2), order)


def test_a_traced_order_is_refused_with_the_way_out():
    with unchecked(), pytest.raises(TypeError, match="static_args"):
        jax.jit(optaxclip.tree_norm)(jnp.ones(2), 2)
