"""Clippy: one limit per element, and one factor per tensor."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import PyTree

from optaxclip import norms, responses, scopes
from optaxclip.arguments import check_nonnegative
from optaxclip.clipper import Clip
from optaxclip.groups import Groups, PerGroup, map_groups
from optaxclip.leaves import AxisName, beside, counted
from optaxclip.norms import Magnitude
from optaxclip.norms.norm import ByNorm, measure
from optaxclip.numbers import Leaf, Number, as_number, modulus, multiply, widen
from optaxclip.reports import ClipState
from optaxclip.responses.apply import ByResponse
from optaxclip.thresholds import Constant
from optaxclip.updates import check_updates


def _bound(param: Leaf, relative: Number, absolute: Number) -> Number:
    size = modulus(widen(param))
    share = jnp.maximum(relative, 0).astype(size.dtype) * size
    bound = share + jnp.maximum(absolute, 0).astype(size.dtype)
    return jnp.where(relative == jnp.inf, jnp.inf, bound)


def _excess(groups: Groups, bounds: list[Number]) -> Magnitude:
    """Return the largest ratio of a number to its bound, for each tensor."""
    # The ratio of two floats can overflow float32, and its reciprocal can underflow.
    unit = 2.0**64
    pairs = list(zip(groups.leaves, bounds, strict=True))

    def largest(unit: float) -> PerGroup:
        times = groups.with_leaves([_times(*pair, unit) for pair in pairs])
        return measure(norms.linf, times).plain

    def pick(usual: Number, huge: Number) -> tuple[Number, Number]:
        fits = usual < unit
        one = jnp.ones_like(usual)
        return jnp.where(fits, usual, huge), jnp.where(fits, one, 1 / unit)

    return Magnitude(*map_groups(pick, largest(1.0), largest(unit)))


def _times(leaf: Leaf, bound: Number, unit: float) -> Number:
    """Divide moduli by their bounds and by a unit; an infinite bound gives 0."""
    size = modulus(multiply(widen(leaf, bound.dtype), jnp.asarray(1 / unit)))
    allowed = (bound == jnp.inf) | (size == 0)
    return jnp.where(allowed, 0.0, size / bound.astype(size.dtype))


def clippy(
    max_relative: ArrayLike = 0.5,
    *,
    max_absolute: ArrayLike = 1e-2,
    leading_axes: PyTree[int] | None = None,
    axis_name: AxisName = None,
    name: str = "clippy",
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each tensor's update so that no parameter changes by more than its limit.

    $$
    u_t \leftarrow u_t \cdot \min\left(1,
    \min_i \frac{\lambda |w_i| + \delta}{|u_i|}\right)
    $$

    Each parameter has its own limit, but the tensor has one factor, so its direction
    stays the same. Place it last in a chain, after the learning rate, where it bounds
    the step. Needs ``params``.

    Args:
      max_relative: the largest change relative to the parameter, λ >= 0: a number or an
        array.
      max_absolute: an absolute change allowed on top, δ > 0, so that parameters that
        start at zero can grow.
      leading_axes: the number of leading dimensions that stack separate tensors,
        such as scanned layers: an int or a prefix tree of ints; 0 by default.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases. The report shows the
      largest ratio of a number to its limit, with a limit of 1.

    Raises:
      TypeError: if `max_relative` or `max_absolute` has the wrong type.
      ValueError: if `max_relative` is negative or NaN, `max_absolute` is not above 0,
        or a leaf has fewer dimensions than `leading_axes`; in the update, if
        ``params`` do not match the updates.

    Examples:
      >>> clip = optaxclip.clippy(0.1, max_absolute=0.01)
      >>> params = jnp.array([1.0, 0.0])
      >>> state = clip.init(params)
      >>> updates, state = clip.update(jnp.array([0.2, 0.04]), state, params)
      >>> updates
      Array([0.05, 0.01], dtype=float32)

    Note:
      The defaults are the paper's. The authors' code has 0.1 and 1e-7, with which a
      tensor with a single parameter at zero hardly moves. It can also add a multiple of
      Adagrad's learning rate to the limits, by default 0, which is left out here.

    References:
      Tang et al., Improving training stability for multitask ranking models in
      recommender systems, 2023, arXiv:2302.09178.
    """
    check_nonnegative(max_relative, "max_relative")
    check_nonnegative(max_absolute, "max_absolute")
    if not isinstance(max_absolute, Tracer) and np.any(np.asarray(max_absolute) == 0):
        raise ValueError(
            "max_absolute must be above 0, not 0; no parameter at zero could move."
        )
    scope = scopes.tensor(leading_axes=leading_axes, axis_name=axis_name)
    clip = Clip(
        name,
        scope,
        Constant(1.0),
        ByNorm(norms.linf),
        ByResponse(responses.shrink),
    )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ClipState]:
        check_updates(name, updates)
        relative, absolute = as_number(max_relative), as_number(max_absolute)
        given = counted(beside(name, updates, params))
        bounds = [_bound(param, relative, absolute) for param in given]
        groups = scope.arrange(updates)
        excess = _excess(groups, bounds)
        return clip.clip(updates, groups, excess, state, params, extra)

    return optax.GradientTransformationExtraArgs(clip.init, update)
