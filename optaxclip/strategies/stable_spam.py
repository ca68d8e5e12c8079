"""Stable-SPAM's two clips: of the largest numbers, and of the norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int32, PyTree

from optaxclip import norms, responses, scopes
from optaxclip.arguments import check_decay, check_nonnegative
from optaxclip.averages import moved, newest_share, root_mean_square
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.numbers import Leaf, Number, modulus
from optaxclip.responses import GroupFactors, Response, shrink
from optaxclip.thresholds.ema import EmaState, average, empty_average
from optaxclip.thresholds.memory import Remembering, choose, full, increment, like


@dataclass(frozen=True)
class _RunningMean(Remembering):
    """The bias-corrected average of each tensor's magnitudes up to now."""

    decay: ArrayLike

    def first(self, group: jax.ShapeDtypeStruct) -> EmaState:
        """See `Remembering.first`."""
        return empty_average(group)

    def step(self, size: Number, memory: EmaState) -> tuple[Number, EmaState]:
        """See `Remembering.step`."""
        new = average(memory, size, self.decay)
        # Before the first finite magnitude, the limit is the largest float.
        largest = jnp.finfo(size.dtype).max
        known = jnp.where(memory.weight > 0, memory.mean, largest)
        return jnp.where(jnp.isfinite(size), new.mean, known), new


@dataclass(frozen=True)
class _RescaleAbove:
    """Scale the numbers above a limit so that the largest of them is at the limit."""

    def reach(self, magnitude: Number, limit: Number, /) -> Number:
        return shrink.reach(magnitude, limit)

    def weigh(self, value: Number, scale: Number, limit: Number) -> GroupFactors:
        factors = shrink.weigh(value, scale, limit)
        broken = jnp.isnan(factors[0] * factors[1])
        return jnp.where(broken, -1.0, limit), *factors  # All are above -1.

    def apply(self, leaf: Leaf, *weights: Number) -> Leaf:
        limit, *factors = weights
        size = modulus(leaf)
        above = size > limit.astype(size.dtype)
        return jnp.where(above, shrink.apply(leaf, *factors), leaf)

    def pointwise(self) -> Response:
        return shrink.pointwise()


def adaclip(
    decay: ArrayLike = 0.999,
    *,
    leading_axes: PyTree[int] | None = None,
    axis_name: AxisName = None,
    name: str = "adaclip",
) -> optax.GradientTransformationExtraArgs:
    r"""Scale down the numbers of a tensor that exceed its average maximum.

    $$
    M \leftarrow \beta M + (1 - \beta) \max_j |u_j|, \quad
    T = \frac M{1 - \beta^t}, \quad
    u_i \leftarrow u_i \frac T{\max_j |u_j|} \text{ if } |u_i| > T
    $$

    This is the AdaClip of Stable-SPAM, not the one of differential privacy. The largest
    number becomes T; the others above T are scaled by the same factor. A tensor that is
    not finite does not enter its average.

    Args:
      decay: the decay β of the average.
      leading_axes: the number of leading dimensions that stack separate tensors,
        such as scanned layers: an int or a prefix tree of ints; 0 by default.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `decay` is not at least 0 and below 1, or a leaf has fewer
        dimensions than `leading_axes`.

    Examples:
      >>> clip = optaxclip.adaclip(decay=0.5)
      >>> state = clip.init(jnp.zeros(3))
      >>> _, state = clip.update(jnp.array([1.0, 0.5, 0.0]), state)
      >>> updates, state = clip.update(jnp.array([4.0, 3.5, 1.0]), state)
      >>> updates
      Array([3.   , 2.625, 1.   ], dtype=float32)

    Note:
      The paper and the authors' code agree on the formula. Their code shares the step
      count with Adam's moments and resets it to 1 together with them, which makes T
      hundreds of times too large for some steps; here the clipper has its own count,
      which is never reset.

    References:
      Huang et al., Stable-SPAM: how to train in 4-bit more stably than 16-bit Adam,
      2025, arXiv:2502.17055.
    """
    check_decay(decay)
    return clipper(
        scopes.tensor(leading_axes=leading_axes, axis_name=axis_name),
        norms.linf,
        _RunningMean(decay),
        _RescaleAbove(),
        name=name,
    )


class _Normal(NamedTuple):
    """The average and the root mean square of each tensor's norms."""

    mean: Number
    rms: Number
    number: Int32[Array, ...]


@dataclass(frozen=True)
class _Normalized(Remembering):
    """The ratio of the average norm to its root mean square, both up to now."""

    b1: ArrayLike
    b2: ArrayLike
    eps: ArrayLike

    def first(self, group: jax.ShapeDtypeStruct) -> _Normal:
        """See `Remembering.first`."""
        return _Normal(full(group, 0), full(group, 0), full(group, 0, jnp.int32))

    def step(self, size: Number, memory: _Normal) -> tuple[Number, _Normal]:
        """See `Remembering.step`."""
        number = increment(memory.number)
        first = newest_share(self.b1, number, size.dtype)
        second = newest_share(self.b2, number, size.dtype)
        new = _Normal(
            moved(memory.mean, size, first),
            root_mean_square(memory.rms, size, second),
            number,
        )
        known = choose(jnp.isfinite(size), new, memory)
        ratio = known.mean / (known.rms + like(self.eps, size))
        # Before the first finite norm, the new norm is 1.
        return jnp.where(known.number > 0, ratio, jnp.ones_like(ratio)), new


def adagn(
    b1: ArrayLike = 0.7,
    b2: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    *,
    leading_axes: PyTree[int] | None = None,
    axis_name: AxisName = None,
    name: str = "adagn",
) -> optax.GradientTransformationExtraArgs:
    r"""Set the norm of each tensor to its average divided by its root mean square.

    $$
    a \leftarrow \beta_1 a + (1 - \beta_1) \lVert u \rVert, \quad
    b \leftarrow \beta_2 b + (1 - \beta_2) \lVert u \rVert^2, \quad
    u \leftarrow \frac u{\lVert u \rVert} \cdot
    \frac{a / (1 - \beta_1^t)}{\sqrt{b / (1 - \beta_2^t)} + \epsilon}
    $$

    The new norm is about 1, and less after a spike. This is the AdaGN of Stable-SPAM,
    also called GradientStabilizer on its own. A tensor of zeros does not change; one
    that is not finite does not enter its averages.

    Args:
      b1: the decay of the average norm.
      b2: the decay of the average squared norm.
      eps: the number added to the root mean square, ε >= 0.
      leading_axes: the number of leading dimensions that stack separate tensors,
        such as scanned layers: an int or a prefix tree of ints; 0 by default.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses`, under `normalize`, for edge cases.
      The report's limit is the new norm.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `b1` or `b2` is not at least 0 and below 1, `eps` is negative or
        NaN, or a leaf has fewer dimensions than `leading_axes`.

    Examples:
      >>> normalize = optaxclip.adagn()
      >>> state = normalize.init(jnp.zeros(2))
      >>> for gradient in jnp.array([0.3, 0.4]), jnp.array([300.0, 400.0]):
      ...     updates, state = normalize.update(gradient, state)
      ...     print(updates)
      [0.6 0.8]
      [0.487 0.649]

    Note:
      The paper and the authors' code agree on the formula. Their code multiplies both
      decays by a cosine of the step, which its bias correction ignores, and shares the
      step count with moments that are reset; neither is done here.

    References:
      Huang et al., Stable-SPAM: how to train in 4-bit more stably than 16-bit Adam,
      2025, arXiv:2502.17055; its third version calls it GradientStabilizer.
    """
    check_decay(b1, "b1")
    check_decay(b2, "b2")
    check_nonnegative(eps, "eps")
    return clipper(
        scopes.tensor(leading_axes=leading_axes, axis_name=axis_name),
        norms.l2,
        _Normalized(b1, b2, eps),
        responses.normalize,
        name=name,
    )
