"""Bounds on weights: what holds after optax.apply_updates, to the last bit."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import assert_same_bits, wide

import optaxclip

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
PAIRS = {
    f"{p.__name__} by {u.__name__}": (p, u)
    for p, u in itertools.product(DTYPES, DTYPES)
}
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def numbers(shape, size, seed):
    """Normal numbers of a size, among them ones that no limit divides well."""
    return np.random.default_rng(seed).normal(size=shape) * size


def of_pairs(shape, size) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and updates of every pair of dtypes, in one tree for one program."""
    params, updates = (numbers(shape, size, seed) for seed in (0, 1))
    return (
        {pair: np.asarray(params, dtype) for pair, (dtype, _) in PAIRS.items()},
        {pair: np.asarray(updates, dtype) for pair, (_, dtype) in PAIRS.items()},
    )


def is_coarse(pair):
    """From far away no update of so few digits leads into a bound at once."""
    of_params, of_updates = PAIRS[pair]
    return jnp.finfo(of_updates).eps > jnp.finfo(of_params).eps


def held(update, params, updates, applied):
    """The parameters after a step, or after three more where updates are coarse."""
    with jax.numpy_dtype_promotion("standard"):
        first = params = applied(params, update(updates, params))
        for _ in range(3):
            zeros = jax.tree.map(np.zeros_like, updates)
            params = applied(params, update(zeros, params))
    return {p: (params if is_coarse(p) else first)[p] for p in PAIRS}


def stepped(transformation, params, updates) -> Any:
    """The parameters after one step, as a training loop has them."""

    @jax.jit
    def first(updates, params):
        return transformation.update(updates, transformation.init(params), params)[0]

    return apply_jitted(params, first(updates, params))


def again(update, params, state) -> tuple[Any, Any]:
    """The parameters and the state after a step of no update."""
    updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
    return apply_jitted(params, updates), state


@partial(jax.jit, static_argnums=(0, 1))
def bounded(make, options, limit, updates, params):
    """What a bound, of a traced limit, makes of first updates."""
    bound = make(limit, **dict(options))
    return bound.update(updates, bound.init(params), params)[0]


apply_jitted = jax.jit(optax.apply_updates)
value_bounded = partial(bounded, optaxclip.clip_weights, ())


@pytest.mark.parametrize(
    "applied", [apply_jitted, optax.apply_updates], ids=["jit", "eager"]
)
def test_no_parameter_is_beyond_a_value(applied):
    for limit, size in (
        (0.1, 0.1),
        (0.01, 1.0),
        (1 / 3, 10.0),
        (1.0, 1e3),
        (7.7, 1e-3),
    ):
        params, updates = of_pairs(4000, size)
        after = held(partial(value_bounded, limit), params, updates, applied)
        for pair, x in after.items():
            assert x.dtype == PAIRS[pair][0], pair
            assert np.abs(wide(x)).max() <= np.float32(limit), (pair, limit, size)


@each_dtype
def test_a_step_and_its_bound_in_one_jit_keep_the_bound(dtype):
    """Where XLA is free to leave out roundings between the two."""
    params = np.asarray(numbers(4000, 1.0, 0), dtype)
    chain = optax.chain(optax.sgd(0.3), optaxclip.clip_weights(0.1))

    @jax.jit
    def step(params, state, grads):
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = chain.init(params)
    for seed in range(3):
        grads = np.asarray(numbers(4000, 1.0, seed), dtype)
        params, state = step(params, state, grads)
        assert np.abs(wide(params)).max() <= np.float32(0.1)


@each_dtype
def test_two_bounds_hold_each_on_its_side(dtype):
    params = np.asarray(numbers(4000, 1.0, 0), dtype)
    bound = optaxclip.clip_weights(0.3, min_value=-0.05)
    after = wide(stepped(bound, params, np.zeros_like(params)))
    assert np.float32(-0.05) <= after.min() < -0.04
    assert 0.29 < after.max() <= np.float32(0.3)


def test_what_would_be_within_keeps_the_bits_of_its_update():
    params, updates = of_pairs(4000, 1.0)
    with jax.numpy_dtype_promotion("standard"):
        after = apply_jitted(params, updates)
        for limit in (1.0, 100.0):
            found = value_bounded(limit, updates, params)
            for pair, x in found.items():
                free = np.abs(wide(after[pair])) <= 1.0
                assert x.dtype == PAIRS[pair][1], pair
                same = np.asarray(x) == np.asarray(updates[pair])
                assert same[free].all(), (pair, limit)


NORMS = {
    "tensor": (optaxclip.clip_weight_norm, (), None),
    "unit": (optaxclip.clip_weight_unit_norm, (), 0),
    "units of rows": (optaxclip.clip_weight_unit_norm, (("axis", 1),), 1),
}


@pytest.mark.parametrize(("make", "options", "axis"), NORMS.values(), ids=NORMS)
def test_no_norm_is_beyond_its_bound_but_for_one_rounding(make, options, axis):
    params, updates = of_pairs((40, 30), 1.0)
    update = partial(bounded, make, options, 2.5)
    after = held(update, params, updates, apply_jitted)
    for pair, x in after.items():
        size = np.sqrt((wide(x) ** 2).sum(axis))
        rounding = float(jnp.finfo(PAIRS[pair][0]).eps)
        assert size.max() <= 2.5 * (1 + rounding), pair
        assert size.min() > 2.4, pair  # not shrunk more than they have to be


@each_dtype
def test_no_spectral_norm_is_beyond_its_bound_once_it_is_found(dtype):
    params = np.asarray(numbers((40, 30), 1.0, 0), dtype)
    bound = optaxclip.clip_weight_spectral_norm(2.5)
    state = bound.init(params)
    step = jax.jit(bound.update)
    for _ in range(10):
        params, state = again(step, params, state)
    size = np.linalg.norm(wide(params), 2)
    assert size <= 2.5 * (1 + max(1e-5, float(jnp.finfo(dtype).eps)))
    assert size > 2.4


def crowded():
    """Matrices whose singular values are nearly all the same, and how they grow."""
    rng, n = np.random.default_rng(0), 128
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2))
    first = np.zeros((n, n))
    first[7, 7] = 1.0
    yield 1.999 * np.eye(n), 5e-4 * first
    yield 1.999 * left, 5e-4 * left[:, :1] @ right[:1]
    yield left * np.array([2.002] + [1.992] * (n - 1)) @ right, 0 * first


def test_the_spectral_norm_is_bounded_where_singular_values_are_crowded():
    """From the first step on, while one direction outgrows the others."""
    bound = optaxclip.clip_weight_spectral_norm(2.0)
    step = jax.jit(bound.update)
    for start, growth in crowded():
        params = np.asarray(start, jnp.float32)
        updates, state = np.asarray(growth, jnp.float32), bound.init(params)
        size = 0.0
        for _ in range(8):
            update, state = step(updates, state, params)
            params = apply_jitted(params, update)
            size = np.linalg.norm(wide(params), 2)
            assert size <= 2 * (1 + float(jnp.finfo(jnp.float32).eps))
        assert size > 2 * (1 - 1e-5)


def test_the_spectral_norm_is_found_whatever_the_first_vector_is():
    """An orthogonal one, one from another matrix, and a matrix of zeros before."""
    matrix = np.diag(np.array([8.0, 4.0, 2.0], np.float32))
    bound = optaxclip.clip_weight_spectral_norm(1.0)
    state, step = bound.init(matrix), jax.jit(bound.update)
    for vector in ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]):
        given = state._replace(measure=np.array(vector, np.float32)[None, :, None])
        _, given = again(step, np.zeros((3, 3), np.float32), given)
        _, given = again(step, matrix, given)
        after, _ = again(step, matrix, given)
        np.testing.assert_allclose(after, matrix / 8, rtol=1e-4, atol=1e-6)


def test_a_bad_step_leaves_the_vector_of_the_spectral_norm_alone():
    matrix = np.asarray(numbers((5, 4), 1.0, 0), jnp.float32)
    bound = optaxclip.clip_weight_spectral_norm(1.0)
    step = jax.jit(bound.update)
    _, state = step(np.zeros((5, 4), np.float32), bound.init(matrix), matrix)
    broken = np.copy(matrix)
    broken[1, 2] = np.nan
    params, after = again(step, broken, state)
    assert np.isnan(params).all()
    assert_same_bits(after.measure, state.measure)


def test_later_steps_of_the_spectral_norm_go_on_from_the_vector():
    """Whose two largest singular values are hardly told apart in one step."""
    matrix = np.asarray(numbers((60, 50), 1.0, 0), jnp.float32)
    size = np.linalg.norm(wide(matrix), 2)
    bound = optaxclip.clip_weight_spectral_norm(jnp.inf)
    state, step, found = bound.init(matrix), jax.jit(bound.update), []
    for _ in range(20):
        _, state = step(np.zeros_like(matrix), state, matrix)
        found.append(
            float(optaxclip.report(state)["clip_weight_spectral_norm/pre_norm"][0])
        )
    np.testing.assert_allclose(found[0], size, rtol=1e-3)
    np.testing.assert_allclose(found[-1], size, rtol=2e-6)


def test_stacked_layers_and_kernels_of_convolutions_have_spectral_norms():
    layers = np.asarray(numbers((3, 5, 4), 1.0, 0), jnp.float32)
    kernel = np.asarray(numbers((2, 2, 3, 4), 1.0, 1), jnp.float32)
    params = {"layers": layers, "kernel": kernel}
    bound = optaxclip.clip_weight_spectral_norm(
        1.0, leading_axes={"layers": 1, "kernel": 0}
    )
    after = stepped(bound, params, jax.tree.map(np.zeros_like, params))
    sizes = [np.linalg.norm(wide(x), 2) for x in after["layers"]]
    sizes.append(np.linalg.norm(wide(after["kernel"]).reshape(12, 4), 2))
    np.testing.assert_allclose(sizes, 1.0, rtol=1e-4)


def modules():
    """Two layers, a normalization, a bias alone and one of two kernels."""
    return {
        "first": {
            "kernel": np.full((4, 9), 5.0, np.float32),
            "bias": np.full(9, -5.0, np.float32),
        },
        "norm": {
            "scale": np.full(9, 5.0, np.float32),
            "bias": np.full(9, 5.0, np.float32),
        },
        "conv": {
            "kernel": np.full((3, 3, 1, 2), 5.0, np.float32),
            "bias": np.full(2, 5.0, np.float32),
        },
        "cell": {
            "inputs": np.full((4, 2), 5.0, np.float32),
            "hidden": np.full((16, 2), 5.0, np.float32),
            "bias": np.full(2, 5.0, np.float32),
        },
        "temperature": np.float32(5.0),
    }


def test_weights_stay_as_small_as_they_were_initialized():
    params = modules()
    after = stepped(
        optaxclip.clip_weights_to_init(2.0),
        params,
        jax.tree.map(np.zeros_like, params),
    )
    largest = jax.tree.map(lambda x: float(np.abs(x).max()), after)
    assert largest["first"] == {"kernel": 1.0, "bias": 1.0}
    assert largest["norm"] == {"scale": 5.0, "bias": 5.0}
    np.testing.assert_allclose(list(largest["conv"].values()), 2 / 3, rtol=1e-6)
    assert largest["cell"] == {"inputs": 1.0, "hidden": 0.5, "bias": 0.5}
    assert largest["temperature"] == 5.0


def test_the_fan_in_of_heads_is_that_of_the_axis():
    params = {
        "kernel": np.full((4, 2, 8), 5.0, np.float32),
        "bias": np.full((2, 8), 5.0, np.float32),
    }
    bound = optaxclip.clip_weights_to_init(1.0, axis={"kernel": 0, "bias": ()})
    after = stepped(bound, params, jax.tree.map(np.zeros_like, params))
    assert np.max(after["kernel"]) == 0.5
    assert np.max(after["bias"]) == 1.0  # of two dimensions, it has its own fan-in


@pytest.mark.parametrize("axis", [5, -3, (0, 2), "inputs"])
def test_an_axis_that_no_kernel_has_is_refused_in_words(axis):
    bound = optaxclip.clip_weights_to_init(1.0, axis=axis)
    with pytest.raises(ValueError, match=r"^axis must name dimensions of a leaf of sh"):
        bound.init(np.ones((4, 2), np.float32))


def test_flax_names_the_parameters_that_are_beside_one_another():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(16, 3, rngs=nnx.Rngs(0))
    model.bias[...] = np.full(3, 5.0, np.float32)
    chain = optax.chain(optax.sgd(0.0), optaxclip.clip_weights_to_init(1.0))
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)
    nnx.jit(lambda o, m: o.update(m, nnx.state(m, nnx.Param)))(optimizer, model)
    np.testing.assert_array_equal(model.bias[...], 0.25)


BOUNDS = {
    "clip_weights": (optaxclip.clip_weights, "value"),
    "clip_weight_norm": (optaxclip.clip_weight_norm, "norm"),
    "clip_weight_unit_norm": (optaxclip.clip_weight_unit_norm, "unit"),
    "clip_weights_to_init": (optaxclip.clip_weights_to_init, "init"),
    "clip_weight_spectral_norm": (optaxclip.clip_weight_spectral_norm, "spectrum"),
}
every_bound = pytest.mark.parametrize(("make", "kind"), BOUNDS.values(), ids=BOUNDS)


def size_of(params, kind):
    """What a kind of bound is about, of a kernel (4, 3)."""
    if kind == "value":
        return np.abs(params).max()
    if kind == "norm":
        return np.linalg.norm(params)
    if kind == "unit":
        return np.linalg.norm(params, axis=0).max()
    return np.abs(params).max() * 2 if kind == "init" else np.linalg.norm(params, 2)


@every_bound
def test_a_schedule_or_an_array_drives_each_bound(make, kind):
    params = np.asarray(numbers((4, 3), 10.0, 0), jnp.float32)
    schedule = optax.linear_schedule(3.0, 1.0, 2)
    bound = make(schedule)
    state, step = bound.init(params), jax.jit(bound.update)
    for wanted in (3.0, 2.0, 1.0, 1.0):
        after, state = again(step, params, state)
        np.testing.assert_allclose(size_of(wide(after), kind), wanted, rtol=1e-5)
    after = stepped(make(jnp.asarray(0.5)), params, np.zeros_like(params))
    np.testing.assert_allclose(size_of(wide(after), kind), 0.5, rtol=1e-5)


@every_bound
def test_the_report_is_of_the_weights_and_bears_the_name(make, kind):
    params = {"kernel": np.asarray(numbers((4, 3), 10.0, 0), jnp.float32)}
    chain = optax.chain(optaxclip.clip_value(1.0), optax.sgd(0.1), make(0.5))
    _, state = jax.jit(chain.update)(params, chain.init(params), params)
    report = optaxclip.report(state)
    limit = np.max(report[f"{make.__name__}/limit"])
    np.testing.assert_allclose(limit, 0.25 if kind == "init" else 0.5)
    assert np.max(report[f"{make.__name__}/pre_norm"]) > limit
    assert report[f"{make.__name__}/clipped_steps"] == 1


@every_bound
def test_masks_and_partitions_choose_the_leaves(make, kind):
    params = {
        "in": np.full((4, 3), 9.0, np.float32),
        "out": np.full((4, 3), 9.0, np.float32),
    }
    zeros = jax.tree.map(np.zeros_like, params)
    masked = optax.masked(make(0.5), {"in": True, "out": False})
    after = stepped(masked, params, zeros)
    np.testing.assert_allclose(size_of(wide(after["in"]), kind), 0.5, rtol=1e-5)
    assert_same_bits(after["out"], params["out"])
    parts: dict[Any, Any] = {"tight": make(0.5), "loose": make(2.0)}
    split = optax.partition(parts, {"in": "tight", "out": "loose"})
    after = stepped(split, params, zeros)
    np.testing.assert_allclose(size_of(wide(after["out"]), kind), 2.0, rtol=1e-5)


def test_gradients_and_weights_are_clipped_in_one_chain():
    params = {"w": np.asarray(numbers((4, 3), 1.0, 0), jnp.float32)}
    chain = optax.chain(
        optaxclip.clip_global_norm(1.0), optax.sgd(0.5), optaxclip.clip_weights(0.25)
    )
    state = chain.init(params)
    step = jax.jit(chain.update)
    for seed in range(5):
        grads = {"w": np.asarray(numbers((4, 3), 10.0, seed), jnp.float32)}
        updates, state = step(grads, state, params)
        params = apply_jitted(params, updates)
        assert np.abs(params["w"]).max() <= 0.25
        if seed:  # within since the first step, so that no weight has to come back
            assert optaxclip.tree_norm(updates) <= 0.5 * 1.00001
    report = optaxclip.report(state)
    np.testing.assert_allclose(report["clip_global_norm/post_norm"], 1.0, rtol=1e-6)


def test_any_clipper_may_bound_the_weights():
    params = {"a": np.full(3, 2.0, np.float32), "b": np.full(1, 2.0, np.float32)}
    ball = optaxclip.bound_weights(optaxclip.clip_global_norm(1.0))
    after = stepped(ball, params, jax.tree.map(np.zeros_like, params))
    np.testing.assert_allclose(optaxclip.tree_norm(after), 1.0, rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_broken_is_loud(bad):
    params, zeros = np.array([1.0, bad, 3.0], np.float32), np.zeros(3, np.float32)
    after = stepped(optaxclip.clip_weights(2.0), params, zeros)
    np.testing.assert_array_equal(after, [1.0, jnp.nan, 2.0])
    after = stepped(optaxclip.clip_weight_norm(2.0), params, zeros)
    assert np.isnan(after).all()


def test_a_sum_beyond_the_type_comes_back_to_its_largest_number():
    """Where the limit is beyond the type as well."""
    params = np.asarray([6e4, -6e4, 1.0], jnp.float16)
    after = stepped(optaxclip.clip_weights(1e5), params, params)
    np.testing.assert_array_equal(after, np.array([65504, -65504, 2], np.float16))


@partial(jax.jit, static_argnums=0)
def traced(make, params, limit):
    """One step of no update, with a traced limit."""
    bound = make(limit)
    return again(bound.update, params, bound.init(params))[0]


@every_bound
def test_a_traced_limit_below_zero_acts_as_zero_and_nan_is_loud(make, kind):
    del kind
    params = np.asarray(numbers((4, 3), 1.0, 0), jnp.float32)
    for limit in (0.0, -1.0):
        np.testing.assert_array_equal(traced(make, params, limit), 0.0)
    assert np.isnan(traced(make, params, jnp.nan)).all()
    assert_same_bits(traced(make, params, jnp.inf), params)
