"""The transformation: every matrix of a tree, its singular values mapped."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from optaxclip import scopes
from optaxclip.clipper import tidy
from optaxclip.leaves import beside, counted, filled
from optaxclip.magnitudes import Leaf, Magnitude, Number, widen
from optaxclip.measuring import measuring_dtype
from optaxclip.reports import ClipState, empty_report, next_report, state_type
from optaxclip.spectral.bounds import frobenius, largest_singular_value, unit_of
from optaxclip.spectral.matrices import Layout, layouts, unannotated
from optaxclip.spectral.polar import Matrices, PerMatrix
from optaxclip.spectral.singular_values import clip, soften
from optaxclip.thresholds import Observation, Threshold

# Limits below this share of the largest number are taken at it, and the result scaled.
_FAINT = 2.0**-60
# Scales above this multiple of it bend nothing that a float could show.
_LOOSE = 2.0**24


class SpectralMap(NamedTuple):
    """A map of singular values.

    Attributes:
      matrices: maps those of matrices, and tells which of these it had to change.
      value: maps a single one.
      exact: whether it changes just the matrices with one above the limit, as far as
        it can tell.
    """

    matrices: Callable[[Matrices, PerMatrix], tuple[Matrices, Bool[Array, "_ 1 1"]]]
    value: Callable[[Number, Number], Number]
    exact: bool


def _bend(a: Matrices, scale: PerMatrix) -> tuple[Matrices, Bool[Array, "_ 1 1"]]:
    bound = jax.lax.stop_gradient(frobenius(a))
    bent = soften(a, jnp.minimum(scale, _LOOSE), bound)
    return jnp.where(scale < _LOOSE, bent, a), scale < jnp.inf


CLIP = SpectralMap(clip, jnp.minimum, exact=True)
BEND = SpectralMap(
    _bend,
    lambda value, scale: scale * (value / jnp.hypot(value, jnp.maximum(scale, 1e-37))),
    exact=False,
)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mapped(
    change: SpectralMap, layout: Layout, leaf: Leaf, limit: Number
) -> tuple[Leaf, Bool[Array, " _"]]:
    """Map the singular values of one leaf, and tell of which matrices any was above."""
    given = layout.matrices(widen(leaf))
    broken = ~jnp.isfinite(jnp.sum(jnp.abs(given) * 0, (-2, -1), keepdims=True))
    unit = unit_of(given)
    limit = jnp.broadcast_to(limit.ravel(), given.shape[0])[:, None, None]
    limit = limit.astype(unit.dtype)
    # So low a limit needs no singular value, which would take long to bring there.
    cleared = (limit == 0) & jnp.any(given != 0, (-2, -1), keepdims=True)
    a = jnp.where(broken | cleared, jnp.zeros_like(given), given)
    a = a / unit.astype(given.dtype)
    loud = broken | jnp.isnan(limit)
    share = jnp.where(loud, 1, limit / unit)
    mapped, above = change.matrices(a, jnp.maximum(share, _FAINT))
    above |= cleared
    back = jnp.where(share < _FAINT, limit / _FAINT, unit)
    mapped = mapped * jnp.where(loud, jnp.nan, back).astype(given.dtype)
    kept = ~loud & ~above | (limit == jnp.inf)
    # Selecting from the leaf itself, in its own shape, takes over how it is sharded.
    stack = tuple(leaf.shape[d] for d in layout.stack)
    kept = kept.reshape(stack + (1,) * (leaf.ndim - len(stack)))
    result = jnp.where(kept, leaf, layout.leaf(mapped).astype(leaf.dtype))
    return result, (above | loud).ravel()


@functools.partial(jax.jit, static_argnums=0)
def _largest(layout: Layout, leaf: Leaf) -> Number:
    """Measure the largest singular value of each matrix of a leaf; loud if broken."""
    given = layout.matrices(widen(leaf))
    unit = unit_of(given)
    return (largest_singular_value(given / unit.astype(given.dtype)) * unit).ravel()


def spectral_clipper(
    name: str, change: SpectralMap, threshold: Threshold, leading_axes: Any, axis: Any
) -> optax.GradientTransformationExtraArgs:
    """Map the singular values of every matrix of a tree.

    Args:
      name: what `optaxclip.report` calls it.
      change: the map.
      threshold: how big is too big, for the largest singular value of each matrix.
      leading_axes: how many leading dimensions stack matrices, or a prefix tree.
      axis: the dimensions that are the inputs of a matrix, or a prefix tree.
    """
    scope = scopes.tensor(leading_axes=leading_axes)

    def measure(tree: PyTree) -> Number:
        found = [
            unannotated(functools.partial(_largest, layout), leaf, returns_leaf=False)
            for layout, leaf in zip(
                layouts(tree, leading_axes, axis), counted(tree), strict=True
            )
        ]
        dtype = measuring_dtype(counted(tree))
        return jnp.concatenate([jnp.zeros(0, dtype), *(x.astype(dtype) for x in found)])

    def init(params: PyTree) -> ClipState:
        grouping = scope.arrange(params)
        layouts(params, leading_axes, axis)  # complains of what does not fit
        leaves = counted(params)
        groups = grouping.like(leaves, measuring_dtype(leaves))
        return state_type(name, ClipState)(
            threshold.init(groups), empty_report(grouping.report_shape)
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ClipState]:
        leaves, grouping = counted(updates), scope.arrange(updates)
        size = measure(updates)
        seen = Observation(
            size=Magnitude(size, jnp.ones_like(size)),
            leaves=leaves,
            number=grouping.count(leaves),
            measure_params=lambda: measure(beside(name, updates, params)),
            arrange=functools.partial(scope.limits, tree=updates),
            share=lambda held: grouping.digest((), held)[1],
            extra_args=extra,
        )
        limit, memory = threshold.update(seen, state.threshold)
        limit = jnp.broadcast_to(tidy(size, limit), size.shape)
        done = [
            unannotated(
                functools.partial(_mapped, change, layout), *each, returns_leaf=True
            )
            for layout, *each in zip(
                layouts(updates, leading_axes, axis),
                leaves,
                grouping.spread(limit),
                strict=True,
            )
        ]
        above = jnp.concatenate([jnp.zeros(0, bool), *(each[1] for each in done)])
        if change.exact:  # It knows better; the size is an estimate from below.
            over = limit * (1 + jnp.finfo(limit.dtype).eps)
            size = jnp.where(above, jnp.maximum(size, over), jnp.minimum(size, limit))
        after = change.value(size, limit)
        report = next_report(state.report, grouping, size, after, limit)
        clipped = filled(updates, [leaf for leaf, _ in done])
        return clipped, state_type(name, ClipState)(memory, report)

    return optax.GradientTransformationExtraArgs(init, update)
