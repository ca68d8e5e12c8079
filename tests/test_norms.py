"""How big a group of numbers is: against one line of NumPy in float64.

All norms of a tree are taken by one program, which is compiled once for its shapes.
"""

from functools import cache, partial

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
from optaxclip.norms.norm import measure

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


def roundings(n):
    """By what a correct sum of n numbers may miss, in whatever order it adds.

    Each addition rounds by a random share of half an epsilon of what is added up so
    far. Their standard deviation is a third of half an epsilon times the root of n, and
    this is five of them, beside four roundings of what is not added.
    """
    return (4 + 5 / 3 * np.sqrt(n)) * EPS / 2


def magnitude(norm, scope, tree):
    """What a scope and a norm find together."""
    return measure(norm, scope.arrange(tree))


def product(magnitude):
    """The magnitude in float64, which holds what a float32 may not."""
    value, scale = magnitude
    return jax.tree.map(lambda v, s: wide(v) / wide(s), value, scale)


@partial(jax.jit, static_argnames=("names", "scope"))
def magnitudes(tree, names=tuple(NORMS), scope=WHOLE):
    """What several norms find."""
    return {name: magnitude(NORMS[name], scope, tree) for name in names}


@jax.jit
def norms_of(tree):
    """What all norms find, and the same as one number each."""
    plain = {name: optaxclip.tree_norm(tree, norm) for name, norm in NORMS.items()}
    return magnitudes(tree), plain


def complexes(first, second, others):
    """A tree of the shapes of the other complex ones, with two numbers chosen."""
    leaves, form = jax.tree.flatten(tree_of(jnp.complex64, others))
    leaves[0] = np.copy(leaves[0])
    leaves[0][0, 0, :2] = first, second
    return jax.tree.unflatten(form, leaves)


def rows(first, second, third):
    """Three leaves of one shape each; what is no list is a number for all of a leaf."""
    shapes = {"first": (2,), "second": (3,), "third": (5,)}
    return {
        name: np.broadcast_to(np.float32(x), shape)
        for (name, shape), x in zip(shapes.items(), (first, second, third), strict=True)
    }


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
    "complex 4e38": lambda: complexes(3e38 - 3e38j, 2e38, 1.0),
    "zero": lambda: tree_of(jnp.float32, 0.0),
    "1e19 and 1e-19": lambda: rows([1e19, 1e-19], 1e-19, 1e-19),
    "1e-19 and zeros": lambda: rows([1e-19, 0.0], 0.0, 0.0),
    "1e19, 1 and 1e-30": lambda: rows([1e19, 1e19], 1.0, 1e-30),
    "f16 300 and f32 1e20": lambda: [
        jnp.float16(300),
        np.array([1e20, -2e20], np.float32),
    ],
    "a number": lambda: np.float32(-2.5),
    "size zero and two": lambda: [
        np.zeros((0, 3), np.float32),
        np.array([3.0, 4.0], np.float32),
    ],
}


@cache
def measured(key):
    """All numbers of one of the trees, and what all norms find there."""
    tree = TREES[key]()
    return flat(tree), *norms_of(tree)


@pytest.mark.parametrize("key", TREES)
@every_norm
def test_a_norm_is_what_float64_finds(name, key):
    """Within 16 roundings of 29 numbers at most; powers take two or three of them."""
    numbers, found, plain = measured(key)
    wanted = oracle(name, numbers)
    np.testing.assert_allclose(product(found[name]), wanted, rtol=8 * EPS)
    if wanted <= jnp.finfo(jnp.float32).max:
        np.testing.assert_allclose(plain[name], wanted, rtol=8 * EPS)


def test_the_norm_of_no_numbers_is_zero():
    trees = [{}, None, np.zeros((0, 3), np.float32), [jnp.arange(3)]]
    for tree, found in zip(
        trees,
        jax.jit(lambda several: list(map(magnitudes, several)))(trees),
        strict=True,
    ):
        for name, each in found.items():
            assert product(each) == 0, f"{name} of {tree}"


def test_a_norm_beyond_float32_reads_as_infinity():
    tree = np.full(100_000, 3e38, np.float32)
    for name, size in norms_of(tree)[1].items():
        exceeds = oracle(name, wide(tree)) > jnp.finfo(jnp.float32).max
        assert np.isinf(size) == exceeds, name


@pytest.mark.parametrize("size", [0.0, 1e-28, 1.0, 1e20, 3e38])
def test_numbers_that_the_compiler_knows_are_measured_like_others(size):
    """As the zeros are that jax.grad gives to parameters that are not used."""
    known = np.full(3, size, np.float32)
    for name, found in jax.jit(lambda: magnitudes(known))().items():
        wanted = oracle(name, wide(known))
        np.testing.assert_allclose(product(found), wanted, 8 * EPS, err_msg=name)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_norm_of_what_is_not_finite_is_not_finite(bad):
    for name, found in norms_of(rows(1.0, bad, 1.0))[1].items():
        assert not np.isfinite(found), name


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


@given(x=numbers_of_two_magnitudes())
def test_no_power_of_two_is_too_large_or_small_for_one_group(x):
    for name, found in magnitudes(x, ("l1", "l2", "mean", "rms")).items():
        wanted, rtol = oracle(name, wide(x)), roundings(x.size)
        np.testing.assert_allclose(product(found), wanted, rtol, err_msg=name)


@given(
    x=numbers_of_two_magnitudes(columns=4),
    exponents=st.lists(st.integers(-125, 127), min_size=4, max_size=4),
    zero=st.booleans(),
)
def test_each_of_many_groups_has_a_unit_that_suits_it(x, exponents, zero):
    """The first column keeps both magnitudes, another may be all zeros."""
    x[:, 1:] = np.sign(x[:, 1:]) * np.float32(2) ** np.array(exponents[1:], np.float32)
    x[:, 3] *= not zero
    names, rtol = ("l1", "l2"), roundings(len(x))
    units = magnitudes(x, names, scopes.unit())
    tensors = magnitudes(list(x.T), names, scopes.tensor())
    for name in names:
        wanted = [oracle(name, column) for column in wide(x).T]
        (columns,) = product(units[name])
        np.testing.assert_allclose(columns.ravel(), wanted, rtol, err_msg=name)
        np.testing.assert_allclose(product(tensors[name]), wanted, rtol, err_msg=name)


def test_float64_is_measured_in_float64():
    with jax.enable_x64(True):
        for size in (1.0, 1e200, 1e-200, 1e308):
            x = size * np.random.default_rng(0).uniform(0.5, 1, 50)
            found = magnitudes(x, ("l2", "linf", "p3"))
            for name, (value, scale) in found.items():
                wanted, got = (
                    oracle(name, x / size),
                    float(value) / (float(scale) * size),
                )
                np.testing.assert_allclose(got, wanted, rtol=1e-14, err_msg=name)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_float32_is_measured_in_float32_where_jax_has_float64(dtype):
    with jax.enable_x64(True):
        x = np.full(17, 1e20, dtype)  # A shape of its own: traces are kept.
        found = magnitudes(x, ("l1", "l2"))
    for name, (value, scale) in found.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value / scale, oracle(name, wide(x)), rtol=1e-6)


def slope(name, x):
    """The closed form of the derivative, as jax.grad gives it for complex numbers."""
    if ORDERS[name] == np.inf:
        return np.where(np.abs(x) == np.abs(x).max(), np.conj(np.sign(x)), 0)
    share = np.abs(x) / (oracle(name, x) * number(name, x))
    return np.conj(np.sign(x)) * share ** (ORDERS[name] - 1) / number(name, x)


@jax.jit
def gradients(tree):
    """The derivatives of all norms of a tree."""
    return {
        name: jax.grad(partial(optaxclip.tree_norm, ord=norm))(tree)
        for name, norm in NORMS.items()
    }


@jax.jit
def slopes(x, direction):
    """The derivatives of all norms of a vector: backward, and forward in a direction.

    One program for all tests that ask for them, so they give vectors of one length.
    """
    forward = {
        name: jax.jvp(partial(optaxclip.tree_norm, ord=norm), (x,), (direction,))[1]
        for name, norm in NORMS.items()
    }
    return gradients(x), forward


@cache
def gradients_of(dtype, size):
    """All numbers of a tree, and the derivatives there."""
    tree = tree_of(dtype, size)
    return flat(tree), gradients(tree)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("size", [1.0, 1e20, 3e38, 1e-30])
@every_norm
def test_the_derivative_is_the_closed_form(name, size, dtype):
    """The power of 49 in that of p50 multiplies the roundings of its ratio by 49."""
    numbers, found = gradients_of(dtype, size)
    wanted = slope(name, numbers)
    np.testing.assert_allclose(flat(found[name]), wanted, rtol=64 * EPS, atol=EPS)


@every_norm
def test_the_derivative_at_zero_is_zero_or_where_largest_tie_shared(name):
    found = slopes(np.zeros(4, np.float32), np.ones(4, np.float32))[0][name]
    np.testing.assert_array_equal(found, 0.25 if name == "linf" else 0.0)


@every_norm
def test_the_derivative_beside_a_zero_is_a_subgradient(name):
    """The norm of any step is at least what the derivative says."""
    x = np.array([0.0, 3.0, -4.0, 0.0])
    found = slopes(np.asarray(x, jnp.float32), np.ones(4, np.float32))[0][name]
    np.testing.assert_allclose(found[1:3], slope(name, x)[1:3], rtol=64 * EPS)
    for step in np.random.default_rng(0).normal(size=(20, 4)):
        rise = oracle(name, x + step) - oracle(name, x)
        assert rise >= wide(found) @ step - 16 * EPS


@every_norm
def test_forward_and_backward_derivatives_agree(name):
    x, direction = (
        np.array([3.0, -4.0, 1.0, 2.0], np.float32),
        np.array([1.0, 2.0, -2.0, 0.5], np.float32),
    )
    backward, forward = slopes(x, direction)
    np.testing.assert_allclose(forward[name], backward[name] @ direction, rtol=16 * EPS)


def test_the_second_derivative_of_l2_is_the_closed_form():
    x = np.array([3.0, -4.0, 12.0], np.float32)
    direction = wide(x) / 13
    wanted = (np.eye(3) - np.outer(direction, direction)) / 13
    found = jax.jit(jax.hessian(optaxclip.tree_norm))(x)
    np.testing.assert_allclose(found, wanted, atol=EPS)


def all_of(sizes):
    """The numbers of all groups in one vector."""
    return np.concatenate([x.ravel() for x in jax.tree.leaves(sizes)])


def exact_means():
    """Whole numbers of a root mean square that is whole: a few rows of each length."""
    rng, found = np.random.default_rng(0), {}
    for n in (1, 2, 3, 7, 8):
        numbers = rng.integers(1, 60, (20_000, n))
        means = (numbers**2).sum(1) / n
        whole = numbers[np.sqrt(means) % 1 == 0][:20]
        found[f"{n}"] = np.asarray(whole, jnp.float32)
    return found


def test_a_root_mean_square_that_a_float_holds_is_found_exactly():
    """The sums are whole and round nowhere, in any order, and nor does half of them.

    Where n is no power of two, XLA multiplies by 1 / n, which rounds by u once more
    than a division; the root leaves half of both.
    """
    found = magnitudes(exact_means(), ("rms",), scopes.tensor(leading_axes=1))["rms"]
    ends = np.cumsum([len(x) for x in exact_means().values()])[:-1]
    for (n, x), sizes in zip(
        exact_means().items(), np.split(all_of(product(found)), ends), strict=True
    ):
        wanted = np.sqrt((wide(x) ** 2).mean(1))
        rtol = 0 if n in "1248" else EPS
        np.testing.assert_allclose(sizes, wanted, rtol, err_msg=n)


@jax.jit
def clipped_to(limit, tree):
    """Rows clipped to a limit on their root mean square."""
    clip = optaxclip.clip_tensor_rms(limit, leading_axes=1)
    return clip.update(tree, clip.init(tree))[0]


def test_the_root_mean_square_of_what_was_clipped_is_the_limit():
    """Within the roundings that any correct computation may need.

    The squares, their n - 1 sums, 1 / n and its product round by u each at most, of
    which the root leaves half; the root, the factor and its product add u each.
    """
    for step in range(1, 51):
        for clipped in clipped_to(1.0 / step, exact_means()).values():
            n = clipped.shape[1]
            size = np.sqrt((wide(clipped) ** 2).mean(1))
            rtol = ((n + 2) / 2 + 3) * EPS / 2
            limit = float(np.float32(1 / step))
            np.testing.assert_allclose(size, limit, rtol, err_msg=f"1/{step}, {n}")


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
        optaxclip.tree_norm(np.ones(2, np.float32), order)


def test_a_traced_order_is_refused_with_the_way_out():
    with unchecked(), pytest.raises(TypeError, match="static_args"):
        jax.jit(optaxclip.tree_norm)(np.ones(2, np.float32), 2)


@pytest.mark.parametrize("order", [1, 2])
def test_one_pass_as_accelerators_take_it_is_right_at_every_size(order):
    """Mapped over, a CPU has no other way either."""
    numbers = np.random.default_rng(0).uniform(0.5, 1.0, (7, 30))
    sizes = np.array([1e-35, 1e-30, 1e-20, 1.0, 1e20, 1e30, 1e37])
    rows = (numbers * sizes[:, None]).astype(np.float32)
    found = jax.vmap(lambda x: optaxclip.tree_norm(x, ord=order))(rows)
    wanted = np.linalg.norm(rows.astype(np.float64), order, axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_pass_loses_nothing_that_is_not_finite(bad):
    rows = np.ones((3, 8), np.float32)
    rows[1, 0] = rows[2, :3] = bad

    @jax.jit
    @jax.vmap
    def clipped(x):
        shrink, found = optaxclip.responses.shrink, []
        for norm in NORMS.values():
            clip = optaxclip.clipper(WHOLE, norm, 0.5, shrink)
            found.append(
                (optaxclip.tree_norm(x, norm), clip.update(x, clip.init(x))[0])
            )
        return found

    for name, (norm, shrunk) in zip(NORMS, clipped(rows), strict=True):
        assert np.isfinite(norm).tolist() == [True, False, False], name
        np.testing.assert_array_equal(np.isnan(shrunk).all(axis=1), rows[:, 0] != 1)
