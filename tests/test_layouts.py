"""The matrix of layouts: on any mesh every strategy does what it does on one device.

One leaf has each layout, and one program asks all strategies of all layouts, several
steps with their state.
"""

import re
from contextlib import nullcontext
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from quickly import jit_quickly
from zoo import ONE_OF_EACH_SCOPE, STRATEGIES

import optaxclip

# What each device holds of a leaf; all have one shape, which XLA compiles once.
SHARD = (2, 2, 2)
LAYOUTS = {
    "data_parallel": P(),
    "first": P("data"),  # FSDP, and stacks of experts
    "last": P(None, None, "model"),  # tensor-parallel
    "three": P("expert", "data", "model"),
    "two": P("data", None, "model"),
}

MAPS = {
    "clip_singular_values": optaxclip.clip_singular_values(0.2),
    "clip_singular_values_of_layers": optaxclip.clip_singular_values(
        0.2, leading_axes=1
    ),
    "soft_clip_singular_values": optaxclip.soft_clip_singular_values(0.2),
    "clip_weight_spectral_norm": optaxclip.clip_weight_spectral_norm(0.2),
}
CLIPS = {s.name: s.make(0.2) for s in STRATEGIES if s.name not in MAPS} | {
    "clip_tensor_norm_of_layers": optaxclip.clip_tensor_norm(0.2, leading_axes=1),
    "clip_unit_norm_of_layers": optaxclip.clip_unit_norm(0.2, axis=1),
    "memory_of_units": optaxclip.clipper(
        optaxclip.scopes.unit(),
        optaxclip.norms.l2,
        optaxclip.thresholds.RollingPercentile(50.0, window=2),
        optaxclip.responses.shrink,
    ),
    "guard_around_a_chain": optaxclip.skip_nonfinite(
        optax.chain(optaxclip.clip_global_norm(0.2), optax.trace(0.9))
    ),
}


def mesh_of(axis_type):
    """Eight devices, two along each axis."""
    devices = np.array(jax.devices()[:8]).reshape(2, 2, 2)
    return Mesh(devices, ("expert", "data", "model"), axis_types=(axis_type,) * 3)


def shape_of(spec):
    """The shape of a leaf whose shards have the shape SHARD."""
    return tuple(
        size * 2 if dim < len(spec) and spec[dim] else size
        for dim, size in enumerate(SHARD)
    )


def tree_of(seed, axis_type, maps, size=1.0):
    """A leaf of each layout, on one device or on a mesh; fewer for dear maps."""
    rng = np.random.default_rng(seed)

    def leaf(spec):
        number = jnp.asarray(rng.normal(size=shape_of(spec)) * size, jnp.float32)
        if axis_type is None:
            return number
        return jax.device_put(number, NamedSharding(mesh_of(axis_type), spec))

    chosen = ("first", "last") if maps else LAYOUTS
    return {name: leaf(LAYOUTS[name]) for name in chosen}


def gradients(axis_type, maps):
    """Those of three steps, the second with a NaN, which guards skip."""
    steps = [tree_of(seed, axis_type, maps, size=0.1 + seed) for seed in range(3)]
    last = steps[1]["last"]
    steps[1]["last"] = jnp.where(jnp.arange(4) == 3, jnp.nan, last)
    return steps


def placed(clip, params):
    """The first state, each part where the parameter lies that it belongs to."""
    mesh = params["first"].sharding.mesh

    def beside(part, param):
        sides = zip(part.shape, param.shape, param.sharding.spec, strict=False)
        spec = (axes if own == whole else None for own, whole, axes in sides)
        return NamedSharding(mesh, P(*spec))

    state = clip.init(params)
    shardings = optax.tree.map_params(
        clip,
        beside,
        state,
        params,
        transform_non_params=lambda _: NamedSharding(mesh, P()),
    )
    return jax.device_put(state, shardings)


def update_of(clips):
    """All transformations as one program."""

    def update(updates, states, params):
        return {k: t.update(updates, states[k], params) for k, t in clips.items()}

    return jit_quickly(update)


# Explicit axes fail while a program is traced. Those that run there are one of each
# scope, those that remember something of numbers or units, and what wraps another.
RUN_THERE = {
    *ONE_OF_EACH_SCOPE,
    *(name for name in (*CLIPS, *MAPS) if "_of_" in name or "guard" in name),
    "error_feedback",
    "hyperball",
    "spam_clip",
    "watch",
}


def asked(axis_type, maps):
    """The transformations, or those that turn matrices; compiling is dear."""
    clips = MAPS if maps else CLIPS
    few = axis_type == AxisType.Explicit
    return {k: clip for k, clip in clips.items() if not few or k in RUN_THERE}


@cache
def run(axis_type, maps):
    """What every transformation did in each step, and its compiled program."""
    explicit = axis_type == AxisType.Explicit
    with jax.set_mesh(mesh_of(axis_type)) if explicit else nullcontext():
        return run_here(axis_type, maps)


def run_here(axis_type, maps):
    clips, params = asked(axis_type, maps), tree_of(9, axis_type, maps)
    steps = gradients(axis_type, maps)
    if axis_type is None:
        states = {k: clip.init(params) for k, clip in clips.items()}
    else:
        states = {k: placed(clip, params) for k, clip in clips.items()}
    where = jax.tree.map(lambda x: x.sharding, states)
    update = update_of(clips).lower(steps[0], states, params).compile()
    done = []
    for updates in steps:
        results = update(updates, states, params)
        done.append(results)
        states = jax.device_put({k: state for k, (_, state) in results.items()}, where)
    return SimpleNamespace(done=done, where=where, steps=steps, program=update)


ON_MESHES = [
    pytest.param(axis_type, name, id=f"{axis_type.name}-{name}")
    for axis_type in (AxisType.Auto, AxisType.Explicit)
    for name in (*asked(axis_type, False), *asked(axis_type, True))
]


def error(name, want):
    """What may be lost: some last digits, or a spectral map's documented error."""
    relative = 1e-5 if name in MAPS else 1e-6
    # What comes from the sphere is the difference of parameters of about 1.
    least = 1.0 if name == "hyperball" else 0.0
    size = np.max(np.abs(want), where=np.isfinite(want), initial=least)
    return relative * size


@pytest.mark.parametrize(("axis_type", "name"), ON_MESHES)
def test_in_every_layout_updates_and_state_are_those_of_one_device(axis_type, name):
    alone, on_mesh = (run(t, name in MAPS) for t in (None, axis_type))
    for step, wanted in zip(on_mesh.done, alone.done, strict=True):
        for (path, got), want in zip(
            jax.tree_util.tree_leaves_with_path(step[name]),
            jax.tree.leaves(wanted[name]),
            strict=True,
        ):
            np.testing.assert_allclose(
                got, want, rtol=1e-6, atol=error(name, want), err_msg=str(path)
            )


@pytest.mark.parametrize(("axis_type", "name"), ON_MESHES)
def test_updates_stay_in_place_and_so_does_what_is_as_large(axis_type, name):
    on_mesh = run(axis_type, name in MAPS)
    sizes = {x.shape: x.sharding for x in on_mesh.steps[0].values()}
    for step in on_mesh.done:
        updates, _ = step[name]
        for leaf, given in on_mesh.steps[0].items():
            assert updates[leaf].sharding.is_equivalent_to(given.sharding, given.ndim)
        for part in jax.tree.leaves(step[name]):
            if part.shape in sizes:
                assert part.sharding.is_equivalent_to(sizes[part.shape], part.ndim)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_nothing_is_gathered_but_matrices(axis_type):
    text = run(axis_type, False).program.as_text()
    assert " all-reduce(" in text
    for gathering in ("all-gather", "all-to-all", "collective-permute"):
        assert gathering not in text


@pytest.mark.parametrize("is_set", [False, True])
def test_on_explicit_axes_updates_lie_where_they_did_whether_a_mesh_is_set(is_set):
    """Traced; those that run above are not asked once more where a mesh is set."""
    for every, maps in (CLIPS, False), (MAPS, True):
        clips = {k: t for k, t in every.items() if not (is_set and k in RUN_THERE)}
        params = tree_of(9, AxisType.Explicit, maps)
        states = {k: placed(clip, params) for k, clip in clips.items()}
        with jax.set_mesh(mesh_of(AxisType.Explicit)) if is_set else nullcontext():
            traced = jax.eval_shape(update_of(clips), params, states, params)
        for updates, _ in traced.values():
            for leaf, given in params.items():
                assert updates[leaf].sharding.spec == jax.typeof(given).sharding.spec


# How many maxima and sums follow upon each other, and no more whatever the tree.
ROUNDS = {
    "clip_value": 2,  # one maximum and one count
    "clip_global_norm": 1,
    "clip_global_norm_3": 2,  # the largest number, and a sum of powers
    "clip_tensor_norm": 1,
    "clip_unit_norm": 2,  # their norms are at home, or else are summed
    "agc": 4,  # the ratio, the norm and the limit of the unit that is shown
    "guard_around_a_chain": 1,
}


@pytest.mark.parametrize("name", ROUNDS)
def test_a_step_takes_few_all_reduces(name):
    spec = P(None, "model") if name in ("clip_unit_norm", "agc") else P("data")
    sharding = NamedSharding(mesh_of(AxisType.Auto), spec)
    leaf = jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=sharding)
    tree = {"first": leaf, "second": leaf, "third": leaf}
    state = jax.eval_shape(CLIPS[name].init, tree)
    update = jax.jit(CLIPS[name].update)  # as users compile
    text = update.lower(tree, state, tree).compile().as_text() or ""
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == ROUNDS[name]


def along(x):
    """The mesh axes along each dimension of a leaf."""
    return tuple(dict(enumerate(x.sharding.spec)).get(dim) for dim in range(x.ndim))


def test_the_first_state_has_nothing_as_large_as_the_parameters_on_every_device():
    """Outside of jit on any axes, and inside it on explicit ones."""
    clips = CLIPS | MAPS
    for axis_type in AxisType.Auto, AxisType.Explicit:
        params = tree_of(9, axis_type, False)
        wanted = {leaf.shape: along(leaf) for leaf in params.values()}
        firsts = [{name: clip.init(params) for name, clip in clips.items()}]
        if axis_type == AxisType.Explicit:
            with jax.set_mesh(mesh_of(axis_type)):
                traced = jax.eval_shape(
                    lambda p: {name: clip.init(p) for name, clip in clips.items()},
                    params,
                )
            firsts.append(traced)
        for path, part in jax.tree_util.tree_leaves_with_path(firsts):
            if part.shape in wanted and part.shape != SHARD:
                assert along(part) == wanted[part.shape], path
