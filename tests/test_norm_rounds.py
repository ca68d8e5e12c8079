"""How often a norm reads the numbers: usual ones once."""

from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optaxclip import norms


@dataclass(frozen=True)
class CountingPool:
    """The columns of a matrix, or all of it, and how often a sum was taken."""

    matrix: jax.Array
    single: bool
    sums: list[None]

    dtype = jnp.float32
    complex = False

    def sizes(self):
        return self.full(self.matrix.size if self.single else len(self.matrix))

    def full(self, value):
        shape = () if self.single else (1, self.matrix.shape[1])
        return jnp.full(shape, value, jnp.float32)

    def sum(self, term, *of_group):
        jax.debug.callback(lambda: self.sums.append(None))
        if self.single:
            return term(self.matrix, *of_group).sum()
        return term(self.matrix, *of_group).sum(0, keepdims=True)

    def max(self, term, *of_group):
        raise AssertionError("l1 and l2 need no maximum")


@cache
def counting(norm, single):
    """A program that measures a matrix, and where each of its sums leaves a mark."""
    sums: list[None] = []
    return sums, jax.jit(lambda x: norm.measure(CountingPool(x, single, sums)))


def rounds(norm, x, single):
    """How often the numbers are read to measure them."""
    sums, measured = counting(norm, single)
    sums.clear()
    jax.block_until_ready(measured(jnp.asarray(x, jnp.float32)))
    jax.effects_barrier()
    return len(sums)


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("norm", [norms.l1, norms.l2], ids=["l1", "l2"])
def test_usual_numbers_are_read_once(norm, single):
    usual = np.random.default_rng(0).normal(size=(1000, 3))
    for size in (1e-12, 1e3):
        assert rounds(norm, size * usual, single) == 1
    if not single:  # among many groups a zero is usual
        assert rounds(norm, usual * [1.0, 0.0, 1e-6], single) == 1


def test_unusual_numbers_are_read_no_oftener_than_needed():
    for size, wanted in ((1e20, 2), (1e-30, 2), (3e38, 3), (np.inf, 3), (np.nan, 1)):
        assert rounds(norms.l2, np.full((1000, 3), size), True) == wanted, size
        assert rounds(norms.l2, np.full((1000, 3), size), False) == wanted, size
    assert rounds(norms.l2, np.zeros((1000, 3)), True) == 2
