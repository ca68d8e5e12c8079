"""Which numbers are measured together.

What a test compares is computed by one program, which is compiled once.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import SHAPES, assert_close, assert_same_bits, tree_of, wide
from unchecked import unchecked

import optaxclip
from optaxclip import norms, responses, scopes
from optaxclip.leaves import counted
from optaxclip.norms.norm import measure

LABELS = {"conv": "a", "dense": {"bias": "b", "kernel": "a"}, "scale": "c"}
RANKS = [jnp.arange(1.0, 1 + 2**n).reshape((2,) * n) for n in range(6)]


def sizes_of(scope, tree, norm=norms.l2):
    """The magnitude of every number's group, in the shape of each leaf."""

    @jax.jit
    def measured(tree):
        groups = scope.arrange(tree)
        return groups.spread(measure(norm, groups).plain)

    spread = measured(tree)
    return [
        np.broadcast_to(wide(size), leaf.shape)
        for size, leaf in zip(spread, counted(tree), strict=True)
    ]


def clip(scope, updates, limit: Any = 0.3):
    """Shrink every group to its limit."""
    transformation = optaxclip.clipper(scope, norms.l2, limit, responses.shrink)
    return transformation.update(updates, transformation.init(updates))[0]


def clips(updates, *scopes):
    """Shrink under each of several scopes, in one program."""
    return jax.jit(lambda u: [clip(scope, u) for scope in scopes])(updates)


SCOPES = {
    "element": scopes.element(),
    "unit": scopes.unit(),
    "unit 0": scopes.unit(axis={"conv": 0, "dense": 0, "scale": None}),
    "tensor": scopes.tensor(),
    "tensor 1": scopes.tensor(leading_axes={"conv": 1, "dense": 1, "scale": 0}),
    "groups": scopes.groups(LABELS),
    "whole": scopes.whole(),
}
every_scope = pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)


@every_scope
def test_every_number_is_in_one_group(scope):
    """Shared out evenly among its group, every group's l1 norm comes back in full."""
    tree = tree_of(jnp.float32)
    ones = jax.tree.map(jnp.ones_like, tree)
    sizes, numbers = sizes_of(scope, tree, norms.l1), sizes_of(scope, ones, norms.l1)
    shared = sum((size / n).sum() for size, n in zip(sizes, numbers, strict=True))
    total = sum(np.abs(wide(x)).sum() for x in jax.tree.leaves(tree))
    np.testing.assert_allclose(shared, total, rtol=1e-6)


@every_scope
def test_the_mean_of_a_constant_tree_is_that_constant_in_every_group(scope):
    tree = jax.tree.map(lambda x: np.full_like(x, -0.25), tree_of(jnp.float32))
    for size in sizes_of(scope, tree, norms.mean):
        np.testing.assert_array_equal(size, 0.25)


@every_scope
def test_a_scope_arranges_shapes_as_it_arranges_arrays(scope):
    tree = tree_of(jnp.float32)
    abstract = jax.eval_shape(lambda: tree)
    one, other = scope.arrange(abstract), scope.arrange(tree)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert one.struct() == other.struct()


def test_one_label_for_all_groups_the_whole_tree():
    updates = tree_of(jnp.float32)
    labels = "all", lambda tree: jax.tree.map(lambda _: "all", tree)
    *found, wanted = clips(updates, *map(scopes.groups, labels), scopes.whole())
    for clipped in found:
        assert_close(clipped, wanted)


def test_a_label_for_each_leaf_groups_as_tensors():
    updates = tree_of(jnp.float32)
    labels = jax.tree.unflatten(jax.tree.structure(updates), "dcab")
    assert_close(*clips(updates, scopes.groups(labels), scopes.tensor()))


def test_a_single_leaf_is_the_whole_tree():
    both = jax.jit(
        lambda leaves: [
            [clip(scope, leaf) for leaf in leaves]
            for scope in (scopes.tensor(), scopes.whole())
        ]
    )
    assert_close(*both(RANKS))


def test_one_element_is_the_whole_tree():
    several = scopes.element(), scopes.unit(), scopes.tensor(), scopes.groups("")
    for leaf in (np.float32(-3.0), np.array([[3.0]], np.float32)):
        *found, wanted = clips(leaf, *several, scopes.whole())
        for clipped in found:
            assert_same_bits(clipped, wanted)


@pytest.mark.parametrize("leaf", RANKS, ids=lambda leaf: f"rank {leaf.ndim}")
def test_a_unit_is_all_dimensions_but_the_last_and_a_vector_whole(leaf):
    measured_axes = tuple(range(leaf.ndim - 1)) if leaf.ndim > 1 else None
    wanted = np.sqrt((wide(leaf) ** 2).sum(measured_axes, keepdims=True))
    (sizes,) = sizes_of(scopes.unit(), leaf)
    np.testing.assert_allclose(sizes, np.broadcast_to(wanted, leaf.shape), rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, (0,), (0, 1), (-1, 0), (0, 1, 2), ()])
def test_axis_names_the_dimensions_that_a_unit_spans(axis):
    leaf = jnp.arange(1.0, 25.0).reshape(2, 3, 4)
    wanted = np.sqrt((wide(leaf) ** 2).sum(axis, keepdims=True))
    (sizes,) = sizes_of(scopes.unit(axis=axis), leaf)
    np.testing.assert_allclose(sizes, np.broadcast_to(wanted, leaf.shape), rtol=1e-6)


def test_vectors_and_scalars_are_whole_whatever_the_axis():
    leaves = [np.float32(-2.0), np.array([3.0, 4.0], np.float32)]
    for axis in (0, -1, (0, 1), 7):
        for size, wanted in zip(sizes_of(scopes.unit(axis=axis), leaves), (2, 5)):  # noqa: B905
            np.testing.assert_array_equal(size, wanted)


def test_axis_may_be_a_prefix_tree():
    tree = {"a": RANKS[2], "b": {"x": RANKS[3], "y": RANKS[3]}}
    mixed, usual, pairs = clips(
        tree,
        scopes.unit(axis={"a": None, "b": (0, 1)}),
        scopes.unit(),
        scopes.unit(axis=(0, 1)),
    )
    assert_same_bits(mixed["a"], usual["a"])
    assert_same_bits(mixed["b"], pairs["b"])


@pytest.mark.parametrize("axis", [2, -3, (0, 2), "0", 0.5, [0]])
def test_an_axis_that_a_leaf_does_not_have_is_refused(axis):
    with pytest.raises(ValueError, match=r"^axis must "):
        clip(scopes.unit(axis=axis), RANKS[2])


def test_a_stack_of_layers_is_clipped_as_each_layer_alone():
    layers = [tree_of(jnp.float32, 2.0**seed, seed) for seed in range(3)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    alone_of = jax.jit(lambda layer: clip(scopes.tensor(), layer, 2.0))
    wanted = jax.tree.map(lambda *leaves: np.stack(leaves), *map(alone_of, layers))

    @jax.jit
    def stacked(stack):
        experts = jax.tree.map(lambda x: x[None], stack)
        clipped = clip(scopes.tensor(leading_axes=1), stack, 2.0)
        return clipped, clip(scopes.tensor(leading_axes=2), experts, 2.0)

    clipped, experts = stacked(stack)
    assert_close(clipped, wanted)
    assert_close(experts, jax.tree.map(lambda x: x[None], wanted))


def test_all_leading_axes_leave_single_elements():
    assert_close(*clips(RANKS[3], scopes.tensor(leading_axes=3), scopes.element()))


@pytest.mark.parametrize("leading", [-1, 3, 1.0, "1", {"w": 3}])
def test_leading_axes_beyond_the_rank_are_refused(leading):
    with pytest.raises(ValueError, match=r"^leading_axes must "):
        clip(scopes.tensor(leading_axes=leading), {"w": RANKS[2]})


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("leading_axes", optaxclip.clip_tensor_norm),
        ("axis", optaxclip.clip_unit_norm),
        ("ord", optaxclip.clip_global_norm),
    ],
)
def test_a_number_that_shapes_depend_on_is_refused_with_the_way_out(argument, make):
    """A wrapper makes arrays of all numbers, and some of them have to be known."""
    updates, numbers = {"w": RANKS[2]}, {argument: 1}
    sentence = rf"^{argument} must be a Python .*static_args"
    injected = optax.inject_hyperparams(make)(1.0, **numbers)
    with unchecked(), pytest.raises(TypeError, match=sentence):
        jax.jit(lambda u: injected.update(u, injected.init(u)))(updates)
    static = optax.inject_hyperparams(make, static_args=(argument,))(1.0, **numbers)
    jax.jit(lambda u: static.update(u, static.init(u)))(updates)


def test_labels_may_be_a_tree_a_prefix_tree_or_a_function():
    updates = tree_of(jnp.float32)
    prefix = {"conv": "x", "dense": "y", "scale": "x"}
    full = {"conv": "x", "dense": {"bias": "y", "kernel": "y"}, "scale": "x"}
    labels = full, prefix, lambda tree: full, lambda tree: prefix
    wanted, *found = clips(updates, *map(scopes.groups, labels))
    for clipped in found:
        assert_same_bits(clipped, wanted)


def test_a_group_is_measured_together_across_its_leaves():
    updates = tree_of(jnp.float32)
    leaves, labels = jax.tree.leaves(updates), jax.tree.leaves(LABELS)
    for size, label in zip(
        sizes_of(scopes.groups(LABELS), updates), labels, strict=True
    ):
        chosen = [i for i, name in enumerate(labels) if name == label]
        flat = np.concatenate([wide(leaves[i]).ravel() for i in chosen])
        np.testing.assert_allclose(size, np.linalg.norm(flat), rtol=1e-6)


def test_any_hashable_is_a_label():
    updates = tree_of(jnp.float32)
    labels = {"conv": 1, "dense": "1", "scale": 2.5}
    clipped, alone = jax.jit(
        lambda updates: (
            clip(scopes.groups(labels), updates),
            {key: clip(scopes.whole(), updates[key]) for key in SHAPES},
        )
    )(updates)
    assert_close(clipped, alone)


@pytest.mark.parametrize("spec", [{"w": "x"}, ["x", "y"], {"conv": {"no": "x"}}])
def test_labels_that_do_not_fit_the_tree_are_refused(spec):
    with pytest.raises(ValueError, match=r"^labels must be one value or a prefix tree"):
        clip(scopes.groups(spec), tree_of(jnp.float32))


@pytest.mark.parametrize("label", [{"x"}, np.array(1), jnp.array(1)])
def test_a_label_that_cannot_be_hashed_is_refused(label):
    labels = {"conv": label, "dense": "y", "scale": "y"}
    for given in (labels, lambda tree: labels):
        with unchecked(), pytest.raises(TypeError, match=r"^labels must be hash"):
            clip(scopes.groups(given), tree_of(jnp.float32))


def test_a_tuple_is_a_tree_of_labels_and_no_label():
    labels = {"conv": ("x", 1), "dense": "y", "scale": "y"}
    with pytest.raises(ValueError, match="has a tree for conv; give one value there"):
        clip(scopes.groups(labels), tree_of(jnp.float32))
    with pytest.raises(ValueError, match="has a tree for their one leaf; give one"):
        clip(scopes.groups(("x", 1)), RANKS[1])
    pair = tuple(tree_of(jnp.float32).values())
    named = scopes.groups({"conv": "x", "dense": "y", "scale": "x"})
    found, wanted = jax.jit(
        lambda pair, tree: (
            clip(scopes.groups(("x", "y", "x")), pair),
            tuple(clip(named, tree).values()),
        )
    )(pair, tree_of(jnp.float32))
    assert_same_bits(found, wanted)


def test_a_limit_for_each_label():
    updates = tree_of(jnp.float32)
    limits = {"a": 0.1, "b": optax.constant_schedule(0.2), "c": np.inf}
    clipped = jax.jit(lambda u: clip(scopes.groups(LABELS), u, limits))(updates)
    assert_close(clipped["scale"], updates["scale"])
    for size, label in zip(
        sizes_of(scopes.groups(LABELS), clipped), jax.tree.leaves(LABELS), strict=True
    ):
        if label != "c":
            np.testing.assert_allclose(size, {"a": 0.1, "b": 0.2}[label], rtol=1e-6)


@pytest.mark.parametrize("limits", [{"a": 1.0}, {"a": 1.0, "b": 1.0, "d": 1.0}])
def test_a_label_without_a_limit_is_named(limits):
    with pytest.raises(ValueError, match=r"limit for each label.*'c'"):
        clip(scopes.groups(LABELS), tree_of(jnp.float32), limits)


@pytest.mark.parametrize("name", ["tensor", "unit", "element"])
def test_limits_of_leaves_are_a_prefix_tree_of_numbers_arrays_and_schedules(name):
    scope, updates = SCOPES[name], tree_of(jnp.float32)
    limits = {
        "conv": 0.1,
        "dense": lambda step: jnp.where(step == 0, 0.2, 9.0),
        "scale": jnp.asarray(0.3),
    }
    single = {"conv": 0.1, "dense": 0.2, "scale": 0.3}
    clipped, alone = jax.jit(
        lambda updates: (
            clip(scope, updates, limits),
            {key: clip(scope, updates[key], limit) for key, limit in single.items()},
        )
    )(updates)
    assert_close(clipped, alone)


def test_a_stack_may_have_a_limit_for_each_layer():
    stack = jnp.arange(1.0, 13.0).reshape(3, 4)
    clipped = clip(
        scopes.tensor(leading_axes=1), [stack], [jnp.array([1, 2.0, np.inf])]
    )
    rows = np.linalg.norm(wide(clipped[0]), axis=1)
    wanted = np.array([1, 2, np.linalg.norm(wide(stack[2]))])
    np.testing.assert_allclose(rows, wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["tensor", "unit", "element"])
def test_limits_that_do_not_fit_the_tree_are_refused(name):
    with pytest.raises(
        ValueError, match=r"^the limit must be one value or a prefix tree"
    ):
        clip(SCOPES[name], tree_of(jnp.float32), {"conv": 1.0, "dance": 1.0})


def test_the_whole_tree_takes_one_limit_only():
    with pytest.raises(ValueError, match="must be one number, not a tree"):
        clip(scopes.whole(), tree_of(jnp.float32), {"conv": 1.0})
