"""Every example clipped where the batch is spread over a mesh, under jit."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from per_example import clipped_mean, distance, norms_of, random, values_and_gradients
from quickly import jit_quickly

import optaxclip

PARAMS = {"w": random(0, 6, 8), "v": random(1, 8, 2)}
SPECS = {"w": P(None, "model"), "v": P("model")}
X, SHARED = random(2, 6, 16), random(3, 2)
AXES = (1, None)


def loss(params, x, shared):
    """Two layers; the examples are columns."""
    hidden = jnp.tanh(x @ params["w"])
    return jnp.sum((hidden @ params["v"] - shared) ** 2), hidden


(VALUES, HIDDEN), GRADIENTS = values_and_gradients(
    loss, PARAMS, (X, SHARED), AXES, has_aux=True
)
NORMS = norms_of(GRADIENTS)
LIMIT = float(np.median(NORMS))


def mesh_of(axis_type):
    """Two devices for the examples by two for the layers."""
    devices = np.array(jax.devices()[:4]).reshape(2, 2)
    return Mesh(devices, ("data", "model"), axis_types=(axis_type,) * 2)


def placed(mesh):
    """The parameters and a batch on the mesh."""
    given, specs = (PARAMS, X, SHARED), (SPECS, P(None, "data"), P())
    return jax.device_put(given, jax.tree.map(partial(NamedSharding, mesh), specs))


# All, two examples on each device, and fewer examples than devices.
MICROBATCHES = (None, 4, 1)


@jit_quickly
def in_microbatches(params, *batch):
    """What is clipped at each size, as one program."""
    return [
        optaxclip.clipped_value_and_grad(
            loss, LIMIT, has_aux=True, in_axes=AXES, microbatch_size=size
        )(params, *batch)
        for size in MICROBATCHES
    ]


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_a_batch_on_a_mesh_is_clipped_as_on_one_device(axis_type):
    mesh = mesh_of(axis_type)
    with jax.set_mesh(mesh):
        found = in_microbatches(*placed(mesh))
    for size, (examples, grads) in zip(MICROBATCHES, found, strict=True):
        assert distance(grads, clipped_mean(GRADIENTS, LIMIT)) < 1e-5, size
        np.testing.assert_allclose(examples.norm, NORMS, rtol=1e-5)
        np.testing.assert_allclose(examples.value, VALUES, rtol=1e-5)
        np.testing.assert_allclose(examples.aux, HIDDEN, rtol=1e-5, atol=1e-6)
        if axis_type == AxisType.Explicit:
            kept = [x.sharding.spec for x in (examples.norm, grads["w"], grads["v"])]
            assert kept == [P("data"), P(None, "model"), P("model", None)], size


FURTHER = {
    "fsdp": {"w": P("data"), "v": P("data")},
    "three": {"w": P("data", ("model", "other")), "v": P(("model", "other"))},
}


@pytest.mark.parametrize("layout", FURTHER)
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_parameters_may_lie_along_the_axis_of_the_examples(axis_type, layout):
    """All functions as one program, without a mesh that is set."""
    devices = np.array(jax.devices()[:8]).reshape(2, 2, 2)
    mesh = Mesh(devices, ("data", "model", "other"), axis_types=(axis_type,) * 3)
    specs = (FURTHER[layout], P(None, "data"), P())
    given = jax.device_put(
        (PARAMS, X, SHARED), jax.tree.map(partial(NamedSharding, mesh), specs)
    )
    wide = jax.tree.unflatten(jax.tree.structure(PARAMS), GRADIENTS)
    narrow = jax.tree.map(lambda g: g.astype(np.float32), wide)
    stacked = jax.device_put(narrow, NamedSharding(mesh, P("data")))
    options = {"has_aux": True, "in_axes": AXES}
    mean = optaxclip.clip_per_example(LIMIT)

    @jit_quickly
    def run(stacked, params, *batch):
        return (
            optaxclip.clipped_value_and_grad(loss, LIMIT, **options)(params, *batch)[1],
            mean.update(stacked, mean.init(params))[0],
            optaxclip.per_example_norms(loss, **options)(params, *batch),
        )

    grads, of_stacked, norms = run(stacked, *given)
    want = clipped_mean(GRADIENTS, LIMIT)
    assert distance(grads, want) < 1e-5
    assert distance(of_stacked, want) < 1e-5
    np.testing.assert_allclose(norms, NORMS, rtol=1e-5)
    for name, spec in FURTHER[layout].items():
        kept = NamedSharding(mesh, spec)
        if axis_type == AxisType.Explicit:
            assert grads[name].sharding.is_equivalent_to(kept, 2)


def test_norms_are_measured_on_explicit_axes_where_no_mesh_is_set():
    norms = optaxclip.per_example_norms(loss, has_aux=True, in_axes=AXES)
    given = placed(mesh_of(AxisType.Explicit))
    np.testing.assert_allclose(jit_quickly(norms)(*given), NORMS, rtol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_microbatches_leave_the_examples_on_their_devices(axis_type):
    grad = optaxclip.clipped_grad(loss, LIMIT, has_aux=True, microbatch_size=4)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",), axis_types=(axis_type,))
    batch = jax.device_put((X.T, jnp.ones((16, 2))), NamedSharding(mesh, P("data")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
    text = jit_quickly(grad).lower(params, *batch).compile().as_text() or ""
    assert "all-reduce" in text
    for gathered in ("all-gather", "all-to-all", "collective-permute"):
        assert gathered not in text


def test_parameters_spread_like_the_batch_are_gathered_once_as_for_the_plain_gradient():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    given = [random(0, 64, 64), random(1, 64, 64)], random(2, 16, 8, 64)
    params, x = jax.device_put(given, NamedSharding(mesh, P("data")))

    def of_one(params, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ params[0]) @ params[1]))

    def mean(params, x):
        return jnp.mean(jax.vmap(of_one, (None, 0))(params, x))

    def gathered(gradient):
        text = jit_quickly(gradient).lower(params, x).compile().as_text() or ""
        return len(re.findall(r"= f32\[64,64\]\S* all-gather\(", text))

    assert gathered(optaxclip.clipped_grad(of_one, 1.0)) == gathered(jax.grad(mean)) > 0


def test_in_shard_map_some_axes_may_be_left_to_xla():
    options = {"has_aux": True, "in_axes": (0, None), "axis_name": "data"}
    step = jax.shard_map(
        optaxclip.clipped_grad(loss, LIMIT, **options),
        mesh=mesh_of(AxisType.Auto),
        in_specs=(P(), P("data"), P()),
        out_specs=(P(), P("data")),
        axis_names={"data"},
    )
    params, _, shared = placed(mesh_of(AxisType.Auto))
    grads, _ = jax.jit(step)(params, X.T, shared)
    assert distance(grads, clipped_mean(GRADIENTS, LIMIT)) < 1e-5
