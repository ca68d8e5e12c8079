"""Singular values: against numpy.linalg.svd in float64, and the laws of both maps."""

import re
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import assert_same_bits

import optaxclip
from optaxclip.spectral import products
from optaxclip.spectral.bounds import irregular
from optaxclip.spectral.leading_vector import by_krylov
from optaxclip.spectral.singular_values import clip_by_products

# Most tests take the last one, whose programs are compiled by then.
SHAPES = [(1, 1), (2, 2), (3, 7), (400, 16), WIDE := (48, 80)]
LARGE = (300, 256)
EPS = float(jnp.finfo(jnp.float32).eps)


def projected(sizes, limit):
    """What the hard clip makes of singular values."""
    return np.minimum(sizes, limit)


def bent(sizes, scale):
    """What the soft clip makes of them."""
    return sizes / np.sqrt(1 + (sizes / scale) ** 2)


def mapped(matrix, limit, value):
    """The oracle: decompose, map, multiply."""
    u, sizes, v = decomposed(np.asarray(matrix, np.float64).tobytes(), matrix.shape)
    return (u * value(sizes, limit)) @ v


@lru_cache(maxsize=1)
def decomposed(numbers, shape):
    """The last matrix's decomposition, which is asked for with many limits."""
    return np.linalg.svd(np.frombuffer(numbers).reshape(shape), full_matrices=False)


@partial(jax.jit, static_argnums=0)
def run(make, matrix, limit):
    """Map one matrix."""
    clip = make(limit)
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


HARD = (optaxclip.clip_singular_values, projected)
SOFT = (optaxclip.soft_clip_singular_values, bent)
both = pytest.mark.parametrize(("make", "value"), [HARD, SOFT], ids=["hard", "soft"])


def error(make, value, matrix, limit):
    """The largest error, relative to the limit, in the spectral norm."""
    limit = np.float32(limit)
    wanted = mapped(matrix, np.float64(limit), value)
    got = np.asarray(run(make, matrix, limit), np.float64)
    return np.linalg.norm(got - wanted, 2) / limit


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@both
def test_every_kind_of_matrix_is_mapped_as_a_decomposition_would(make, value, shape):
    for kind, sizes in spectra(shape).items():
        matrix = with_singular_values(shape, sizes)
        top = np.linalg.norm(matrix.astype(np.float64), 2)
        for ratio in (0.5, 0.9999, 1.0001, 1.01, 1.5, 3.0, 20.0, 100.0):
            assert error(make, value, matrix, top / ratio) < 5e-4, (kind, ratio)


# Sums of so many products err at random, by the root of so many roundings.
ROUNDING = max(WIDE) ** 0.5 * EPS / 2


@both
def test_a_limit_far_below_all_singular_values_makes_them_equal(make, value):
    matrix = with_singular_values(WIDE, np.linspace(1, 2, min(WIDE)))
    # The hard clip comes down in rounds, whose rounding errors shrink with the largest.
    rounding = 0 if value is projected else ROUNDING * 2
    for ratio in (1e3, 1e4, 1e6):
        assert error(make, value, matrix, 1 / ratio) < 5e-4 + rounding * ratio, ratio


@both
def test_rounding_errors_of_the_largest_are_all_that_a_steep_spectrum_adds(make, value):
    matrix = with_singular_values(WIDE, np.logspace(0, -6, min(WIDE)))
    for ratio in (1e2, 1e3, 1e4, 1e5, 1e6):
        assert error(make, value, matrix, 1 / ratio) < 5e-4 + ROUNDING * ratio, ratio


@both
def test_the_scale_of_the_matrix_does_not_matter(make, value):
    for size in (1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30):
        matrix = with_singular_values(WIDE, np.logspace(0, -3, 16) * size)
        for ratio in (1.5, 10.0):
            assert error(make, value, matrix, size / ratio) < 5e-4, (size, ratio)


def test_large_matrices_are_projected():
    matrix = with_singular_values((640, 640), spectra((640, 640))["condition 1e6"])
    assert error(*HARD, matrix, 1 / 4) < 5e-4


def test_matrices_within_the_limit_keep_their_bits():
    """Far below, near below, and all of them at the limit."""
    for sizes in (
        np.linspace(0.1, 1, 32),
        np.full(32, 0.99),
        np.ones(32),
        np.zeros(32),
    ):
        matrix = jnp.asarray(with_singular_values(WIDE, sizes))
        for limit in (1.00001, 1.001, 2.0, 100.0):
            assert_same_bits(run(HARD[0], matrix, np.float32(limit)), matrix)


def test_no_singular_value_is_above_the_limit_afterward_and_twice_is_once():
    matrix = with_singular_values(WIDE, np.logspace(1, -1, 32))
    once = run(HARD[0], matrix, np.float32(1.0))
    assert np.linalg.norm(np.asarray(once, np.float64), 2) <= 1 + 1e-4
    twice = run(HARD[0], once, np.float32(1.0))
    np.testing.assert_allclose(twice, once, atol=1e-4)


@both
def test_a_vector_is_a_matrix_of_one_column_and_there_is_no_jump(make, value):
    vector = np.array([3.0, -4.0, 12.0], np.float32)
    for limit in (12.9, 13.0, 13.1, 1.0):
        wanted = vector * value(13.0, limit) / 13.0
        for shape in ((3,), (3, 1), (1, 3)):
            got = run(make, vector.reshape(shape), np.float32(limit))
            np.testing.assert_allclose(np.ravel(got), wanted, rtol=1e-5)


@both
def test_a_kernel_of_a_convolution_is_a_matrix_of_inputs_by_outputs(make, value):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32)
    wanted = mapped(kernel.reshape(36, 8), 2.0, value).reshape(kernel.shape)
    got = run(make, kernel, np.float32(2.0))
    np.testing.assert_allclose(got, wanted, atol=1e-3)


@both
def test_axes_say_what_is_stacked_and_what_is_an_input(make, value):
    heads = np.random.default_rng(0).normal(size=(3, 6, 2, 4)).astype(np.float32)
    clip = make({"attention": 1.5}, leading_axes=1, axis=1)
    tree = {"attention": jnp.asarray(heads)}
    got, state = jax.jit(clip.update)(tree, clip.init(tree))
    for layer in range(3):
        wanted = mapped(heads[layer].reshape(6, 8), 1.5, value).reshape(6, 2, 4)
        np.testing.assert_allclose(got["attention"][layer], wanted, atol=1e-3)
    assert state.report.pre_norm.shape == (3,)


def test_axes_that_a_leaf_does_not_have_are_named():
    beyond = {
        "axis": optaxclip.clip_singular_values(1.0, axis=3),
        "leading_axes": optaxclip.clip_singular_values(1.0, leading_axes=4),
    }
    for argument, clip in beyond.items():
        with pytest.raises(ValueError, match=argument):
            clip.init({"w": jnp.ones((2, 3))})


def test_the_report_is_of_the_largest_singular_value():
    tree = {
        "above": with_singular_values(WIDE, [5, 3, 2, 1, 0.5, 0.1]),
        "below": with_singular_values(WIDE, [0.5, 0.3, 0.2, 0, 0, 0]),
    }
    clip = optaxclip.clip_singular_values(1.0)
    _, state = jax.jit(clip.update)(tree, clip.init(tree))
    report = optaxclip.report(state)
    np.testing.assert_allclose(
        report["clip_singular_values/pre_norm"][0], 5.0, rtol=1e-6
    )  # decomposed
    np.testing.assert_allclose(
        report["clip_singular_values/pre_norm"], [5.0, 0.5], rtol=0.02
    )
    np.testing.assert_allclose(
        report["clip_singular_values/post_norm"], [1.0, 0.5], rtol=0.02
    )
    assert report["clip_singular_values/clipped_fraction"] == 0.5


def test_it_is_a_bound_on_weights_too():
    params = with_singular_values(WIDE, [5, 3, 2, 1, 0.5, 0.1])
    clip = optaxclip.bound_weights(optaxclip.clip_singular_values(2.0))
    updates, _ = jax.jit(clip.update)(0 * params, clip.init(params), params)
    wanted = mapped(params, 2.0, projected)
    np.testing.assert_allclose(params + updates, wanted, atol=1e-3)


def test_complex_matrices_are_projected():
    rng = np.random.default_rng(0)
    matrix = (rng.normal(size=(9, 6)) + 1j * rng.normal(size=(9, 6))).astype("c8")
    u, sizes, v = np.linalg.svd(matrix, full_matrices=False)
    got = run(HARD[0], matrix, np.float32(2.0))
    np.testing.assert_allclose(got, (u * np.minimum(sizes, 2)) @ v, atol=1e-3)


@both
def test_mapped_matrices_and_limits_are_each_as_accurate(make, value):
    several = np.stack(
        [
            with_singular_values(WIDE, np.logspace(0, -power, 6), seed=power)
            for power in (0, 2, 4)
        ]
    )
    limits = np.array([0.02, 0.5, 2.0], np.float32)
    found = jax.vmap(partial(run, make))(several, limits)
    for got, matrix, limit in zip(found, several, limits, strict=True):
        assert difference(got, matrix, limit, value) < 5e-4 * limit


def with_few_above(count, sizes=(1.05, 3.0), seed=0):
    """Normal numbers of norm 0.95, with so many directions above 1 added."""
    noise = np.random.default_rng(seed).normal(size=LARGE)
    spikes = with_singular_values(LARGE, np.linspace(sizes[0], sizes[1], count), seed)
    return (0.95 * noise / np.linalg.norm(noise, 2) + spikes).astype(np.float32)


@pytest.mark.parametrize("count", [1, 16, 60])
def test_of_few_and_of_many_above_the_limit_none_is_missed(count):
    for sizes in ((1.05, 3.0), (2.0, 2.0), (1.5, 100.0)):
        assert error(*HARD, with_few_above(count, sizes), 1.0) < 5e-4, sizes


@pytest.mark.parametrize("top", [1.003, 1.05])
def test_one_singular_value_just_above_a_crowd_is_not_missed(top):
    """Of a few random vectors it has too small a share to stand out at first."""
    for crowd in ((0.9, 0.72), (0.9, 0.9), (0.7, 0.7)):
        sizes = np.concatenate([[top], np.linspace(*crowd, min(LARGE) - 1)])
        assert error(*HARD, with_singular_values(LARGE, sizes), 1.0) < 5e-4, crowd


def orderly():
    """Matrices that a vector without a plan might be orthogonal to; limits are 1."""
    n = min(LARGE)
    one = np.eye(n)
    walsh = np.array([[1.0]])
    for _ in range(8):
        walsh = np.block([[walsh, walsh], [walsh, -walsh]])
    waves = np.cos(np.pi * np.outer(np.arange(n), np.arange(n) + 0.5) / n)
    yield 3.0 * one
    for row, column in ((100, 5), (5, 100)):
        yield 1e12 * np.outer(one[row], one[column])
    yield 1e12 * np.outer(one[5], one[5] + one[-1])
    yield one * np.where(np.arange(n) == 77, 5.0, 0.9)
    yield one * np.where(np.arange(n) < 16, 1.5, 0.5)
    yield walsh / n**0.5 * np.where(np.arange(n) == 100, 1.7, 0.99)
    yield waves / (n / 4) ** 0.5 * np.where(np.arange(n) % 40 == 3, 1.2, 0.1)
    yield np.kron(np.eye(2), with_few_above(3)[: n // 2, : n // 2])
    yield np.outer(one[3], one[5]) * 2 + np.outer(one[9], one[2]) * 1e6
    yield np.outer(np.arange(n) - 20, np.ones(n)) / 300


def test_orderly_matrices_are_projected():
    for matrix in orderly():
        # With rows of zeros, which change no vector, the program is the others'.
        taller = np.concatenate([matrix, np.zeros((LARGE[0] - LARGE[1], LARGE[1]))])
        steep = np.linalg.norm(matrix, 2) >= 1e6  # of which rounding errors count
        assert error(*HARD, taller.astype(np.float32), 1.0) < (0.05 if steep else 5e-4)


def difference(got, matrix, limit, value):
    """How far off one of several matrices is, in the spectral norm."""
    return np.linalg.norm(np.asarray(got) - mapped(matrix, limit, value), 2)


WAYS = {
    "hard": (lambda *asked: clip_by_products(asked).matrices, projected),
    "soft": (products.bend_by_products, bent),
}


@pytest.mark.parametrize(("way", "value"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("shape", [(2, 2), WIDE[::-1], LARGE], ids=str)
def test_accelerators_map_as_accurately_with_products_alone(way, value, shape):
    """Stacked, of unequal ratios, up to the largest for which that is promised."""
    matrices = [with_singular_values(shape, x) for x in spectra(shape).values()]
    tops = np.linalg.norm(np.stack(matrices).astype(np.float64), 2, axis=(1, 2))
    for ratios in ((0.9999, 1.01, 3.0, 100.0), (4096.0, 0.5, 1.0001, 1024.0)):
        limits = (tops / ratios).astype(np.float32)[:, None, None]
        got = jax.jit(way)(np.stack(matrices), limits)
        for i, matrix in enumerate(matrices):
            off = difference(got[i], matrix, limits[i].item(), value)
            assert off < 4e-6 * tops[i], (i, ratios)


def test_beyond_the_promised_ratio_an_accelerator_leaves_nothing_above_the_limit():
    for kind, sizes in spectra(WIDE).items():
        matrix = with_singular_values(WIDE[::-1], sizes)[None]
        for ratio in (1e4, 1e5, 1e8, 1e15):
            limit = np.full((1, 1, 1), sizes.max() / ratio, np.float32)
            got = jax.jit(clip_by_products)((matrix, limit)).matrices[0]
            size = np.linalg.norm(np.asarray(got, np.float64), 2)
            assert 0.9 < size / limit < 1.1, (kind, ratio)


def test_on_an_accelerator_a_matrix_within_the_limit_keeps_its_bits_in_a_stack():
    stack = np.stack([with_few_above(3), with_few_above(0), 0 * with_few_above(0)])
    got = jax.jit(clip_by_products)((stack, np.ones((3, 1, 1), np.float32)))
    np.testing.assert_array_equal(got.above.ravel(), [True, False, False])
    assert_same_bits(got.matrices[1:], jnp.asarray(stack[1:]))


def test_the_few_rounds_of_an_accelerator_give_no_spectral_norm_that_is_too_small():
    for kind, sizes in spectra(LARGE).items():
        matrix = with_singular_values(LARGE, sizes)
        a, top = matrix.astype(np.float64), np.linalg.norm(matrix.astype(np.float64), 2)
        vector, highest = irregular(jnp.asarray(matrix[None])), []
        for _ in range(4):
            vector = jax.jit(by_krylov)((jnp.asarray(matrix[None]), vector))
            v = np.asarray(vector[0], np.float64)
            found = np.linalg.norm(a @ v)
            off = np.linalg.norm(a.T @ (a @ v) - found**2 * v)
            highest.append((found + off / (2 * found)) / top)
        assert min(highest) > 1 - EPS, kind
        assert highest[0] < 1.02, kind
        assert highest[-1] < 1.001, kind


SPECTRAL = [
    optaxclip.clip_singular_values,
    optaxclip.soft_clip_singular_values,
    optaxclip.clip_weight_spectral_norm,
]


def decisions(program):
    """The conditionals, and the loops that end by what was computed."""
    loops = re.findall(r"stablehlo\.while.*?cond \{(.*?)\} do \{", program, re.DOTALL)
    counted = r"\s*(.*stablehlo\.(constant|compare|return).*\s*)*"
    return [
        *re.findall(r"stablehlo\.(?:case|if)\b", program),
        *(x for x in loops if "FLOAT" in x or not re.fullmatch(counted, x)),
    ]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("make", SPECTRAL)
def test_no_decision_waits_for_the_host_on_an_accelerator(make, platform):
    clip, layers = make(1.0, leading_axes=1), jnp.ones((2, 16, 8))

    def step(layers):
        return clip.update(layers, clip.init(layers), jnp.zeros_like(layers))

    exported = jax.export.export(jax.jit(step), platforms=[platform])(layers)
    assert "stablehlo.while" in exported.mlir_module()
    assert not decisions(exported.mlir_module())


@pytest.mark.parametrize("make", SPECTRAL)
def test_mapped_matrices_cost_what_stacked_ones_do(make):
    """One decomposition of all, after one look at all."""
    layers = jnp.asarray(np.stack([with_few_above(3), with_few_above(0)]))

    def step(clip, layers):
        state = clip.init(layers)
        return clip.update(layers, state, jnp.zeros_like(layers))[0]

    stacked = jax.jit(partial(step, make(1.0, leading_axes=1)))
    each = jax.jit(jax.vmap(partial(step, make(1.0))))
    programs = [way.lower(layers).as_text() for way in (stacked, each)]
    for call in (r"@lapack_\w+", r"stablehlo\.(case|while|dot_general)\b"):
        first, second = (sorted(re.findall(call, program)) for program in programs)
        assert first == second
    assert_same_bits(each(layers), stacked(layers))


def spread(make, limit, layers, devices):
    """What a map makes of layers on devices, and the share of each that it clipped."""
    clip = make(limit, leading_axes=1)

    def step(layers):
        state = clip.init(layers)
        got, state = clip.update(layers, state, jnp.zeros_like(layers))
        return got, state.report.clipped_fraction[None]

    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:devices]), ("x",))
    each = jax.sharding.PartitionSpec("x")
    mapped = jax.shard_map(step, mesh=mesh, in_specs=each, out_specs=each)
    return jax.jit(mapped)(layers)


def unequal(shape):
    """Four layers, two of which have one large singular value alone."""
    layers = np.random.default_rng(0).normal(size=shape)
    layers[:2] *= 0.01
    layers[:2, 0, 0] = 9.0
    return layers.astype(np.float32)


@both
def test_layers_spread_over_a_mesh_are_mapped_as_a_decomposition_would(make, value):
    layers = unequal((4, 8, 3))
    got, _ = spread(make, 3.0, layers, 4)
    for each, matrix in zip(got, layers, strict=True):
        # The documented error.
        limit = 1e-5 * np.linalg.norm(matrix, 2)
        assert difference(each, matrix, 3.0, value) < limit


def test_of_stacked_matrices_each_goes_its_own_way_on_each_device():
    few, many, none = with_few_above(3), 3 * with_few_above(0), with_few_above(0)
    layers = np.stack([few, many, none, *unequal((1, *LARGE))])
    got, clipped = spread(HARD[0], 1.0, layers, 2)
    assert_same_bits(got[2], jnp.asarray(none))
    for each, matrix in zip(got, layers, strict=True):
        assert difference(each, matrix, 1.0, projected) < 5e-4
    np.testing.assert_array_equal(clipped, [1.0, 0.5])


def test_spectral_norms_of_layers_spread_over_a_mesh_are_bounded():
    layers = unequal((4, 8, 3))
    sizes = np.linalg.norm(layers.astype(np.float64), 2, axis=(1, 2), keepdims=True)
    got, _ = spread(optaxclip.clip_weight_spectral_norm, 3.0, layers, 4)
    # As documented, two millionths too small at most.
    np.testing.assert_allclose(got, layers * np.minimum(1, 3 / sizes), rtol=1e-5)


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

    @jax.jit
    def pulled_back(matrix, weights):
        clipped = partial(run, HARD[0], limit=np.float32(1.07))
        return jax.vjp(clipped, matrix)[1](weights)[0]

    back = pulled_back(matrix, weights)
    np.testing.assert_allclose(
        np.vdot(back, along), np.vdot(weights, wanted), rtol=0.01
    )
