"""How often a norm reads the numbers: usual ones once."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from optaxclip import norms, scopes
from optaxclip.groups import Whole
from optaxclip.groups.per_leaf import PerLeaf

sums: list[None] = []


def counted(kind):
    """A kind of groups whose every sum leaves a mark."""

    def sum_of(self, term, *of_group):
        jax.debug.callback(lambda: sums.append(None))
        return kind.sum(self, term, *of_group)

    made = type(f"Counted{kind.__name__}", (kind,), {"sum": sum_of})
    fields = [name for name in kind.__dataclass_fields__ if name != "leaves"]
    return jax.tree_util.register_dataclass(made, ["leaves"], fields)


KINDS = {Whole: counted(Whole), PerLeaf: counted(PerLeaf)}


@cache
def counting(norm, single):
    """A program that measures a matrix as CPUs do, or each of its columns."""
    scope = scopes.whole() if single else scopes.unit()

    def measured(x):
        groups = scope.arrange(x)
        fields = {name: getattr(groups, name) for name in groups.__dataclass_fields__}
        return norm._with_a_look(KINDS[type(groups)](**fields))

    return jax.jit(measured)


def rounds(norm, x, single):
    """How often the numbers are read to measure them."""
    sums.clear()
    jax.block_until_ready(counting(norm, single)(jnp.asarray(x, jnp.float32)))
    jax.effects_barrier()
    return len(sums)


@pytest.mark.parametrize("scope", [scopes.tensor(), scopes.unit()], ids=str)
def test_an_accelerator_sums_each_leaf_once_at_all_scales(scope):
    tree = {"a": jnp.ones((3, 4)), "b": jnp.ones((5, 6))}
    measured = jax.jit(lambda tree: norms.l2.measure(scope.arrange(tree)))
    text = export.export(measured, platforms=["cuda"])(tree).mlir_module()
    assert text.count("stablehlo.reduce(") == 2


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("norm", [norms.l1, norms.l2], ids=["l1", "l2"])
def test_usual_numbers_are_read_once(norm, single):
    usual = np.random.default_rng(0).normal(size=(1000, 3))
    for size in (1e-10, 1e3):
        assert rounds(norm, size * usual, single) == 1


def test_a_nan_is_read_once_as_it_stays_at_every_scale():
    assert rounds(norms.l2, np.full((1000, 3), np.nan), True) == 1


@pytest.mark.parametrize("single", [True, False])
def test_unusual_numbers_and_zeros_are_read_twice(single):
    for size in (1e20, 1e-30, 3e38, 0.0, np.inf):
        assert rounds(norms.l2, np.full((1000, 3), size), single) == 2, size
