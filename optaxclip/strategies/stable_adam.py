"""StableAdamW's preconditioner: Adam with update clipping."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Int32, PyTree

from optaxclip import norms, responses, scopes
from optaxclip.arguments import check_decay, check_nonnegative
from optaxclip.averages import newest_share, root_mean_square
from optaxclip.clipper import Clip
from optaxclip.leaves import AxisName, counted, filled, zeros_for
from optaxclip.norms.norm import ByNorm, measure
from optaxclip.numbers import Leaf, Number, modulus, multiply, widest
from optaxclip.reports import ClipState, check_shapes, check_state
from optaxclip.responses.apply import ByResponse
from optaxclip.thresholds import Limit, as_threshold
from optaxclip.thresholds.memory import full, increment
from optaxclip.updates import check_updates


class StableAdamState(NamedTuple):
    """State of `scale_by_stable_adam`.

    Attributes:
      number: the number of steps in each tensor's averages.
      mean: the average gradient, in at least float32.
      rms: the root mean square of the gradients, in at least float32.
      clip: the state of the clip.
    """

    number: PyTree[Int32[Array, ...]]
    mean: PyTree
    rms: PyTree
    clip: ClipState


def scale_by_stable_adam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
    *,
    max_rms: Limit = 1.0,
    leading_axes: PyTree[int] | None = None,
    axis_name: AxisName = None,
    name: str = "scale_by_stable_adam",
) -> optax.GradientTransformationExtraArgs:
    r"""Scale by Adam, with smaller steps where gradients exceed their past average.

    $$
    \begin{aligned}
    m &\leftarrow \hat\beta_1 m + (1 - \hat\beta_1) g, \quad
    v \leftarrow \hat\beta_2 v + (1 - \hat\beta_2) g^2, \quad
    \hat\beta = \beta \frac{1 - \beta^{t-1}}{1 - \beta^t} \\
    R_t &= \sqrt{\mathrm{mean}\left(g^2 / \max(v, \epsilon^2)\right)}, \quad
    u \leftarrow \frac m{\sqrt v + \epsilon} \cdot \min(1, d / R_t)
    \end{aligned}
    $$

    with one R per tensor. Use it in place of ``optax.scale_by_adam``:

        optax.chain(
            optaxclip.scale_by_stable_adam(),
            optax.add_decayed_weights(0.2),
            optax.scale_by_learning_rate(2e-3),
        )

    A tensor whose gradient is not finite becomes NaN, and its averages do not change.

    Args:
      b1: the decay β₁ of the average gradient.
      b2: the decay β₂ of the average squared gradient.
      eps: the number added to the root, ε >= 0.
      max_rms: the largest R that is not scaled down, d >= 0: a number, an array, a
        schedule of the clipper's own step, a prefix tree of these, or a threshold.
      leading_axes: the number of leading dimensions that stack separate tensors,
        such as scanned layers: an int or a prefix tree of ints; 0 by default.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases. The report shows R and
      d.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `max_rms` or `eps` is negative or NaN, `b1` or `b2` is not at
        least 0 and below 1, or a leaf has fewer dimensions than `leading_axes`.

    Examples:
      >>> stable_adam = optaxclip.scale_by_stable_adam()
      >>> state = stable_adam.init(jnp.zeros(2))
      >>> for gradient in jnp.array([1.0, -1.0]), jnp.array([100.0, -50.0]):
      ...     updates, state = stable_adam.update(gradient, state)
      ...     print(updates)
      [ 1. -1.]
      [ 0.531 -0.536]

    Note:
      The paper's algorithm divides the learning rate, and thus the weight decay, by R;
      here only the update is divided, so the weight decay is left to its own
      transformation. Averages are kept in at least float32 for all gradients, and for
      squares the root is stored, so that none overflows.

    References:
      Wortsman et al., Stable and low-precision training for large-scale
      vision-language models, 2023, arXiv:2304.13013, algorithm 2.
    """
    check_decay(b1, "b1")
    check_decay(b2, "b2")
    check_nonnegative(eps, "eps")
    scope = scopes.tensor(leading_axes=leading_axes, axis_name=axis_name)
    threshold = as_threshold(max_rms, "max_rms")
    measured, response = ByNorm(norms.rms), ByResponse(responses.shrink)
    clip = Clip(name, scope, threshold, measured, response)
    adam = _StableAdam(b1, b2, eps, clip)
    return optax.GradientTransformationExtraArgs(adam.init, adam.update)


@dataclass(frozen=True)
class _StableAdam:
    """The constants of Adam, and the clip of its steps."""

    b1: ArrayLike
    b2: ArrayLike
    eps: ArrayLike
    clip: Clip

    def init(self, params: PyTree) -> StableAdamState:
        return StableAdamState(
            jax.tree.map(_no_steps, self.clip.scope.arrange(params).struct()),
            zeros_for(params, lambda x: widest(x.dtype)),
            zeros_for(params, lambda x: jnp.finfo(widest(x.dtype)).dtype),
            self.clip.init(params),
        )

    def update(
        self, updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, StableAdamState]:
        check_state(self.clip.name, state, StableAdamState)
        check_updates(self.clip.name, updates)
        groups = self.clip.scope.arrange(updates)
        self.clip.check(state.clip, groups)
        shapes = [leaf.shape for leaf in groups.leaves]
        check_shapes(self.clip.name, (state.mean, state.rms), shapes + shapes)
        number = jax.tree.map(increment, state.number)
        old = map(jax.tree.leaves, (number, state.mean, state.rms))
        new = [
            self._averaged(groups.dtype, *each)
            for each in zip(groups.leaves, *old, strict=True)
        ]
        surprise = [
            _over(modulus(leaf.astype(mean.dtype)), jnp.maximum(rms, self.eps))
            for leaf, (mean, rms) in zip(groups.leaves, new, strict=True)
        ]
        size = measure(norms.rms, groups.with_leaves(surprise))
        steps = [_over(mean, rms + self.eps) for mean, rms in new]
        groups, following = groups.with_leaves(steps), filled(updates, steps)
        clipped, clip_state = self.clip.clip(
            following, groups, size, state.clip, params, extra
        )
        finite = list(map(jnp.isfinite, jax.tree.leaves(size.plain)))

        def kept(before: PyTree, after: Iterable[Array]) -> PyTree:
            """Use the new numbers only for tensors that are finite."""
            leaves, tree = jax.tree.flatten(before)
            return tree.unflatten(map(jnp.where, finite, after, leaves))

        found = zip(counted(clipped), counted(updates), strict=True)
        given = (step.astype(leaf.dtype) for step, leaf in found)
        return filled(updates, given), StableAdamState(
            kept(state.number, jax.tree.leaves(number)),
            kept(state.mean, (mean for mean, _ in new)),
            kept(state.rms, (rms for _, rms in new)),
            clip_state,
        )

    def _averaged(
        self, dtype: DTypeLike, leaf: Leaf, number: Array, mean: Leaf, rms: Number
    ) -> tuple[Leaf, Number]:
        first, second = (
            newest_share(decay, number, dtype).astype(rms.dtype)
            for decay in (self.b1, self.b2)
        )
        wide = leaf.astype(mean.dtype)
        mean = multiply(mean, 1 - first) + multiply(wide, first)
        return mean, root_mean_square(rms, modulus(wide), second)


def _no_steps(group: jax.ShapeDtypeStruct) -> Array:
    return full(group, 0, jnp.int32)


def _over(dividend: Leaf, divisor: Number) -> Leaf:
    """Divide; zero by zero is zero."""
    safe = jnp.where(divisor > 0, divisor, jnp.ones_like(divisor))
    if jnp.iscomplexobj(dividend):  # Complex division squares the divisor.
        return jax.lax.complex(dividend.real / safe, dividend.imag / safe)
    return dividend / safe
