"""Inside shard_map and pmap: axes by name or PartitionSpec, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from quickly import jit_quickly

import optaxclip
from optaxclip import scopes

RNG = np.random.default_rng(0)
TREE = {
    "kernel": jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32),
    "experts": jnp.asarray(RNG.normal(size=(4, 2, 3)), jnp.float32),
    "bias": jnp.asarray(RNG.normal(size=6), jnp.float32),
}
# The inputs of the kernel, the outputs of every second expert; the bias is everywhere.
SPECS = {"kernel": P(("x", "y")), "experts": P("x"), "bias": P()}
OUTPUTS = {"kernel": P(None, "x"), "experts": P("y", None, None), "bias": P("x")}


def mesh_of(axis_type=AxisType.Auto):
    """Four devices, two along each axis."""
    devices = np.array(jax.devices()[:4]).reshape(2, 2)
    return Mesh(devices, ("x", "y"), axis_types=(axis_type,) * 2)


def once(clip, updates, params=None):
    """One step, without the state."""
    return clip.update(updates, clip.init(updates), params)[0]


def mapped(function, specs, **options):
    """A function of a tree on every device."""
    return jit_quickly(
        jax.shard_map(
            function, mesh=mesh_of(), in_specs=(specs,), out_specs=specs, **options
        )
    )


def assert_same(got, want):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6)


CLIPS = {
    "whole": lambda axes: optaxclip.clip_global_norm(0.5, axis_name=axes),
    "tensor": lambda axes: optaxclip.clip_tensor_norm(
        0.5, leading_axes={"experts": 1, "kernel": 0, "bias": 0}, axis_name=axes
    ),
    "unit": lambda axes: optaxclip.clip_unit_norm(
        0.5, axis={"experts": 1, "kernel": 0, "bias": 0}, axis_name=axes
    ),
    "element": lambda axes: optaxclip.clip_value(0.5, axis_name=axes),
}


@jit_quickly
def alone(tree):
    """What each clip does on one device."""
    return {name: once(make(None), tree) for name, make in CLIPS.items()}


@pytest.mark.parametrize("specs", [SPECS, OUTPUTS], ids=["inputs", "outputs"])
@pytest.mark.parametrize("check_vma", [True, False])
def test_partition_specs_tell_which_axes_shard_a_group(specs, check_vma):
    """A name alone would add up the norms of experts, and of units, of all devices."""

    def step(tree):
        return {name: once(make(specs), tree) for name, make in CLIPS.items()}

    got = jit_quickly(
        jax.shard_map(
            step,
            mesh=mesh_of(),
            in_specs=(specs,),
            out_specs=dict.fromkeys(CLIPS, specs),
            check_vma=check_vma,
        )
    )(TREE)
    wanted = alone(TREE)
    for name in CLIPS:
        assert_same(got[name], wanted[name])


def test_one_partition_spec_stands_for_a_subtree():
    tree = {"layer": {"kernel": TREE["kernel"], "other": 2 * TREE["kernel"]}}
    clip = optaxclip.clip_global_norm(0.5, axis_name={"layer": P("x")})
    step = mapped(partial(once, clip), {"layer": P("x")})
    assert_same(step(tree), once(optaxclip.clip_global_norm(0.5), tree))


def test_axes_that_are_left_to_xla_need_not_be_named_but_may_be():
    specs = {"kernel": P("x", "y"), "bias": P("y")}
    manual = {"kernel": P("x"), "bias": P()}
    tree = {name: TREE[name] for name in specs}
    mesh = mesh_of()
    placed = jax.device_put(
        tree, jax.tree.map(lambda s: jax.sharding.NamedSharding(mesh, s), specs)
    )

    def step(tree):
        clips = [optaxclip.clip_global_norm(0.5, axis_name=a) for a in (specs, "x")]
        return [once(clip, tree) for clip in clips]

    found = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(manual,),
            out_specs=[manual, manual],
            axis_names={"x"},
        )
    )(placed)
    for got in found:
        assert_same(got, once(optaxclip.clip_global_norm(0.5), tree))


@pytest.mark.parametrize("bad", [np.inf, 1e30, 1e-30, np.nan])
def test_what_one_device_alone_holds_hangs_and_moves_no_other(bad):
    tree = TREE | {"experts": TREE["experts"].at[3].set(bad)}
    specs = {"kernel": P(("x", "y")), "experts": P(("x", "y")), "bias": P()}
    leading = {"experts": 1, "kernel": 0, "bias": 0}
    clip = optaxclip.clip_tensor_norm(0.5, leading_axes=leading, axis_name=specs)
    got = mapped(partial(once, clip), specs)(tree)
    assert_same(got, alone(tree)["tensor"])


def test_an_axis_that_nobody_named_is_refused_unless_each_device_is_alone():
    for axes in None, "y", {"kernel": P(), "experts": P(), "bias": P()}:
        clip = optaxclip.clip_global_norm(0.5, axis_name=axes)
        with pytest.raises(ValueError, match=r"axis_name must name \['x'"):
            mapped(partial(once, clip), SPECS)(TREE)
    each = optaxclip.clip_unit_norm(0.5, axis_name=())
    got = mapped(partial(once, each), P(None, "x"))(TREE["kernel"])
    assert_same(got, once(optaxclip.clip_unit_norm(0.5), TREE["kernel"]))


def test_in_pmap_a_prefix_tree_of_names_counts_every_leaf_once():
    tree = {name: TREE[name] for name in ("kernel", "bias")}
    clip = optaxclip.clip_global_norm(0.5, axis_name={"kernel": "x", "bias": None})
    step = jax.pmap(
        partial(once, clip),
        axis_name="x",
        in_axes=({"kernel": 0, "bias": None},),
        out_axes={"kernel": 0, "bias": None},
        devices=jax.devices()[:4],
    )
    assert_same(step(tree), once(optaxclip.clip_global_norm(0.5), tree))


def test_weights_are_bounded_by_the_fan_in_of_the_whole_kernel():
    params = {"kernel": 9 * TREE["kernel"], "bias": 9 * TREE["bias"]}
    zeros = jax.tree.map(jnp.zeros_like, params)
    want = jit_quickly(partial(once, optaxclip.clip_weights_to_init(1.0)))(
        zeros, params
    )
    for kernel, bias in (P(("x", "y")), P()), (P("x", "y"), P("y")), (P(), P()):
        specs = {"kernel": kernel, "bias": bias}
        clip = optaxclip.clip_weights_to_init(1.0, axis_name=specs)
        step = jax.shard_map(
            partial(once, clip),
            mesh=mesh_of(),
            in_specs=(specs, specs),
            out_specs=specs,
        )
        assert_same(jit_quickly(step)(zeros, params), want)
    clip = optaxclip.clip_weights_to_init(1.0, axis_name="x")
    step = jax.shard_map(
        partial(once, clip), mesh=mesh_of(), in_specs=(P("x"), P("x")), out_specs=P("x")
    )
    with pytest.raises(ValueError, match="axis_name must be a PartitionSpec for"):
        jax.eval_shape(step, zeros["kernel"], params["kernel"])


GUARDS = {
    "skip_nonfinite": lambda axes: optaxclip.skip_nonfinite(
        optax.identity(), axis_name=axes
    ),
    "skip_spikes": lambda axes: optaxclip.skip_spikes(optax.identity(), axis_name=axes),
    "skip_above": lambda axes: optaxclip.skip_above(
        optax.identity(), 100.0, scope=scopes.unit(axis_name=axes)
    ),
}


@pytest.mark.parametrize("name", GUARDS)
def test_what_one_device_sees_every_device_skips(name):
    """Or else JAX says that the state is not the same on all."""
    tree = TREE | {"experts": TREE["experts"].at[3].set(jnp.inf)}

    guard = GUARDS[name](SPECS)

    def told(tree):
        updates, state = guard.update(tree, guard.init(tree))
        return updates, state.report.skipped

    step = jax.shard_map(
        told, mesh=mesh_of(), in_specs=(SPECS,), out_specs=(SPECS, P())
    )
    updates, skipped = jit_quickly(step)(tree)
    assert int(skipped) == 1
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates))


LOCAL = GUARDS | {
    "zero_nonfinite": lambda axes: optaxclip.zero_nonfinite(axis_name=axes),
    "clip_value": CLIPS["element"],
    "clip_unit_norm": lambda axes: optaxclip.clip_unit_norm(0.5, axis_name=axes),
}


def test_with_no_axes_each_device_clips_decides_and_reports_alone():
    """Whether or not JAX knows that the devices hold different numbers."""
    kernel = TREE["kernel"] * jnp.arange(1.0, 5.0)[:, None]
    tree = {"kernel": kernel, "experts": TREE["experts"].at[3].set(jnp.inf)}

    def told(axes, tree):
        clips = [make(axes) for make in LOCAL.values()]
        found = [clip.update(tree, clip.init(tree)) for clip in clips]
        return [
            (updates, jax.tree.map(jnp.atleast_1d, state.report))
            for updates, state in found
        ]

    alone = jit_quickly(partial(told, None))
    parts = [alone(jax.tree.map(lambda x, i=i: x[i : i + 1], tree)) for i in range(4)]
    assert [int(part[0][1].skipped[0]) for part in parts] == [0, 0, 0, 1]
    wanted = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    for check_vma in True, False:
        step = jax.shard_map(
            partial(told, ()),
            mesh=mesh_of(),
            in_specs=P(("x", "y")),
            out_specs=P(("x", "y")),
            check_vma=check_vma,
        )
        assert_same(jit_quickly(step)(tree), wanted)


def test_a_loss_that_differs_between_devices_is_refused():
    guard = optaxclip.skip_spikes(optax.identity(), axis_name=SPECS)

    def step(tree):
        loss = jnp.sum(tree["kernel"])
        return guard.update(tree, guard.init(tree), value=loss)[0]

    with pytest.raises(ValueError, match=r"value must be the same.*\['x', 'y'\]"):
        mapped(step, SPECS)(TREE)


def test_a_scan_carries_what_is_remembered_of_numbers_and_units():
    """A carry keeps its type, and so the axes over which it varies."""
    specs = SPECS | {"kernel": P("x", "y")}
    stacked = jax.tree.map(lambda spec: P(None, *spec), specs)
    memory = optaxclip.thresholds.RollingPercentile(50.0, window=2)
    units = optaxclip.clip_unit_norm(memory, axis_name=specs)
    elements = optaxclip.spam_clip(axis_name=specs)
    for clip in units, elements:

        def steps(tree, clip=clip):
            def step(state, _):
                updates, state = clip.update(tree, state)
                return state, updates

            return jax.lax.scan(step, clip.init(tree), length=2)[1]

        run = jax.shard_map(steps, mesh=mesh_of(), in_specs=(specs,), out_specs=stacked)
        found = jax.eval_shape(run, TREE)
        assert found["kernel"].shape == (2, *TREE["kernel"].shape)


def test_where_jax_does_not_track_it_specs_tell_that_units_are_spread():
    """All devices decide and report the same, although each sees units of its own."""
    axis = {"experts": 1, "kernel": 0, "bias": 0}
    tree = TREE | {"experts": TREE["experts"].at[3].set(9.0)}

    def told(axes, tree):
        scope = scopes.unit(axis=axis, axis_name=axes)
        guard = optaxclip.skip_above(optax.identity(), 10.0, scope=scope)
        clip = optaxclip.clip_unit_norm(1.5, axis=axis, axis_name=axes)
        states = [t.update(tree, t.init(tree))[1] for t in (guard, clip)]
        return jax.tree.map(jnp.atleast_1d, [state.report for state in states])

    step = jax.shard_map(
        partial(told, OUTPUTS),
        mesh=mesh_of(),
        in_specs=(OUTPUTS,),
        out_specs=P(("x", "y")),
        check_vma=False,
    )
    wanted = jax.jit(partial(told, None))(tree)
    assert wanted[0].skipped == 1
    for got, want in zip(
        jax.tree.leaves(jax.jit(step)(tree)), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(got, np.tile(want, 4), rtol=2e-6)


def test_the_warm_up_of_adagc_measures_the_experts_of_all_devices():
    leading = {"experts": 1, "kernel": 0, "bias": 0}
    clip = optaxclip.adagc(0.5, leading_axes=leading, axis_name=OUTPUTS)
    step = mapped(partial(once, clip), OUTPUTS, check_vma=False)
    alone = optaxclip.adagc(0.5, leading_axes=leading)
    assert_same(step(TREE), jax.jit(partial(once, alone))(TREE))
