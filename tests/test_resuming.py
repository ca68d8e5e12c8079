"""A run goes on from a checkpoint, on another mesh, as if it had never been stopped."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxclip

SHAPE = (8, 4)
WARM_UP, WINDOW, STREAK, BEFORE, STEPS = 7, 3, 2, 7, 11
OPTIMIZER = optaxclip.skip_nonfinite(
    optax.chain(
        optaxclip.autoclip(window=WINDOW),
        optaxclip.zclip(warmup_steps=WARM_UP),
        optax.sgd(0.1, momentum=0.9),
    )
)


def mesh_of(shape, names):
    """A mesh of some of the eight devices."""
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(names))


def gradient(step):
    """One that is broken in the steps before the checkpoint, and in one after it."""
    size = 10.0 if step == STEPS - 1 else 1.0
    kernel = np.random.default_rng(step).normal(size=SHAPE) * size
    if BEFORE - STREAK <= step <= BEFORE:
        kernel[1, 2] = np.nan
    return jnp.asarray(kernel, jnp.float32)


def placed(mesh, spec):
    """Shardings of a kernel, and of a state: what is as large lies beside it."""
    like = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    return jax.tree.map(
        lambda x: NamedSharding(mesh, spec if x.shape == SHAPE else P()),
        (like, jax.eval_shape(OPTIMIZER.init, like)),
    )


def went_on(carried, steps, shardings):
    """The parameters and the state after some steps, where they are told to lie."""

    @partial(jax.jit, out_shardings=shardings)
    def step(carried, grads):
        params, state = carried
        updates, state = OPTIMIZER.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for number in steps:
        carried = step(carried, jax.device_put(gradient(number), shardings[0]))
    return carried


def test_a_warm_up_a_full_window_and_a_streak_go_on_where_the_mesh_is_another(tmp_path):
    first = placed(mesh_of((4,), ("data",)), P("data"))
    second = placed(mesh_of((2, 4), ("data", "model")), P("data", "model"))
    params = jnp.ones(SHAPE)
    start = jax.device_put((params, OPTIMIZER.init(params)), first)
    saved = went_on(start, range(BEFORE), first)

    told = optaxclip.report(saved)
    assert told["skip_nonfinite/consecutive"] == STREAK
    window, warming, _ = saved[1].inner_state
    assert window.threshold.filled == WINDOW < BEFORE - STREAK
    assert 0 < warming.threshold.step < WARM_UP

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "kept", saved)
    with ocp.StandardCheckpointer() as checkpointer:
        wanted = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            saved,
            second,
        )
        restored = checkpointer.restore(tmp_path / "kept", wanted)
    assert jax.tree.map(lambda x: x.sharding, restored) == second
    for got, want in zip(
        jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True
    ):
        np.testing.assert_array_equal(got, want)

    whole = went_on(saved, range(BEFORE, STEPS), first)
    resumed = went_on(restored, range(BEFORE, STEPS), second)
    assert optaxclip.report(whole)["skip_nonfinite/total"] == STREAK + 1
    for got, want in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        largest = np.max(np.abs(want))
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * largest)
