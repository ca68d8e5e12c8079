"""The transformations: every matrix of a tree, its singular values bounded."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, PyTree

from optaxclip import scopes
from optaxclip.clipper import tidy
from optaxclip.leaves import beside, counted, counts
from optaxclip.magnitudes import Leaf, Number, widen
from optaxclip.measuring import measuring_dtype
from optaxclip.reports import ClipState, empty_report, next_report, state_type
from optaxclip.spectral.matrices import Layout, layouts
from optaxclip.spectral.polar import Matrices, PerMatrix
from optaxclip.spectral.singular_values import (
    clip,
    frobenius,
    largest_singular_value,
    soften,
    unit_of,
)
from optaxclip.thresholds import Observation, Threshold, as_threshold

Limit = Threshold | PyTree[ArrayLike | optax.Schedule]


# Limits below this share of the largest number are taken at it, and the result scaled.
_FAINT = 2.0**-60
# Scales above this multiple of it bend nothing that a float could show.
_LOOSE = 2.0**24


class _Map(NamedTuple):
    """A map of singular values.

    Attributes:
      matrices: maps those of matrices, and tells which had any above the limit.
      value: maps a single one.
    """

    matrices: Callable[[Matrices, PerMatrix], tuple[Matrices, Bool[Array, "_ 1 1"]]]
    value: Callable[[Number, Number], Number]


def _bend(a: Matrices, scale: PerMatrix) -> tuple[Matrices, Bool[Array, "_ 1 1"]]:
    bent = soften(a, jnp.minimum(scale, _LOOSE), frobenius(a))
    return jnp.where(scale < _LOOSE, bent, a), scale < 0


_CLIP = _Map(clip, jnp.minimum)
_BEND = _Map(
    _bend,
    lambda value, scale: scale * (value / jnp.hypot(value, jnp.maximum(scale, 1e-37))),
)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mapped(
    change: _Map, layout: Layout, leaf: Leaf, limit: Number
) -> tuple[Leaf, Bool[Array, " _"]]:
    """Map the singular values of one leaf, and tell of which matrices any was above."""
    given = layout.matrices(widen(leaf))
    broken = ~jnp.isfinite(jnp.sum(jnp.abs(given) * 0, (-2, -1), keepdims=True))
    unit = unit_of(given)
    a = jnp.where(broken, jnp.zeros_like(given), given) / unit.astype(given.dtype)
    limit = jnp.broadcast_to(limit.ravel(), given.shape[0])[:, None, None]
    limit = limit.astype(unit.dtype)
    loud = broken | jnp.isnan(limit)
    share = jnp.where(loud, 1, limit / unit)
    mapped, above = change.matrices(a, jnp.maximum(share, _FAINT))
    back = jnp.where(share < _FAINT, limit / _FAINT, unit)
    mapped = mapped * jnp.where(loud, jnp.nan, back).astype(given.dtype)
    kept = ~loud & ~above if change is _CLIP else jnp.zeros_like(loud)
    mapped = jnp.where(kept | (limit == jnp.inf), given, mapped)
    return layout.leaf(mapped).astype(leaf.dtype), (above | loud).ravel()


@functools.partial(jax.jit, static_argnums=0)
def _largest(layout: Layout, leaf: Leaf) -> Number:
    """Measure the largest singular value of each matrix of a leaf; loud if broken."""
    given = layout.matrices(widen(leaf))
    unit = unit_of(given)
    return (largest_singular_value(given / unit.astype(given.dtype)) * unit).ravel()


def _spectral(
    name: str, change: _Map, threshold: Threshold, leading_axes: Any, axis: Any
) -> optax.GradientTransformationExtraArgs:
    scope = scopes.tensor(leading_axes=leading_axes)

    def measure(tree: PyTree) -> Number:
        pairs = zip(layouts(tree, leading_axes, axis), counted(tree), strict=True)
        found = [_largest(*pair) for pair in pairs]
        dtype = measuring_dtype(counted(tree))
        return jnp.concatenate([jnp.zeros(0, dtype), *(x.astype(dtype) for x in found)])

    def init(params: PyTree) -> ClipState:
        layouts(params, leading_axes, axis)  # complains of what does not fit
        grouping = scope.arrange(params)
        groups = grouping.like(measuring_dtype(counted(params)))
        return state_type(name)(
            threshold.init(groups), empty_report(grouping.report_shape)
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ClipState]:
        leaves, grouping = counted(updates), scope.arrange(updates)
        size = measure(updates)
        seen = Observation(
            magnitude=size,
            leaves=leaves,
            number=grouping.count(leaves),
            measure_params=lambda: measure(beside(name, updates, params)),
            arrange=functools.partial(scope.limits, tree=updates),
            extra_args=extra,
        )
        limit, memory = threshold.update(seen, state.threshold)
        limit = jnp.broadcast_to(tidy(size, limit), size.shape)
        done = [
            _mapped(change, *each)
            for each in zip(
                layouts(updates, leading_axes, axis),
                leaves,
                grouping.spread(limit),
                strict=True,
            )
        ]
        above = jnp.concatenate([jnp.zeros(0, bool), *(each[1] for each in done)])
        if change is _CLIP:  # It knows; the size is an estimate, and from below.
            over = limit * (1 + jnp.finfo(limit.dtype).eps)
            size = jnp.where(above, jnp.fmax(size, over), jnp.fmin(size, limit))
        after = change.value(size, limit)
        report = next_report(state.report, grouping, size, after, limit)
        mapped = (leaf for leaf, _ in done)
        clipped = jax.tree.map(lambda x: next(mapped) if counts(x) else x, updates)
        return clipped, state_type(name)(memory, report)

    return optax.GradientTransformationExtraArgs(init, update)


def clip_singular_values(
    max_value: Limit, *, leading_axes: PyTree[int] | None = None, axis: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Clip the singular values of every matrix, without a decomposition.

    $$U \operatorname{diag}(\sigma) V^* \leftarrow
    U \operatorname{diag}(\min(\sigma, c)) V^*$$

    This is the nearest matrix, in the Frobenius norm, of spectral norm at most c. A
    vector is a matrix of one column, whose one singular value is its norm; leave
    vectors, and embeddings, out through ``optax.masked`` if that is not wanted.

    Args:
      max_value: the largest singular value allowed, c >= 0: a number, an array, a
        schedule of the clipper's own step, a prefix tree of these, or a threshold.
      leading_axes: how many leading dimensions stack matrices, such as scanned
        layers: an int or a prefix tree of ints; none if not given.
      axis: the dimensions of a leaf that are a matrix's inputs, the others being its
        outputs: an int, a tuple, or a prefix tree of these; all but the last if not
        given, as JAX keeps kernels input-first. So a kernel of a convolution is a
        matrix of what is under the window by the channels.

    Returns:
      A transformation; `optaxclip.responses` has the table of its edges. Its report
      has an entry a matrix: the largest singular value by a few power iterations,
      which may be some percent too low.

    Raises:
      TypeError: if `max_value` has the wrong type.
      ValueError: if `max_value` is negative or NaN, or a leaf has no dimension `axis`
        or fewer than `leading_axes`.

    Examples:
      >>> clip = optaxclip.clip_singular_values(1.0)
      >>> updates, _ = clip.update(jnp.diag(jnp.array([3.0, 0.5])), clip.init(jnp.eye(2)))
      >>> updates.round(4)
      Array([[1. , 0. ],
             [0. , 0.5]], dtype=float32)

    References:
      Su, Higham and others on the polar decomposition; Amsel et al., The Polar Express:
      optimal matrix sign methods and their application to the Muon algorithm, 2025,
      arXiv:2505.16932.

    Note:
      In float32 or wider, by multiplications alone; how many depends on the ratio of
      the largest singular value and the limit. In the spectral norm, the error is
      below ``5e-4 * limit + 2e-6 * largest`` (float32, matrices up to 1024 rows): at
      the kink, and by rounding, as in any algorithm that takes float32 numbers.
      Matrices with no singular value above ``limit * (1 + 4e-6)`` keep their bits.
      Inside ``jax.shard_map`` a matrix has to be whole on its device.
    """
    return _spectral(
        "clip_singular_values",
        _CLIP,
        as_threshold(max_value, "max_value"),
        leading_axes,
        axis,
    )


def soft_clip_singular_values(
    scale: Limit, *, leading_axes: PyTree[int] | None = None, axis: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Bend the singular values of every matrix smoothly towards a bound.

    $$X \leftarrow (I + X X^* / c^2)^{-1/2} X, \qquad
    \sigma \leftarrow \sigma / \sqrt{1 + \sigma^2 / c^2}$$

    A vector is a matrix of one column, whose one singular value is its norm.

    Args:
      scale: the bound c >= 0: a number, an array, a schedule of the clipper's own
        step, a prefix tree of these, or a threshold.
      leading_axes: how many leading dimensions stack matrices, such as scanned
        layers: an int or a prefix tree of ints; none if not given.
      axis: the dimensions of a leaf that are a matrix's inputs, the others being its
        outputs: an int, a tuple, or a prefix tree of these; all but the last if not
        given.

    Returns:
      A transformation; `optaxclip.responses` has the table of its edges. Its report
      is that of `clip_singular_values`.

    Raises:
      TypeError: if `scale` has the wrong type.
      ValueError: if `scale` is negative or NaN, or a leaf has no dimension `axis` or
        fewer than `leading_axes`.

    Examples:
      >>> clip = optaxclip.soft_clip_singular_values(3.0)
      >>> updates, _ = clip.update(jnp.diag(jnp.array([4.0, 0.0])), clip.init(jnp.eye(2)))
      >>> updates.round(4)
      Array([[2.4, 0. ],
             [0. , 0. ]], dtype=float32)

    References:
      SPECTRA, 2026, arXiv:2603.14315.

    Note:
      The authors' code takes a fixed number of iterations, which is too few where
      singular values are above 30 c, and leaves vectors with a norm of at most c as
      they are, so that the map has a jump. Here the steps follow the ratio, and
      vectors are bent as matrices are. The learning rate, the shape factor and the
      weight decay of the paper's optimizer are left to the rest of the chain.
    """
    return _spectral(
        "soft_clip_singular_values",
        _BEND,
        as_threshold(scale, "scale"),
        leading_axes,
        axis,
    )
