"""What surrounds a clipper: accelerators, checkpoints, tools that read its state."""

import pickle
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from guarding import every_guard
from jax import export
from trees import FEW, params_for, start, tree_of
from zoo import every_kind, every_strategy

import optaxclip

UPDATES = jax.tree.map(np.asarray, tree_of(jnp.float32, shapes=FEW))
PARAMS = params_for(UPDATES)


def decisions(text):
    """The branches of a program, and its loops that end by what was computed."""
    loops = re.findall(r"stablehlo\.while.*?cond \{(.*?)\} do \{", text, re.DOTALL)
    counting = {"constant", "compare", "return"}
    return re.findall(r"stablehlo\.(?:case|if)\b", text) + [
        loop
        for loop in loops
        if "FLOAT" in loop or not set(re.findall(r"stablehlo\.(\w+)", loop)) <= counting
    ]


def lowered(function, *args, platform):
    """What XLA would get on another platform."""
    return export.export(jax.jit(function), platforms=[platform])(*args).mlir_module()


def test_branches_and_loops_that_wait_are_told_from_those_that_count():
    def waits(x):
        return jax.lax.while_loop(lambda x: x[0] < 9, lambda x: x * 2, x)

    def chooses(x):
        return jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x)

    def counts(x):
        return jax.lax.fori_loop(0, 5, lambda _, x: x * 2, x)

    for function, found in ((waits, 1), (chooses, 1), (counts, 0)):
        text = lowered(function, jnp.ones(3), platform="cuda")
        assert len(decisions(text)) == found


@every_strategy
def test_a_gpu_decides_nothing_by_what_was_computed(strategy):
    clip, state = strategy.make(1.0), start.eval_shape(strategy, PARAMS)
    assert not decisions(lowered(clip.update, UPDATES, state, PARAMS, platform="cuda"))


@every_kind
def test_nor_does_a_tpu(strategy):
    clip, state = strategy.make(1.0), start.eval_shape(strategy, PARAMS)
    assert not decisions(lowered(clip.update, UPDATES, state, PARAMS, platform="tpu"))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@every_guard
def test_nor_does_a_guard(guard, platform):
    optimizer = guard(optax.chain(optaxclip.clip_tensor_norm(1.0), optax.sgd(1.0)))
    state = optimizer.init(PARAMS)
    text = lowered(optimizer.update, UPDATES, state, PARAMS, platform=platform)
    assert not decisions(text)


@every_strategy
def test_a_state_and_its_structure_can_be_pickled(strategy):
    state = start(strategy, PARAMS)
    again, structure = pickle.loads(pickle.dumps((state, jax.tree.structure(state))))
    assert jax.tree.structure(again) == structure == jax.tree.structure(state)
    assert optaxclip.report(again).keys() == optaxclip.report(state).keys()


@every_strategy
def test_the_structure_of_an_exported_step_can_be_serialized(strategy):
    state = start(strategy, PARAMS)
    optaxclip.register_for_export(state)
    kept = export.export(jax.jit(lambda state: state))(state).serialize()
    assert export.deserialize(kept).out_tree == jax.tree.structure(state)


# A whole step, as the process that keeps it and the one that runs it both define it.
OPTIMIZER = """
import jax, optax, optaxclip
from jax import export

params = {"w": jax.numpy.arange(3.0)}
optimizer = optaxclip.skip_nonfinite(
    optax.chain(optaxclip.zclip(), optaxclip.clip_tensor_norm(1.0), optax.adam(0.1))
)
state = optimizer.init(params)
"""


def test_a_step_that_was_exported_runs_in_another_process(tmp_path):
    names = {}
    exec(OPTIMIZER, names)
    params, state = names["params"], names["state"]

    def step(params, state) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            updates, state = names["optimizer"].update(params, state, params)
        return optax.apply_updates(params, updates), state

    # Another model first, whose states have types of the same names; and twice.
    other = names["optimizer"].init({"kernel": params["w"], "bias": params["w"]})
    for each in (other, state, state):
        optaxclip.register_for_export(each)
    kept = export.export(jax.jit(step))(params, state).serialize()
    wanted, wanted_state = step(params, state)
    after, after_state = export.deserialize(kept).call(params, state)
    assert jax.tree.structure(after_state) == jax.tree.structure(wanted_state)
    np.testing.assert_allclose(after["w"], wanted["w"], rtol=1e-6)

    file = tmp_path / "step"
    file.write_bytes(kept)
    code = f"""{OPTIMIZER}
optaxclip.register_for_export(jax.eval_shape(optimizer.init, params))
kept = export.deserialize(bytearray(open({str(file)!r}, "rb").read()))
params, state = kept.call(params, state)
print(*params["w"], optaxclip.report(state)["clip_tensor_norm/pre_norm"][0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    norm = optaxclip.report(wanted_state)["clip_tensor_norm/pre_norm"][0]
    found = [float(number) for number in done.stdout.split()]
    np.testing.assert_allclose(found, [*wanted["w"], norm], rtol=1e-6)


@pytest.mark.parametrize("name", ["a.b", "a/b (c)", "ä", "%2E"])
def test_a_name_of_any_letters_is_pickled_with_a_state(name):
    clip = optaxclip.clipper(
        optaxclip.scopes.whole(),
        optaxclip.norms.l2,
        1.0,
        optaxclip.responses.shrink,
        name=name,
    )
    again = pickle.loads(pickle.dumps(clip.init(PARAMS)))
    assert type(again).__name__ == name


@every_strategy
def test_the_first_state_can_be_made_from_shapes_alone(strategy):
    found = strategy.make(1.0).init(jax.eval_shape(lambda: PARAMS))
    wanted = start(strategy, PARAMS)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)


@every_strategy
def test_optax_can_map_over_what_is_like_the_params_in_a_state(strategy):
    clip, state = strategy.make(1.0), start(strategy, PARAMS)
    mapped = optax.tree.map_params(clip, lambda x: x, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)


@pytest.mark.parametrize("scope", ["element", "unit", "tensor"])
def test_the_memory_of_parts_of_leaves_is_found_beside_the_names_of_the_leaves(scope):
    clip = optaxclip.clipper(
        getattr(optaxclip.scopes, scope)(),
        optaxclip.norms.linf,
        optaxclip.thresholds.Ema(),
        optaxclip.responses.shrink,
    )
    names = jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path), PARAMS)
    state = clip.init(PARAMS)
    found = optax.tree.map_params(clip, lambda _, name: name, state, names).threshold
    assert found.mean == found.weight == names


@every_guard
def test_a_guard_leaks_no_tracer(guard):
    optimizer = guard(optax.sgd(1.0, momentum=0.9))
    state = optimizer.init(PARAMS)
    with jax.checking_leaks():
        jax.jit(optimizer.update).trace(UPDATES, state, PARAMS)


@every_guard
def test_a_line_search_inside_a_guard_finds_its_own_value(guard):
    def loss(x):
        return jnp.sum(x**2)

    optimizer, x = guard(optax.lbfgs()), jnp.ones(2)
    find = optax.value_and_grad_from_state(loss)
    assert find(x, state=optimizer.init(x))[0] == 2


def test_a_derivative_of_a_derivative_passes_through_a_scan():
    clip = optaxclip.clip_global_norm(0.7)
    start = np.arange(1.0, 5.0)

    def last(m):
        state = clip.init(jnp.ones(4))

        def step(p, _):
            return p + clip.update(jnp.sin(p * m), state)[0], None

        return jnp.sum(jax.lax.scan(step, jnp.asarray(start, m.dtype), length=2)[0])

    def last_by_hand(m):
        p = start
        for _ in range(2):
            update = np.sin(p * m)
            p = p + update * min(1.0, 0.7 / np.linalg.norm(update))
        return p.sum()

    with jax.enable_x64(True):
        found = jax.grad(jax.grad(last))(1.1)
    h = 1e-4
    three = [last_by_hand(1.1 + k * h) for k in (-1, 0, 1)]
    wanted = (three[0] - 2 * three[1] + three[2]) / h**2
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e18])
def test_the_derivative_of_a_clip_is_right_at_every_size(size):
    """Along the update it is 0, and across it the factor."""
    x = np.array([3.0, 4.0])
    clip = optaxclip.clip_global_norm(size)
    state = clip.init(jnp.ones(2))
    given = jnp.asarray(x * size, jnp.float32)
    slopes = jax.jacobian(lambda u: clip.update(u, state)[0])(given)
    wanted = (np.eye(2) - np.outer(x, x) / 25) / 5
    np.testing.assert_allclose(slopes, wanted, rtol=1e-5, atol=1e-6)
