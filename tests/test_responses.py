"""What happens to a group that is too big: against a formula in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from unchecked import unchecked

import optaxclip
from optaxclip import norms, responses, scopes

EPS = float(jnp.finfo(jnp.float32).eps)
WHOLE = scopes.whole()
RATIOS = np.geomspace(1e-6, 1e6, 97).astype(np.float32)
CURVES = {
    name: (getattr(responses, name), getattr(oracles, name))
    for name in ("tanh", "arctan", "algebraic", "pseudo_huber")
}
every_curve = pytest.mark.parametrize(("curve", "formula"), CURVES.values(), ids=CURVES)


def f32(numbers):
    """An array of what the library computes in."""
    return np.asarray(numbers, np.float32)


@partial(jax.jit, static_argnums=(0, 3))
def respond(response, updates, limit, scope=WHOLE):
    """Clip once."""
    norm = norms.linf if response is responses.clamp else norms.l2
    clip = optaxclip.clipper(scope, norm, limit, response)
    return clip.update(updates, clip.init(updates))[0]


def test_shrink_brings_a_group_down_to_its_limit_and_leaves_smaller_ones():
    x = f32([3, -4])
    for limit in (0.0, 1.0, 4.999, 5.0, 5.001, 1e30):
        wanted = x * min(1.0, limit / 5)
        np.testing.assert_allclose(respond(responses.shrink, x, limit), wanted, 1e-6)


def test_normalize_brings_a_group_up_as_well_as_down():
    x = f32([3, -4])
    for limit in (0.0, 1.0, 5.0, 10.0, 1e30):
        wanted = x * (limit / 5)
        np.testing.assert_allclose(respond(responses.normalize, x, limit), wanted, 1e-6)
    for size in (1e-30, 1e30):
        tiny = respond(responses.normalize, np.float32(size) * x, 2.0)
        np.testing.assert_allclose(tiny, [1.2, -1.6], 1e-6)


def test_normalize_raises_a_tiny_group_to_any_limit_and_keeps_its_zeros():
    respond_jitted = jax.jit(lambda x, limit: respond(responses.normalize, x, limit))
    for size, limit in (2e-38, 10), (1e-36, 1e3), (1e-30, 1e20), (1e30, 1e-8):
        got = respond_jitted(f32([0, size]), np.float32(limit))
        np.testing.assert_allclose(got, [0, limit], 1e-6)
    # No float32 holds the quotient.
    far = respond_jitted(f32([0, 0.01]), np.float32(3e38))
    assert far[0] == 0
    assert 3e36 < far[1] < 3.1e38


def test_normalize_leaves_zeros_and_an_infinite_limit_alone():
    zeros = np.zeros(3, np.float32)
    np.testing.assert_array_equal(respond(responses.normalize, zeros, 2.0), zeros)
    x = f32([3, np.inf])
    np.testing.assert_array_equal(respond(responses.normalize, x, np.inf), x)


def test_drop_sets_a_group_above_its_limit_to_zero_and_leaves_others():
    x = f32([[3, -4], [0.3, 0.4]]).T
    clipped = respond(responses.drop, x, 1.0, scopes.unit())
    np.testing.assert_array_equal(clipped, [[0, x[0, 1]], [0, x[1, 1]]])
    for limit in (1e30, 5.0):
        np.testing.assert_array_equal(respond(responses.drop, x[:, 0], limit), x[:, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_drop_does_not_hide_what_is_not_finite(bad):
    x = f32([1, bad])
    assert np.isnan(respond(responses.drop, x, 1.0)).all()
    np.testing.assert_array_equal(respond(responses.drop, x, np.inf), x)


def test_drop_with_a_nan_limit_gives_nan():
    for size in (0.0, 1.0):
        x = np.full(2, size, np.float32)
        assert np.isnan(respond(responses.drop, x, np.nan)).all()


def test_clamp_cuts_every_number_at_the_limit_of_its_group():
    x = f32([-np.inf, -3, -0.5, 0, 0.5, 3, np.inf, np.nan])
    for limit in (0.0, 1.0, 3.0, np.inf):
        wanted = np.clip(x, -np.float32(limit), np.float32(limit))
        clamped = respond(responses.clamp, x, limit)
        np.testing.assert_array_equal(clamped, wanted)


def test_clamp_cuts_complex_numbers_by_modulus():
    x = np.array([3 + 4j, -0.3 + 0.4j, 0, 5j, 1e30 - 1e30j], np.complex64)
    clamped = respond(responses.clamp, x, 1.0)
    wanted = np.where(np.abs(x) > 1, x / np.maximum(np.abs(x), 1), x)
    np.testing.assert_allclose(clamped, wanted, rtol=4 * EPS)


def test_clamp_keeps_the_direction_of_complex_infinities():
    inf, half = np.inf, np.sqrt(0.5)
    x = np.array(
        [complex(*p) for p in [(inf, 2), (-inf, inf), (0, -inf)]], np.complex64
    )
    wanted = 2 * np.array([1, -half + half * 1j, -1j])
    np.testing.assert_allclose(respond(responses.clamp, x, 2.0), wanted, rtol=4 * EPS)


def test_clamp_makes_complex_nan_nan():
    x = np.array([complex(np.nan, 1), complex(0.5, 0.5)], np.complex64)
    clamped = respond(responses.clamp, x, 2.0)
    assert np.isnan(clamped[0])
    assert clamped[1] == x[1]


@pytest.mark.parametrize("limit", [1.0, 3.0, 1e-20, 1e20])
@every_curve
def test_a_curve_is_its_formula_from_very_small_to_very_large(curve, formula, limit):
    x = RATIOS * np.float32(limit)
    soft = respond(responses.soften(curve), x, limit, scopes.element())
    wanted = limit * formula(x.astype(np.float64) / np.float64(np.float32(limit)))
    np.testing.assert_allclose(soft, wanted, rtol=16 * EPS)


@every_curve
def test_a_curve_is_odd_rises_and_never_passes_its_bound(curve, formula):
    soft = respond(responses.soften(curve), RATIOS, 1.0, scopes.element())
    other = respond(responses.soften(curve), -RATIOS, 1.0, scopes.element())
    np.testing.assert_array_equal(soft, -other)
    assert (np.diff(soft) >= -2 * EPS * soft[1:]).all()
    assert (np.diff(soft[RATIOS < 2]) > 0).all()
    assert (soft <= np.minimum(RATIOS, 1) * (1 + 4 * EPS)).all()
    np.testing.assert_allclose(soft[-1], 1, rtol=1e-5)


@every_curve
def test_a_curve_has_no_step_where_its_two_halves_meet(curve, formula):
    x = np.float32(1) + np.float32(EPS) * np.arange(-50, 51, dtype=np.float32)
    soft = respond(responses.soften(curve), x, 1.0, scopes.element())
    np.testing.assert_allclose(soft, formula(x.astype(np.float64)), rtol=4 * EPS)


@every_curve
def test_a_curve_has_slope_one_at_zero(curve, formula):
    slope = jax.jit(jax.grad(partial(respond, responses.soften(curve))))
    for limit in (0.1, 1.0, np.inf):
        for sign in (0.0, -0.0):
            assert slope(sign, limit) == 1


def test_slopes_of_slopes_are_zero_where_nothing_bends():
    def slope(x, limit):
        soft = partial(respond, responses.soften(responses.tanh))
        return jax.grad(lambda *given: soft(*given)[0], (0, 1))(x, limit)

    x = f32([3, -4])
    bends = jax.jit(lambda x, limit: jax.jvp(partial(slope, limit=limit), (x,), (x,)))
    for size, limit in ((1.0, np.inf), (1e30, 1.0)):
        (_, by_limit), (turned, _) = bends(np.float32(size) * x, limit)
        np.testing.assert_allclose(by_limit, 0.0 if size == 1 else 0.6, rtol=1e-6)
        assert np.isfinite(turned).all()


@pytest.mark.parametrize("response", [responses.shrink, responses.normalize], ids=repr)
def test_slopes_of_a_huge_group_are_finite_at_every_limit(response):
    """Of a group whose squares overflow, whose limits are below and above it."""
    x = f32([3, -4])

    def first(stretch, limit):
        return respond(response, np.float32(1e24) * x * (1 + stretch), limit)[0]

    slopes = jax.jit(jax.value_and_grad(jax.grad(first)))
    for limit, wanted in ((1e-3, 0.0), (1e20, 0.0), (np.inf, 3e24)):
        slope, bend = slopes(jnp.float32(0), limit)
        np.testing.assert_allclose(
            slope, wanted, rtol=1e-6, atol=1e-6 * min(limit, 1e20)
        )
        assert np.isfinite(bend)


@pytest.mark.parametrize("response", [responses.normalize, responses.auto_s()])
def test_a_group_that_is_normalized_has_a_slope_by_the_largest_limit(response):
    def first(limit, size):
        return jnp.sum(respond(response, size * f32([3, 4]), limit))

    slope = jax.jit(jax.grad(first))
    for size in (1.0, 1e10, 1e30):
        wanted = 1.4 * 5 * size / (5 * size + getattr(response, "gamma", 0))
        got = slope(np.float32(3e38), np.float32(size))
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_auto_s_raises_a_group_far_below_gamma_to_a_large_limit():
    value, scale, limit = jnp.asarray([1.0, 2.0**109, 1e25])  # A group of 2^-109.
    first, second = responses.auto_s(0.01).weigh(value, scale, limit)
    np.testing.assert_allclose(first * second, 1e27, rtol=1e-6)


def test_a_tiny_number_that_is_normalized_has_no_slope():
    def signed(x):
        return respond(responses.normalize, x, 2.0, scopes.element()).sum()

    x = f32([1e-30, -1e-25, 3.0])
    np.testing.assert_array_equal(jax.grad(signed)(x), np.zeros(3))


@every_curve
def test_the_slope_of_a_curve_is_that_of_its_formula(curve, formula):
    x = np.geomspace(1e-3, 30, 25).astype(np.float32)
    soften = partial(respond, responses.soften(curve), scope=scopes.element())
    slope = jax.jit(jax.grad(lambda x: soften(x, 1.0).sum()))(jnp.asarray(x))
    step = 1e-6 * x.astype(np.float64)
    wanted = (formula(x + step) - formula(x - step)) / (2 * step)
    np.testing.assert_allclose(slope, wanted, rtol=1e-3, atol=4 * EPS)


@every_curve
def test_a_curve_bends_the_norm_of_a_group_and_keeps_its_direction(curve, formula):
    x = f32([3, -4])
    for limit in (0.1, 2.5, 10.0, 100.0):
        wanted = x * (limit / 5 * formula(5 / limit))
        soft = respond(responses.soften(curve), x, limit)
        np.testing.assert_allclose(soft, wanted, rtol=8 * EPS)


@every_curve
def test_a_curve_leaves_a_big_group_alone_far_below_its_limit(curve, formula):
    x = f32([3e20, -4e20])
    for limit in (1e34, 1e36, 1e38):
        soft = respond(responses.soften(curve), x, limit)
        np.testing.assert_allclose(soft, x, rtol=8 * EPS)


def test_a_curve_of_ones_own_is_taken():
    corner = responses.Curve("corner", lambda r: jnp.where(r < 1, r, 1))
    x = f32([3, -4])
    for limit in (1.0, 7.0):
        wanted = respond(responses.shrink, x, limit)
        soft = respond(responses.soften(corner), x, limit)
        np.testing.assert_allclose(soft, wanted, rtol=4 * EPS)


ELEMENTWISE = {
    "clamp": (responses.clamp, lambda r: np.minimum(r, 1)),
    "shrink": (responses.shrink, lambda r: np.minimum(r, 1)),
    "drop": (responses.drop, lambda r: np.where(r > 1, 0, r)),
    "normalize": (responses.normalize, np.ones_like),
    "soften": (responses.soften(), oracles.tanh),
}


@pytest.mark.parametrize("limit", [1.0, 1e38, 2.5e38])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_complex_numbers_whose_modulus_overflows_are_clipped_one_by_one(name, limit):
    response, formula = ELEMENTWISE[name]
    x = np.array([3e38 + 3e38j, -2e38 + 3e38j, 3e38, 1 - 1j], np.complex64)
    wide = x.astype(np.complex128)
    wanted = wide / np.abs(wide) * limit * formula(np.abs(wide) / limit)
    found = respond(response, x, limit, scopes.element())
    np.testing.assert_allclose(found, wanted, rtol=16 * EPS)


def test_a_curve_prints_as_its_name():
    assert [repr(curve) for curve, _ in CURVES.values()] == [
        f"responses.{name}" for name in CURVES
    ]


@pytest.mark.parametrize("curve", ["tanh", np.tanh, None])
def test_what_is_no_curve_is_refused(curve):
    with unchecked(), pytest.raises(TypeError, match=r"^curve must be a Curve such as"):
        responses.soften(curve)


@pytest.mark.parametrize("response", [responses.shrink, responses.normalize])
def test_the_report_says_what_is_left(response):
    x = f32([3, -4])
    clip = optaxclip.clipper(scopes.whole(), norms.l2, 2.0, response)
    clipped, state = jax.jit(lambda u: clip.update(u, clip.init(u)))(x)
    np.testing.assert_allclose(
        state.report.post_norm, np.linalg.norm(np.asarray(clipped)), 1e-6
    )


def test_auto_s_normalizes_by_the_magnitude_raised_by_gamma():
    for size in (1e-30, 1e-3, 1.0, 1e30):
        x = np.asarray([0.6, 0.8]) * size
        wanted = x * (2.0 / (size + 0.01))
        got = respond(responses.auto_s(), np.float32(x), 2.0)
        np.testing.assert_allclose(got, wanted, 1e-6)
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="gamma must be at least 0 and finite"):
            responses.auto_s(wrong)


ORDERS = {"l1": 1, "l2": 2, "linf": np.inf, "p3": 3}
FACTORS = {
    responses.shrink: lambda ratio: np.minimum(1, 1 / ratio),
    responses.normalize: lambda ratio: 1 / ratio,
    responses.soften(responses.algebraic): lambda ratio: 1 / (1 + ratio),
}


@jax.jit
def brought_to(limit, columns):
    """Each column clipped alone, in every norm and by every response."""

    def clipped(norm, response):
        clip = optaxclip.clipper(scopes.unit(), norm, limit, response)
        return clip.update(columns, clip.init(columns))[0]

    named = {"l1": norms.l1, "l2": norms.l2, "linf": norms.linf, "p3": norms.p_norm(3)}
    return {
        name: [clipped(norm, response) for response in FACTORS]
        for name, norm in named.items()
    }


def test_columns_of_any_size_are_brought_to_any_limit_as_float64_would():
    """From 1e-29 to 1e34, and unlike within a column by up to eight powers of ten."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        sizes = 10 ** rng.uniform(-25, 30, (1, 6)) * 10 ** rng.uniform(-4, 4, (5, 6))
        columns = jnp.asarray(rng.normal(size=(5, 6)) * sizes, jnp.float32)
        limit = np.float32(10 ** rng.uniform(-20, 33))
        numbers = np.asarray(columns, np.float64)
        for name, found in brought_to(limit, columns).items():
            norm = np.linalg.norm(numbers, ORDERS[name], axis=0)
            for got, factor in zip(found, FACTORS.values(), strict=True):
                factors = factor(norm / limit)
                held = factors < 1e38  # or no float32 holds what it is multiplied by
                wanted = numbers * factors
                np.testing.assert_allclose(
                    np.asarray(got)[:, held], wanted[:, held], 4e-6, 2e-38
                )
