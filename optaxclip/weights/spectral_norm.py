"""Parameters kept below a spectral norm, whose singular vector is kept track of."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from optaxclip import scopes
from optaxclip.clipper import respond, tidy
from optaxclip.leaves import beside, counted
from optaxclip.magnitudes import Leaf, Magnitude, Number, widen
from optaxclip.measuring import measuring_dtype
from optaxclip.reports import ClipState, empty_report, next_report, state_type
from optaxclip.responses import shrink
from optaxclip.spectral.bounds import frobenius, irregular, unit_of
from optaxclip.spectral.matrices import Layout, layouts, unannotated
from optaxclip.spectral.polar import Matrices, matmul
from optaxclip.thresholds import Observation, Threshold, as_threshold
from optaxclip.weights.bounds import bound_weights
from optaxclip.weights.leading_vector import leading_vector


class SpectralMemory(NamedTuple):
    """What the bound on spectral norms remembers.

    Attributes:
      threshold: what the threshold remembers.
      vectors: of each leaf, the right singular vectors found for its matrices.
    """

    threshold: Any
    vectors: list[Array]


def _first(leaf: Leaf, layout: Layout) -> Matrices:
    return irregular(jax.ShapeDtypeStruct(layout.sizes, widen(leaf).dtype))


@functools.partial(jax.jit, static_argnums=0)
def _measured(
    layout: Layout, leaf: Leaf, vector: Matrices
) -> tuple[Number, Number, Matrices]:
    """Measure as value and unit the spectral norm of each matrix; give its vector."""
    a = layout.matrices(widen(leaf))
    unit = unit_of(a)
    a = a / unit.astype(a.dtype)
    if a.shape[-1] == 1:
        return frobenius(a).ravel(), unit.ravel(), vector
    leading, off = leading_vector(jax.lax.stop_gradient(a), vector)
    found = frobenius(matmul(a, leading))
    value = found + off / jnp.where(found == 0, 1, 2 * found)
    kept = jnp.where(jnp.isfinite(value), leading, vector)
    return value.ravel(), unit.ravel(), kept


def _shrink_spectral_norm(
    name: str, threshold: Threshold, leading_axes: Any, axis: Any
) -> optax.GradientTransformationExtraArgs:
    scope = scopes.tensor(leading_axes=leading_axes)

    def measure(tree: PyTree, vectors: list[Array]) -> tuple[Magnitude, list[Array]]:
        dtype = measuring_dtype(counted(tree))
        found = [
            unannotated(functools.partial(_measured, layout), *each, returns_leaf=False)
            for layout, *each in zip(
                layouts(tree, leading_axes, axis), counted(tree), vectors, strict=True
            )
        ]
        value, unit = (
            jnp.concatenate([jnp.zeros(0, dtype), *(f[i].astype(dtype) for f in found)])
            for i in (0, 1)
        )
        return Magnitude(value, unit), [f[2] for f in found]

    def init(params: PyTree) -> ClipState:
        grouping = scope.arrange(params)
        leaves = counted(params)
        groups = grouping.like(leaves, measuring_dtype(leaves))
        laid_out = layouts(params, leading_axes, axis)
        vectors = [_first(*each) for each in zip(leaves, laid_out, strict=True)]
        return state_type(name, ClipState)(
            SpectralMemory(threshold.init(groups), vectors),
            empty_report(grouping.report_shape),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ClipState]:
        memory, grouping = state.threshold, scope.arrange(updates)
        size, vectors = measure(updates, memory.vectors)
        leaves = counted(updates)
        seen = Observation(
            size=size,
            leaves=leaves,
            number=grouping.count(leaves),
            measure_params=lambda: (
                measure(beside(name, updates, params), memory.vectors)[0].plain
            ),
            arrange=functools.partial(scope.limits, tree=updates),
            share=lambda held: grouping.digest((), held)[1],
            extra_args=extra,
        )
        limit, remembered = threshold.update(seen, memory.threshold)
        limit = tidy(seen.magnitude, limit)
        weights = shrink.weigh(size.value, size.unit, limit)
        after = shrink.reach(seen.magnitude, limit)
        report = next_report(state.report, grouping, seen.magnitude, after, limit)
        memory = SpectralMemory(remembered, vectors)
        return (
            respond(shrink, grouping, updates, weights),
            state_type(name, ClipState)(memory, report),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def clip_weight_spectral_norm(
    max_norm: Threshold | PyTree[ArrayLike | optax.Schedule],
    *,
    leading_axes: PyTree[int] | None = None,
    axis: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Keep the largest singular value of every matrix below a bound.

    $$W \leftarrow W \cdot \min(1, c / \sigma_1(W))$$

    The largest singular value comes from Krylov subspaces of eight vectors. Its vector
    is kept in the state, so that after the first step, where it may take sixteen
    rounds, one or two do. A vector is a matrix of one column, whose singular value is
    its norm.
    Place it last in a chain. Needs ``params``.

    Args:
      max_norm: the largest singular value allowed, c >= 0: a number, an array, a
        schedule of the clipper's own step, a prefix tree of these, or a threshold.
      leading_axes: how many leading dimensions stack matrices, such as scanned
        layers: an int or a prefix tree of ints; none if not given.
      axis: the dimensions of a leaf that are a matrix's inputs, the others being its
        outputs: an int, a tuple, or a prefix tree of these; all but the last if not
        given.

    Returns:
      A transformation; `optaxclip.responses` has the table of its edges, which are
      those of the parameters. So is its report, with an entry a matrix.

    Raises:
      TypeError: if `max_norm` has the wrong type.
      ValueError: if `max_norm` is negative or NaN, or a leaf has no dimension `axis`
        or fewer than `leading_axes`; in the update, if ``params`` do not fit.

    Examples:
      >>> sgd = optax.chain(optax.sgd(0.1), optaxclip.clip_weight_spectral_norm(1.0))
      >>> params = jnp.diag(jnp.array([4.0, 2.0]))
      >>> updates, _ = sgd.update(jnp.zeros((2, 2)), sgd.init(params), params)
      >>> optax.apply_updates(params, updates)
      Array([[1. , 0. ],
             [0. , 0.5]], dtype=float32)

    References:
      Yoshida and Miyato, Spectral norm regularization for improving the
      generalizability of deep learning, 2017, arXiv:1705.10941.

      Miyato et al., Spectral normalization for generative adversarial networks, 2018,
      arXiv:1802.05957.

    Note:
      What is measured is the estimate plus what its residual $A^* A v - s^2 v$ allows
      for, so that it errs upward: where the vector has settled, the norm ends up within
      one rounding above c, and a few millionths below it at most. It is no proof, since
      a residual does not tell which singular value is near; a vector is added to each
      round lest the largest be missed. Spectral normalization divides by it always;
      this does only above the bound.
      `bound_weights(clip_singular_values(c))` clips the singular values one by one.
    """
    name = "clip_weight_spectral_norm"
    threshold = as_threshold(max_norm, "max_norm")
    shrink_norm = _shrink_spectral_norm(name, threshold, leading_axes, axis)
    return bound_weights(shrink_norm, name=name)
