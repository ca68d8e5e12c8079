"""The clipper that maps the singular values of every matrix of a tree."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optaxclip import scopes
from optaxclip.clipper import Clip
from optaxclip.groups import Groups, PerGroup, map_groups
from optaxclip.norms import Magnitude
from optaxclip.norms.norm import unscaled
from optaxclip.numbers import Leaf, Number, widen
from optaxclip.responses.apply import Outcome
from optaxclip.spectral.bounds import largest_singular_value
from optaxclip.spectral.linear_algebra import Matrices, PerMatrix, unit_of
from optaxclip.spectral.matrices import Layout, layouts, per_matrix, unannotated
from optaxclip.spectral.singular_values import Clipped, bend, clip
from optaxclip.thresholds import Threshold

# Limits below this fraction of the largest entry are raised to it, and the result is
# scaled down.
_FAINT = 2.0**-60
# Limits above this multiple of the largest entry have no effect in floating point.
_LOOSE = 2.0**24


class SpectralMap(NamedTuple):
    """A map of singular values.

    Attributes:
      matrices: maps the singular values of matrices.
      value: maps a single singular value.
      exact: whether it changes only matrices with a singular value above the limit, up
        to rounding.
    """

    matrices: Callable[[Matrices, PerMatrix], Clipped]
    value: Callable[[Number, Number], Number]
    exact: bool


def _bend(a: Matrices, scale: PerMatrix) -> Clipped:
    return Clipped(bend(a, scale), scale < _LOOSE, jnp.zeros_like(scale))


CLIP = SpectralMap(clip, jnp.minimum, exact=True)
BEND = SpectralMap(
    _bend,
    lambda value, scale: scale * (value / jnp.hypot(value, jnp.maximum(scale, 1e-37))),
    exact=False,
)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mapped(
    change: SpectralMap, layout: Layout, leaf: Leaf, limit: Number
) -> tuple[Leaf, tuple[Number, Number]]:
    """Map the singular values of one leaf.

    Also return, for each of its matrices, whether any singular value was above the
    limit, as 1 or 0, and the largest one, or 0 if unknown.
    """
    given = layout.matrices(widen(leaf))
    broken = ~jnp.isfinite(jnp.sum(jnp.abs(given) * 0, (-2, -1), keepdims=True))
    unit = unit_of(given)
    limit = jnp.broadcast_to(limit.ravel(), given.shape[0])[:, None, None]
    limit = limit.astype(unit.dtype)
    # A limit of 0 needs no singular values, and would take long to reach.
    cleared = (limit == 0) & jnp.any(given != 0, (-2, -1), keepdims=True)
    a = jnp.where(broken | cleared, jnp.zeros_like(given), given)
    a = a / unit.astype(given.dtype)
    loud = broken | jnp.isnan(limit)
    share = jnp.where(loud, 1, limit / unit)
    mapped, above, top = change.matrices(a, jnp.clip(share, _FAINT, _LOOSE))
    above |= cleared
    back = jnp.where(share < _FAINT, limit / _FAINT, unit)
    mapped = mapped * jnp.where(loud, jnp.nan, back).astype(given.dtype)
    kept = ~loud & ~above | (limit == jnp.inf)
    # Selecting from the leaf itself, in its own shape, keeps its sharding.
    stack = tuple(leaf.shape[d] for d in layout.stack)
    kept = kept.reshape(stack + (1,) * (leaf.ndim - len(stack)))
    result = jnp.where(kept, leaf, layout.leaf(mapped).astype(leaf.dtype))
    return result, ((above | loud).ravel().astype(unit.dtype), (top * unit).ravel())


@functools.partial(jax.jit, static_argnums=0)
def _largest(layout: Layout, leaf: Leaf) -> Number:
    """Estimate the largest singular value of each matrix of a leaf."""
    given = layout.matrices(widen(leaf))
    unit = unit_of(given)
    return (largest_singular_value(given / unit.astype(given.dtype)) * unit).ravel()


def spectral_clipper(
    name: str, change: SpectralMap, threshold: Threshold, leading_axes: Any, axis: Any
) -> optax.GradientTransformationExtraArgs:
    """Map the singular values of every matrix of a tree.

    Args:
      name: the name used in `optaxclip.report`.
      change: the map.
      threshold: the limit on the largest singular value of each matrix.
      leading_axes: the number of leading dimensions that stack matrices, or a prefix
        tree.
      axis: the dimensions that are the inputs of a matrix, or a prefix tree.
    """
    laid_out = functools.partial(layouts, leading_axes=leading_axes, axis=axis)
    scope = scopes.tensor(leading_axes=leading_axes, axis_name=())
    measure, respond = _ByLargest(laid_out), _ByMap(laid_out, change)
    return Clip(name, scope, threshold, measure, respond).transform()


@dataclass(frozen=True)
class _ByLargest:
    """Measure the largest singular value of every matrix."""

    layouts: Callable[[Groups], list[Layout]]

    def init(self, groups: Groups) -> tuple[()]:
        self.layouts(groups)  # Raises if the arguments do not fit.
        return ()

    def __call__(
        self, groups: Groups, memory: tuple[()]
    ) -> tuple[Magnitude, tuple[()]]:
        found = [
            unannotated(functools.partial(_largest, layout), leaf, returns_leaf=False)
            for layout, leaf in zip(self.layouts(groups), groups.leaves, strict=True)
        ]
        return unscaled(per_matrix(groups, found)), memory


@dataclass(frozen=True)
class _ByMap:
    """Map the singular values of every matrix."""

    layouts: Callable[[Groups], list[Layout]]
    change: SpectralMap

    def __call__(self, groups: Groups, size: Magnitude, limit: PerGroup) -> Outcome:
        done = [
            unannotated(
                functools.partial(_mapped, self.change, layout),
                *each,
                returns_leaf=True,
            )
            for layout, *each in zip(
                self.layouts(groups), groups.leaves, groups.spread(limit), strict=True
            )
        ]
        if self.change.exact:  # The map is exact; `size` is only a lower estimate.
            known = ([each[1][i] for each in done] for i in (0, 1))
            above, top = (per_matrix(groups, rows) for rows in known)
            size = unscaled(map_groups(_agreeing, size.value, limit, above, top))
        return Outcome([leaf for leaf, _ in done], size, self.change.value)


def _agreeing(size: Number, limit: Number, above: Number, top: Number) -> Number:
    size = jnp.maximum(size, top)
    over = limit * (1 + jnp.finfo(limit.dtype).eps)
    return jnp.where(above > 0, jnp.maximum(size, over), jnp.minimum(size, limit))
