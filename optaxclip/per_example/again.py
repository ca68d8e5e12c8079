"""Gradients that are formed after all, where their squares are not to be trusted."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from optaxclip.mesh import vary, varying_axes
from optaxclip.numbers import modulus
from optaxclip.per_example.batches import Batch
from optaxclip.per_example.decisions import LeafGroups, Sums
from optaxclip.per_example.microbatches import differences
from optaxclip.per_example.tracing import Traced
from optaxclip.per_example.ways import power_of_two, spread_over_examples


def measured_again(
    traced: Traced,
    params: PyTree,
    batch: Batch,
    in_axes: tuple,
    groups: LeafGroups,
    asked: Array,
    dtype: np.dtype,
) -> Sums:
    """Square the gradients of the examples that are asked for, one after another.

    Their factors are computed again rather than kept for that: what a conditional
    takes is held, in full, whether it is needed or not.

    Returns:
      the squares of each group, and the units of their roots.
    """
    own, together = differences(in_axes, batch)
    none = vary(jnp.zeros((), dtype), varying_axes(asked))

    def precisely(own: list[Any]) -> list[tuple[Array, Array]]:
        if traced.program.narrow:  # JAX would round the gradient.
            alone = together([x[None] for x in own])
            leaves = traced.record(params, alone, in_axes).added_up(params)
        else:
            leaves = traced.precisely(params, together(own))
        return [_squared([leaves[i] for i in group], none) for group in groups]

    def of_one(which: Array) -> list[tuple[Array, Array]]:
        here = jnp.arange(len(asked)) == which
        nothing = [(none, none)] * len(groups)
        return jax.lax.cond(
            jnp.any(asked & here),
            lambda own: precisely([_only(x, here) for x in own]),
            lambda _: nothing,
            own,
        )

    with jax.default_matmul_precision("highest"):
        found = jax.lax.map(of_one, jnp.arange(len(asked)))
    return [square for square, _ in found], [unit for _, unit in found]


@jax.jit
def _only(x: Array, here: Array) -> Array:
    """Take one example, by a sum for which no device of a mesh gathers the others."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _only(jax.random.key_data(x), here)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    kept = jnp.where(spread_over_examples(here, x), x, jnp.zeros_like(x))
    return jnp.any(kept, 0) if x.dtype == bool else jnp.sum(kept, 0, dtype=x.dtype)


@jax.jit
def _squared(leaves: list[Array], none: Array) -> tuple[Array, Array]:
    """Sum squares in a unit, a power of two, so that none over- or underflows.

    Each leaf is divided by its largest number before, so that it is not held until the
    unit of all is known; the reciprocal of what divides it must be no subnormal.
    """
    tiny = jnp.finfo(none.dtype).tiny
    sizes = [modulus(leaf).astype(none.dtype) for leaf in leaves]
    largest = [jnp.max(size, initial=0) for size in sizes]
    scales = [jnp.maximum(top / 16, tiny) for top in largest]
    unit = power_of_two(functools.reduce(jnp.maximum, largest, none))
    terms = (
        jnp.sum(jnp.square(size / scale)) * jnp.square(scale / unit)
        for size, scale in zip(sizes, scales, strict=True)
    )
    return functools.reduce(jnp.add, terms, none), unit
