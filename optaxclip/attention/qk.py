"""QK-Clip: rescale query and key projections by the largest logit of each head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from optaxclip import scopes
from optaxclip.arguments import is_real
from optaxclip.attention.shares import (
    HeadShare,
    HeadShares,
    attention_shares,
    check_inside,
    check_shares,
)
from optaxclip.clipper import clipper
from optaxclip.groups import PerGroup
from optaxclip.leaves import counted, counts, filled
from optaxclip.norms import linf
from optaxclip.norms.norm import measure
from optaxclip.numbers import Leaf, Number, as_number, widen
from optaxclip.paths import names_of
from optaxclip.reports import ClipState
from optaxclip.responses import shrink
from optaxclip.sentences import shown
from optaxclip.thresholds import Limit, Observation, Threshold, as_threshold
from optaxclip.thresholds.threshold import GroupShapes
from optaxclip.weights.bounds import bound_weights

Names = tuple[str, ...]


def _by_module(
    max_logits: PyTree, tree: PyTree, shares: HeadShares
) -> list[tuple[Names, str] | None]:
    """Find the attention module and projection of each leaf that counts."""
    logits = [names_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(max_logits)]
    found: list[tuple[Names, str] | None] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not counts(leaf):
            continue
        names = names_of(path)
        homes = [home for home in logits if home == names[: len(home)]]
        inside = names[max(map(len, homes), default=len(names)) :]
        projections = [name for name in inside if name in shares]
        home = max(homes, key=len, default=())
        found.append((home, projections[0]) if projections else None)
    lonely = set(logits) - {entry[0] for entry in found if entry}
    if lonely:
        places = ", ".join(sorted("/".join(home) or "the top" for home in lonely))
        raise ValueError(
            f"max_logits names {places}, where params have no {' or '.join(shares)}; "
            "nest the logits like the attention modules, or name the shares."
        )
    return found


def _factor(leaf: Leaf, shares: tuple[HeadShare, ...], gamma: Number) -> Number:
    """Return the factors for a projection of shape ``(..., heads, features)``."""
    layers, heads = gamma.shape[:-1], gamma.shape[-1]
    between = (1,) * (leaf.ndim - 2 - len(layers))
    gamma = gamma.reshape((*layers, *between, heads, 1))
    factor = jnp.ones_like(gamma)
    feature = jnp.arange(leaf.shape[-1]).reshape((1,) * (leaf.ndim - 1) + (-1,))
    for share in shares:
        stop = leaf.shape[-1] if share.stop is None else share.stop
        taken = (feature >= share.start) & (feature < stop)
        factor = jnp.where(taken, gamma**share.power, factor)
    return factor


@dataclass(frozen=True)
class _ForAllHeads:
    """One limit for all heads, based on the largest logit of any head.

    Attributes:
      threshold: sets the limit; it sees a single group.
    """

    threshold: Threshold

    def init(self, groups: GroupShapes) -> Any:
        return self.threshold.init(jax.ShapeDtypeStruct((), jnp.float32))

    def update(self, seen: Observation, state: Any) -> tuple[PerGroup, Any]:
        heads = scopes.whole(axis_name=()).arrange(seen.magnitude)
        largest = replace(seen, groups=heads, size=measure(linf, heads))
        return self.threshold.update(largest, state)


def _shrink_logits(
    threshold: Threshold, shares: HeadShares, name: str
) -> optax.GradientTransformationExtraArgs:
    """Clip the logits, and rescale each head by the factor that clipped its logit."""
    scope = scopes.element(axis_name=())
    clip = clipper(scope, linf, _ForAllHeads(threshold), shrink, name=name)

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree | None = None,
        *,
        max_logits: PyTree[ArrayLike] | None = None,
        **extra: Any,
    ) -> tuple[PyTree, ClipState]:
        del params
        if max_logits is None or not jax.tree.leaves(max_logits):
            raise ValueError(
                "qk_clip needs the largest attention logit of each head; call "
                "update(updates, state, params, max_logits=...), where "
                "optaxclip.attention.max_logits collects them from a Flax model."
            )
        logits = jax.tree.map(_positive, max_logits)
        clipped, state = clip.update(logits, state, **extra)
        left = jax.tree.map(_gamma, clipped, logits)
        found = jax.tree_util.tree_leaves_with_path(left)
        gammas = {names_of(path): gamma for path, gamma in found}
        belongs = _by_module(max_logits, updates, shares)
        scaled = _rescaled(counted(updates), belongs, gammas, shares)
        return filled(updates, scaled), state

    return optax.GradientTransformationExtraArgs(clip.init, update)


def _positive(logit: ArrayLike) -> Number:
    """Replace negative logits by 0, since they are below any limit."""
    if not is_real(logit):
        raise TypeError(
            f"max_logits must be a tree of numbers, one a head, not {shown(logit)}."
        )
    return jnp.maximum(jnp.atleast_1d(as_number(logit)), 0)


def _gamma(clipped: Number, logit: Number) -> Number:
    same = clipped == logit  # Also 0, and infinity if the limit is infinite.
    return jnp.where(same, 1, clipped / jnp.where(same, 1, logit))


def _rescaled(
    leaves: list[Leaf],
    belongs: list[tuple[Names, str] | None],
    gammas: dict[Names, Number],
    shares: HeadShares,
) -> list[Array]:
    """Rescale all projections but shared ones, which have fewer heads than logits."""

    def is_shared(leaf: Leaf, home: Names) -> bool:
        heads = gammas[home].shape[-1]
        if leaf.ndim < 2 or heads % leaf.shape[-2]:
            raise ValueError(
                f"max_logits has {heads} heads at {'/'.join(home) or 'the top'}, where "
                f"a projection has shape {leaf.shape}; it has to end in (heads, "
                "features), where heads is the same number or a divisor of it."
            )
        return leaf.shape[-2] < heads

    pairs = list(zip(leaves, belongs, strict=True))
    shared = {entry[0] for x, entry in pairs if entry and is_shared(x, entry[0])}
    found = []
    for leaf, entry in pairs:
        if entry is None or is_shared(leaf, entry[0]):
            found.append(leaf)
            continue
        home, projection = entry
        given = shares[projection]
        check_inside(projection, given, leaf.shape[-1])
        if home in shared:
            given = tuple(replace(share, power=1.0) for share in given)
        factor = _factor(leaf, given, gammas[home])
        found.append(widen(leaf) * factor.astype(widen(leaf).dtype))
    return found


def qk_clip(
    max_logit: Limit = 100.0,
    *,
    shares: HeadShares | None = None,
    name: str = "qk_clip",
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink the query and key projections of heads whose logits are too large.

    $$
    \gamma_h = \min(1, \tau / S_h), \qquad
    W_{q,h} \leftarrow \gamma_h^{1/2} W_{q,h}, \qquad
    W_{k,h} \leftarrow \gamma_h^{1/2} W_{k,h}
    $$

    where $S_h$ is the largest attention logit of head h in this step's forward pass,
    over the batch and all positions. Place it last in a chain. It needs ``params`` and
    ``max_logits``, a tree nested like the parameters with one array per attention
    module: a vector with one entry per head, or ``(layers, heads)`` for scanned layers.
    `max_logits` collects this tree from Flax models.

    Args:
      max_logit: the largest logit allowed, τ >= 0: a number, an array, a schedule of
        the clipper's own step, a prefix tree of these for ``max_logits``, or a
        threshold, which sees the largest logit of all heads.
      shares: which projections take which share of the factor: `attention_shares`,
        `latent_attention_shares`, or a dict of tuples of `HeadShare`; by default, the
        modules called ``query`` and ``key`` share it evenly. The shapes of a
        projection's kernel and bias end in ``(heads, features)``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation. Its report is about the logits, where negative ones count as 0:
      it shows the logit that exceeds its limit the most, and the fraction of heads
      above their limit.

    Raises:
      TypeError: if `max_logit` or `shares` have the wrong type.
      ValueError: if `max_logit` is negative or NaN, or `shares` is empty; in the
        update, if ``params`` or ``max_logits`` are missing or do not match, or `shares`
        count more features than a projection has.

    Examples:
      >>> clip = optaxclip.attention.qk_clip(100.0)
      >>> params = {"query": jnp.ones((1, 2, 1)), "key": jnp.ones((1, 2, 1))}
      >>> zeros = jax.tree.map(jnp.zeros_like, params)
      >>> updates, _ = clip.update(
      ...     zeros, clip.init(params), params, max_logits=jnp.array([400.0, -3.0])
      ... )
      >>> optax.apply_updates(params, updates)["query"].ravel()
      Array([0.5, 1. ], dtype=float32)

    References:
      Kimi Team, Kimi K2: open agentic intelligence, 2025, arXiv:2507.20534.

    Note:
      The logits come from the parameters before the step. A head whose logits are all
      negative does not change; its factor ``min(1, τ / S)`` would be negative. The clip
      has no effect if queries and keys are normalized. On a mesh, take the maximum over
      all devices. Averaged copies of the parameters are not rescaled.
    """
    threshold = as_threshold(max_logit, "max_logit")
    shares = attention_shares() if shares is None else shares
    check_shares(shares)
    clip = _shrink_logits(threshold, shares, name)
    return bound_weights(clip, name=name)
