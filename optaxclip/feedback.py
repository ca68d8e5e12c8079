"""Error feedback: carry over to the next step what a clipper cuts off."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from optaxclip.leaves import counted, filled, zeros_for
from optaxclip.numbers import Leaf, widen, widest
from optaxclip.reports import CarryState, check_state, marked
from optaxclip.roles import check_transformation
from optaxclip.updates import check_updates


class FeedbackState(NamedTuple):
    """State of `error_feedback`.

    Attributes:
      clip: the state of the clipper.
      clip_carry: the state of the transformation that bounds the carry.
      carry: what has been cut off so far, in at least float32; ``MaskedNode`` in place
        of leaves that do not count.
    """

    clip: Any
    clip_carry: Any
    carry: PyTree


def error_feedback(
    clip: optax.GradientTransformation,
    *,
    clip_carry: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Carry over what a clipper cuts off, so that nothing is lost on average.

    $$
    u \leftarrow \mathrm{clip}(g + \Delta), \qquad \Delta \leftarrow g + \Delta - u
    $$

    This is U-Clip. The updates are within the clipper's limit, and their sum stays
    within $\Delta$ of the sum of the gradients.

    The carry is a buffer of the size of the updates, in at least float32, so it also
    recovers what is lost by rounding to bfloat16. It has two drawbacks. A spike is
    paid out over the next ‖spike‖ / limit steps. And while gradients stay above the
    limit, the carry grows by their excess at every step, without bound; `clip_carry`
    bounds it, and what it cuts off is lost.

    A number whose step is not finite is passed on as the clipper leaves it, and its
    carry does not change: a NaN shows up once, but does not stay in the state.

    Args:
      clip: a clipper, or any other transformation.
      clip_carry: a clipper, or any other transformation, applied to the carry.
        ``clip_global_norm(10.0)`` keeps its norm at 10 or below, ``optax.scale(0.9)``
        makes it decay, and ``clip_global_norm(jnp.inf)`` reports its norm and loses
        nothing. By default the carry is unbounded, as in the paper.

    Returns:
      A transformation that passes ``params`` and extra arguments to both. Their
      reports are in `optaxclip.report`.

    Raises:
      TypeError: if `clip` or `clip_carry` is not a transformation.
      ValueError: in the update, if the updates do not match the params of the init.

    Examples:
      >>> clip = optaxclip.error_feedback(optaxclip.clip_value(1.0))
      >>> state = clip.init(jnp.zeros(()))
      >>> for gradient in 3.0, 0.5, 0.0, 0.0:
      ...     update, state = clip.update(jnp.array(gradient), state)
      ...     print(update, state.carry)
      1.0 2.0
      1.0 1.5
      1.0 0.5
      0.5 0.0

    Note:
      The paper bounds the carry by assumptions on the gradients and has no
      `clip_carry`. Error feedback breaks differential privacy.

    References:
      Elesedy and Hutter, U-Clip: on-average unbiased stochastic gradient clipping,
      2023, arXiv:2302.02971.
    """
    check_transformation(clip, "clip")
    if clip_carry is not None:
        check_transformation(clip_carry, "clip_carry")
    clip = marked(clip, CarryState)
    bound = optax.with_extra_args_support(
        optax.identity() if clip_carry is None else clip_carry
    )

    def init(params: PyTree) -> FeedbackState:
        carry = zeros_for(params, lambda x: widest(x.dtype))
        return FeedbackState(clip.init(params), bound.init(carry), carry)

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, FeedbackState]:
        check_updates("error_feedback", updates)
        check_state("error_feedback", state, FeedbackState)
        leaves, carried = counted(updates), jax.tree.leaves(state.carry)
        _check_carry(leaves, carried)
        wanted = [
            widen(u, c.dtype) + widen(c, u.dtype)
            for u, c in zip(leaves, carried, strict=True)
        ]
        clipped, clip_state = clip.update(
            filled(updates, wanted), state.clip, params, **extra
        )
        given = [
            x.astype(u.dtype) for x, u in zip(counted(clipped), leaves, strict=True)
        ]
        rest = [_rest(w, u, c) for w, u, c in zip(wanted, given, carried, strict=True)]
        carry = jax.tree.unflatten(jax.tree.structure(state.carry), rest)
        carry, bound_state = bound.update(carry, state.clip_carry, params, **extra)
        return filled(updates, given), FeedbackState(clip_state, bound_state, carry)

    return optax.GradientTransformationExtraArgs(init, update)


def _check_carry(leaves: list[Leaf], carried: list[Leaf]) -> None:
    """Reject the carry of another model."""
    if [x.shape for x in leaves] != [x.shape for x in carried]:
        raise ValueError(
            f"error_feedback was initialized for {len(carried)} leaves, which are not "
            f"of the shapes of the {len(leaves)} updates; init it with params like the "
            "updates."
        )


def _rest(wanted: Leaf, given: Leaf, carried: Leaf) -> Leaf:
    rest = (wanted - given.astype(wanted.dtype)).astype(carried.dtype)
    return jnp.where(jnp.isfinite(rest), rest, carried)
