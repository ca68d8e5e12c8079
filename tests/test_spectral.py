"""Singular values: against numpy.linalg.svd in float64, and the laws of both maps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_same_bits

import optaxclip
from optaxclip.spectral.polar import gram
from optaxclip.spectral.search import search
from optaxclip.spectral.singular_values import clip_by_polynomials

SHAPES = [(1, 1), (2, 2), (3, 7), (64, 64), (128, 2), (96, 160)]
EPS = float(jnp.finfo(jnp.float32).eps)


def projected(sizes, limit):
    """What the hard clip makes of singular values."""
    return np.minimum(sizes, limit)


def bent(sizes, scale):
    """What the soft clip makes of them."""
    return sizes / np.sqrt(1 + (sizes / scale) ** 2)


def mapped(matrix, limit, value):
    """The oracle: decompose, map, multiply."""
    u, sizes, v = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return (u * value(sizes, limit)) @ v


@partial(jax.jit, static_argnums=0)
def run(strategy, matrix, limit):
    """Map one matrix."""
    clip = strategy(limit)
    return clip.update(matrix, clip.init(matrix))[0]


def with_singular_values(shape, sizes, seed=0):
    """A matrix with random singular vectors, in float32."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.normal(size=(n, len(sizes))))[0] for n in shape)
    return ((u * sizes) @ v.T).astype(np.float32)


def spectra(shape):
    """The kinds of singular values that are hard for an iteration."""
    k, rng = min(shape), np.random.default_rng(1)
    return {
        "normal": np.linalg.svd(rng.normal(size=shape), compute_uv=False),
        "condition 1e6": np.logspace(0, -6, k),
        "clustered": 1 + 1e-3 * rng.uniform(-1, 1, size=k),
        "rank deficient": np.where(np.arange(k) <= k // 3, 1.0, 0.0),
    }


KINDS = list(spectra((2, 2)))
HARD = (optaxclip.clip_singular_values, projected)
SOFT = (optaxclip.soft_clip_singular_values, bent)
both = pytest.mark.parametrize(
    ("strategy", "value"), [HARD, SOFT], ids=["hard", "soft"]
)


def error(strategy, value, matrix, limit):
    """The largest error, relative to the limit, in the spectral norm."""
    limit = np.float32(limit)
    wanted = mapped(matrix, np.float64(limit), value)
    got = np.asarray(run(strategy, matrix, limit), np.float64)
    return np.linalg.norm(got - wanted, 2) / limit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@both
def test_every_kind_of_matrix_is_mapped_as_a_decomposition_would(
    strategy, value, shape, kind
):
    matrix = with_singular_values(shape, spectra(shape)[kind])
    top = np.linalg.norm(matrix.astype(np.float64), 2)
    for ratio in (0.5, 0.9999, 1.0001, 1.01, 1.5, 3.0, 20.0, 100.0):
        assert error(strategy, value, matrix, top / ratio) < 5e-4


@pytest.mark.parametrize("ratio", [1e3, 1e4, 1e6])
@both
def test_a_limit_far_below_all_singular_values_makes_them_equal(strategy, value, ratio):
    matrix = with_singular_values((32, 16), np.linspace(1, 2, 16))
    assert error(strategy, value, matrix, 1 / ratio) < 5e-4


@both
def test_rounding_errors_of_the_largest_are_all_that_a_steep_spectrum_adds(
    strategy, value
):
    matrix = with_singular_values((64, 64), np.logspace(0, -6, 64))
    for ratio in (1e2, 1e3, 1e4, 1e5, 1e6):
        assert error(strategy, value, matrix, 1 / ratio) < 5e-4 + 0.5 * EPS * ratio


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30])
@both
def test_the_scale_of_the_matrix_does_not_matter(strategy, value, size):
    matrix = with_singular_values((24, 16), np.logspace(0, -3, 16) * size)
    for ratio in (1.5, 10.0):
        assert error(strategy, value, matrix, size / ratio) < 5e-4


@pytest.mark.parametrize(("shape", "size"), [((640, 640), 1.0), ((1024, 16), 1.0)])
def test_large_and_narrow_matrices_are_projected(shape, size):
    matrix = with_singular_values(shape, spectra(shape)["condition 1e6"] * size)
    assert error(*HARD, matrix, size / 4) < 5e-4


def test_matrices_within_the_limit_keep_their_bits():
    """Far below, near below, and all of them at the limit."""
    for sizes in (
        np.linspace(0.1, 1, 32),
        np.full(32, 0.99),
        np.ones(32),
        np.zeros(32),
    ):
        matrix = jnp.asarray(with_singular_values((48, 32), sizes))
        for limit in (1.00001, 1.001, 2.0, 100.0):
            assert_same_bits(run(HARD[0], matrix, np.float32(limit)), matrix)


def test_no_singular_value_is_above_the_limit_afterward_and_twice_is_once():
    matrix = with_singular_values((48, 32), np.logspace(1, -1, 32))
    once = run(HARD[0], matrix, np.float32(1.0))
    assert np.linalg.norm(np.asarray(once, np.float64), 2) <= 1 + 1e-4
    twice = run(HARD[0], once, np.float32(1.0))
    np.testing.assert_allclose(twice, once, atol=1e-4)


@both
def test_a_vector_is_a_matrix_of_one_column_and_there_is_no_jump(strategy, value):
    vector = np.array([3.0, -4.0, 12.0], np.float32)
    for limit in (12.9, 13.0, 13.1, 1.0):
        wanted = vector * value(13.0, limit) / 13.0
        for shape in ((3,), (3, 1), (1, 3)):
            got = run(strategy, jnp.asarray(vector.reshape(shape)), np.float32(limit))
            np.testing.assert_allclose(np.ravel(got), wanted, rtol=1e-5)


@both
def test_a_kernel_of_a_convolution_is_a_matrix_of_inputs_by_outputs(strategy, value):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32)
    wanted = mapped(kernel.reshape(36, 8), 2.0, value).reshape(kernel.shape)
    got = run(strategy, kernel, np.float32(2.0))
    np.testing.assert_allclose(got, wanted, atol=1e-3)


@both
def test_axes_say_what_is_stacked_and_what_is_an_input(strategy, value):
    heads = np.random.default_rng(0).normal(size=(3, 6, 2, 4)).astype(np.float32)
    clip = strategy({"attention": 1.5}, leading_axes=1, axis=1)
    tree = {"attention": jnp.asarray(heads)}
    got, state = clip.update(tree, clip.init(tree))
    for layer in range(3):
        wanted = mapped(heads[layer].reshape(6, 8), 1.5, value).reshape(6, 2, 4)
        np.testing.assert_allclose(got["attention"][layer], wanted, atol=1e-3)
    assert optaxclip.report(state)["clip/pre_norm"].shape == (3,)


def test_axes_that_a_leaf_does_not_have_are_named():
    for options in ({"axis": 3}, {"leading_axes": 4}):
        clip = optaxclip.clip_singular_values(1.0, **options)
        with pytest.raises(ValueError, match=next(iter(options))):
            clip.init({"w": jnp.ones((2, 3))})


def test_the_report_is_of_the_largest_singular_value():
    tree = {
        "above": jnp.asarray(with_singular_values((8, 6), [5, 3, 2, 1, 0.5, 0.1])),
        "below": jnp.asarray(with_singular_values((8, 6), [0.5, 0.3, 0.2, 0, 0, 0])),
    }
    clip = optaxclip.clip_singular_values(1.0)
    _, state = clip.update(tree, clip.init(tree))
    report = optaxclip.report(state)
    np.testing.assert_allclose(report["clip/pre_norm"], [5.0, 0.5], rtol=0.02)
    np.testing.assert_allclose(report["clip/post_norm"], [1.0, 0.5], rtol=0.02)
    assert report["clip/clipped_fraction"] == 0.5


def test_it_is_a_bound_on_weights_too():
    params = jnp.asarray(with_singular_values((8, 6), [5, 3, 2, 1, 0.5, 0.1]))
    bound = optaxclip.bound_weights(optaxclip.clip_singular_values(2.0))
    updates, _ = bound.update(jnp.zeros_like(params), bound.init(params), params)
    after = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_allclose(after, mapped(params, 2.0, projected), atol=1e-3)


def test_complex_matrices_are_projected():
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(9, 6)) + 1j * rng.normal(size=(9, 6))).astype("c8")
    u, sizes, v = np.linalg.svd(matrix, full_matrices=False)
    got = run(HARD[0], matrix, np.float32(2.0))
    np.testing.assert_allclose(got, (u * np.minimum(sizes, 2)) @ v, atol=1e-3)


@both
def test_mapped_matrices_and_limits_are_each_as_accurate(strategy, value):
    several = np.stack(
        [
            with_singular_values((8, 6), np.logspace(0, -power, 6), seed=power)
            for power in (0, 2, 4)
        ]
    )
    limits = np.array([0.02, 0.5, 2.0], np.float32)
    found = jax.vmap(partial(run, strategy))(several, limits)
    for got, matrix, limit in zip(found, several, limits, strict=True):
        difference = np.asarray(got) - mapped(matrix, limit, value)
        assert np.linalg.norm(difference, 2) < 5e-4 * limit


def with_few_above(count, sizes=(1.05, 3.0), seed=0):
    """Normal numbers of norm 0.95, with so many directions above 1 added."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(300, 256))
    spikes = with_singular_values(
        (300, 256), np.linspace(sizes[0], sizes[1], count), seed
    )
    return (0.95 * noise / np.linalg.norm(noise, 2) + spikes).astype(np.float32)


def found(matrices, limit):
    """What the search for few singular values finds."""
    squares = jax.vmap(gram)(jnp.asarray(matrices).reshape(-1, 1, *matrices.shape[-2:]))
    limits = jnp.full((len(squares), 1, 1, 1), limit, jnp.float32)
    return jax.jit(jax.vmap(search))(squares, limits)


@pytest.mark.parametrize("count", [1, 4, 10])
def test_few_singular_values_above_the_limit_are_found_in_a_subspace(count):
    for sizes in ((1.05, 3.0), (2.0, 2.0), (1.5, 100.0)):
        matrix = with_few_above(count, sizes)
        top = np.linalg.norm(matrix.astype(np.float64), 2)
        got = found(matrix, 1.0)
        assert got.settled.all()
        assert got.top.item() == pytest.approx(top, rel=1e-4)
        assert error(*HARD, matrix, 1.0) < 5e-4


def test_a_subspace_does_not_claim_to_hold_more_than_it_can():
    """As many as it has vectors, one more, many, and many just at the limit."""
    crowd = with_singular_values((300, 256), spectra((300, 256))["clustered"])
    several = [with_few_above(count) for count in (16, 17, 60)]
    got = found(np.stack([*several, crowd]), 1.0)
    assert not got.settled.any()
    for matrix in (*several, crowd):
        assert error(*HARD, matrix, 1.0) < 5e-4


@pytest.mark.parametrize("top", [1.003, 1.05])
def test_one_singular_value_just_above_a_crowd_is_not_missed(top):
    """Of a few random vectors it has too small a share to stand out at first."""
    for crowd in ((0.9, 0.72), (0.9, 0.9), (0.7, 0.7)):
        sizes = np.concatenate([[top], np.linspace(*crowd, 255)])
        assert error(*HARD, with_singular_values((300, 256), sizes), 1.0) < 5e-4


def orderly():
    """Matrices that a vector without a plan might be orthogonal to; limits are 1."""
    n = 256
    one = np.eye(n)
    walsh = np.array([[1.0]])
    for _ in range(8):
        walsh = np.block([[walsh, walsh], [walsh, -walsh]])
    waves = np.cos(np.pi * np.outer(np.arange(n), np.arange(n) + 0.5) / n)
    yield 3.0 * one
    for row, column in ((200, 5), (5, 200)):
        yield 1e12 * np.outer(one[row], one[column])
    yield 1e12 * np.outer(one[5], one[5] + one[-1])
    yield one * np.where(np.arange(n) == 77, 5.0, 0.9)
    yield one * np.where(np.arange(n) < 16, 1.5, 0.5)
    yield walsh / 16 * np.where(np.arange(n) == 200, 1.7, 0.99)
    yield waves / 8 * np.where(np.arange(n) % 40 == 3, 1.2, 0.1)
    yield np.kron(np.eye(2), with_few_above(3)[:128, :128])
    yield np.outer(one[3], one[5]) * 2 + np.outer(one[9], one[2]) * 1e6
    yield np.outer(np.arange(n) - 20, np.ones(n)) / 300


def test_orderly_matrices_are_projected():
    for matrix in orderly():
        assert error(*HARD, matrix.astype(np.float32), 1.0) < 5e-4


def test_of_stacked_matrices_each_goes_its_own_way():
    few, many, none = with_few_above(3), 3 * with_few_above(0), with_few_above(0)
    clip = optaxclip.clip_singular_values(1.0, leading_axes=1)
    several = jnp.stack([few, many, none])
    got, state = jax.jit(clip.update)(several, clip.init(several))
    assert_same_bits(got[2], several[2])
    for each, matrix in zip(got[:2], (few, many), strict=True):
        difference = np.asarray(each) - mapped(matrix, 1.0, projected)
        assert np.linalg.norm(difference, 2) < 5e-4
    np.testing.assert_allclose(optaxclip.report(state)["clip/clipped_fraction"], 2 / 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 2), (64, 64), (160, 96)], ids=str)
def test_polynomials_do_elsewhere_what_vectors_do_on_a_cpu(shape, kind):
    matrix = with_singular_values(shape, spectra(shape)[kind])
    top = np.linalg.norm(matrix.astype(np.float64), 2)
    for ratio in (0.9999, 1.01, 3.0, 100.0):
        limit = jnp.full((1, 1, 1), top / ratio, jnp.float32)
        unsure = jnp.ones_like(limit, bool)
        got, above = jax.jit(clip_by_polynomials)(matrix[None], limit, unsure)
        wanted = mapped(matrix, top / ratio, projected)
        assert np.linalg.norm(np.asarray(got[0]) - wanted, 2) * ratio < 5e-4 * top
        assert above.all() == (ratio > 1)


@pytest.mark.parametrize("shape", [(4, 8, 3), (4, 260, 256)])
@pytest.mark.parametrize(
    "make",
    [
        optaxclip.clip_singular_values,
        optaxclip.soft_clip_singular_values,
        optaxclip.clip_weight_spectral_norm,
    ],
)
def test_layers_spread_over_a_mesh_are_mapped_as_on_one_device(make, shape):
    rng = np.random.default_rng(0)
    layers = jnp.asarray(rng.normal(size=shape), jnp.float32)
    layers = layers.at[:2].multiply(0.01).at[:2, 0, 0].set(9.0)
    clip = make(3.0, leading_axes=1)

    def run(layers):
        return clip.update(layers, clip.init(layers), jnp.zeros_like(layers))[0]

    devices = jax.sharding.Mesh(np.array(jax.devices("cpu")[:4]), ("x",))
    each = jax.sharding.PartitionSpec("x")
    spread = jax.shard_map(run, mesh=devices, in_specs=each, out_specs=each)
    np.testing.assert_allclose(jax.jit(spread)(layers), jax.jit(run)(layers), atol=1e-5)


def test_the_derivative_is_that_of_the_projection():
    matrix = with_singular_values((24, 16), np.linspace(2, 0.3, 16))
    rng = np.random.default_rng(2)
    along, weights = (rng.normal(size=(24, 16)).astype(np.float32) for _ in range(2))
    step = 1e-6
    ahead, behind = (
        mapped(matrix + sign * step * along.astype(np.float64), 1.07, projected)
        for sign in (1, -1)
    )
    wanted = (ahead - behind) / (2 * step)

    def clipped(x):
        return run(HARD[0], x, np.float32(1.07))

    (back,) = jax.vjp(clipped, matrix)[1](weights)
    np.testing.assert_allclose(
        np.vdot(back, along), np.vdot(weights, wanted), rtol=0.01
    )
