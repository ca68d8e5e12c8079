"""StableAdamW's preconditioner: Adam whose step is bounded by its own surprise."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int32, PyTree

from optaxclip import norms, responses, scopes
from optaxclip.averages import newest_share, root_mean_square
from optaxclip.clipper import Rule
from optaxclip.leaves import AxisName, counted, filled, zeros_for
from optaxclip.magnitudes import Leaf, Number, modulus, widen
from optaxclip.measuring import measure, measuring_dtype
from optaxclip.reports import ClipState
from optaxclip.responses.pointwise import multiply
from optaxclip.thresholds import Threshold, as_threshold, check_limit
from optaxclip.thresholds.checks import check_decay
from optaxclip.thresholds.memory import count


class StableAdamState(NamedTuple):
    """What `scale_by_stable_adam` keeps from step to step.

    Attributes:
      number: how many steps each tensor's averages hold.
      mean: the average gradient, in at least float32.
      rms: the root mean square of the gradients, in at least float32.
      clip: the state of the clip.
    """

    number: Int32[Array, " tensors"]
    mean: PyTree
    rms: PyTree
    clip: ClipState


def scale_by_stable_adam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
    *,
    max_rms: ArrayLike | optax.Schedule | Threshold = 1.0,
    leading_axes: PyTree[int] | None = None,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale by Adam, and less where a tensor's gradient surprises its own average.

    $$
    \begin{aligned}
    m &\leftarrow \hat\beta_1 m + (1 - \hat\beta_1) g, \quad
    v \leftarrow \hat\beta_2 v + (1 - \hat\beta_2) g^2, \quad
    \hat\beta = \beta \frac{1 - \beta^{t-1}}{1 - \beta^t} \\
    R_t &= \sqrt{\mathrm{mean}\left(g^2 / \max(v, \epsilon^2)\right)}, \quad
    u \leftarrow \frac m{\sqrt v + \epsilon} \cdot \min(1, d / R_t)
    \end{aligned}
    $$

    with R measured for each tensor. It takes the place of ``optax.scale_by_adam``:

        optax.chain(
            optaxclip.scale_by_stable_adam(),
            optax.add_decayed_weights(0.2),
            optax.scale_by_learning_rate(2e-3),
        )

    A tensor whose gradient is not finite becomes NaN, and its averages stay as they
    were.

    Args:
      b1: the decay β₁ of the average gradient.
      b2: the decay β₂ of the average square.
      eps: what is added to the root, ε >= 0.
      max_rms: the largest R that is not scaled down, d >= 0: a number, an array, a
        schedule of the clipper's own step, a prefix tree of these, or a threshold.
      leading_axes: how many leading dimensions stack tensors that are measured
        alone, such as scanned layers: an int or a prefix tree of ints; none if not
        given.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.

    Returns:
      A transformation; `optaxclip.responses` has the table of its edges. The report
      shows R and d.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `max_rms` or `eps` is negative or NaN, `b1` or `b2` not at least 0
        and below 1, or a leaf has fewer dimensions than `leading_axes`.

    Examples:
      >>> stable_adam = optaxclip.scale_by_stable_adam()
      >>> state = stable_adam.init(jnp.zeros(2))
      >>> for gradient in jnp.array([1.0, -1.0]), jnp.array([100.0, -50.0]):
      ...     updates, state = stable_adam.update(gradient, state)
      ...     print(updates)
      [ 1. -1.]
      [ 0.531 -0.536]

    Note:
      The paper's algorithm divides the learning rate, and with it the weight decay, by
      R; here only the update is divided, so that weight decay is what its own
      transformation says. Averages are kept in at least float32 whatever the gradients
      are, and of squares the root, so that none overflows.

    References:
      Wortsman et al., Stable and low-precision training for large-scale
      vision-language models, 2023, arXiv:2304.13013, algorithm 2.
    """
    check_decay(b1, "b1")
    check_decay(b2, "b2")
    check_limit(eps, "eps")
    scope = scopes.tensor(leading_axes=leading_axes, axis_name=axis_name)
    threshold = as_threshold(max_rms, "max_rms")
    name = "scale_by_stable_adam"
    rule = Rule(scope, norms.rms, threshold, responses.shrink, name)

    def init(params: PyTree) -> StableAdamState:
        return StableAdamState(
            jnp.zeros(scope.arrange(params).report_shape, jnp.int32),
            zeros_for(params, lambda x: widen(x).dtype),
            zeros_for(params, lambda x: jnp.finfo(widen(x).dtype).dtype),
            rule.init(params),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, StableAdamState]:
        grouping, leaves = scope.arrange(updates), counted(updates)
        old = list(zip(*map(jax.tree.leaves, (state.mean, state.rms)), strict=True))
        number = count(state.number)
        dtype = measuring_dtype(leaves)
        shares = [
            grouping.spread(newest_share(decay, number, dtype)) for decay in (b1, b2)
        ]
        new = list(map(_averaged, leaves, old, *shares))
        surprise = [
            _over(modulus(leaf.astype(mean.dtype)), jnp.maximum(rms, eps))
            for leaf, (mean, rms) in zip(leaves, new, strict=True)
        ]
        size = measure(norms.rms, grouping, surprise)
        steps = filled(updates, [_over(mean, rms + eps) for mean, rms in new])
        steps, clip = rule.clip(steps, size, state.clip, params, extra)

        kept = [
            tuple(
                jnp.where(jnp.isfinite(surprise), *each)
                for each in zip(after, before, strict=True)
            )
            for surprise, after, before in zip(
                grouping.spread(size.plain), new, old, strict=True
            )
        ]
        mean, rms = (
            jax.tree.unflatten(jax.tree.structure(tree), [pair[i] for pair in kept])
            for i, tree in enumerate((state.mean, state.rms))
        )
        given = [
            step.astype(leaf.dtype)
            for step, leaf in zip(counted(steps), leaves, strict=True)
        ]
        number = jnp.where(jnp.isfinite(size.plain), number, state.number)
        return filled(updates, given), StableAdamState(number, mean, rms, clip)

    return optax.GradientTransformationExtraArgs(init, update)


def _averaged(
    leaf: Leaf, averages: tuple[Leaf, Number], first: Number, second: Number
) -> tuple[Leaf, Number]:
    mean, rms = averages
    first, second = first.astype(rms.dtype), second.astype(rms.dtype)
    wide = leaf.astype(mean.dtype)
    mean = multiply(mean, 1 - first) + multiply(wide, first)
    return mean, root_mean_square(rms, modulus(wide), second)


def _over(dividend: Leaf, divisor: Number) -> Leaf:
    """Divide; zero by zero is zero."""
    safe = jnp.where(divisor > 0, divisor, jnp.ones_like(divisor))
    if jnp.iscomplexobj(dividend):  # A complex quotient squares the divisor.
        return jax.lax.complex(dividend.real / safe, dividend.imag / safe)
    return dividend / safe
