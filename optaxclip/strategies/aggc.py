"""AGGC: keep groups of leaves in a band around their own past norms."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import optax
from jax.typing import ArrayLike
from jaxtyping import PyTree

from optaxclip import norms, responses, scopes
from optaxclip.clipper import clipper
from optaxclip.leaves import AxisName
from optaxclip.norms import Norm, as_norm
from optaxclip.thresholds import Band


def aggc(
    labels: PyTree[Hashable] | Callable[[PyTree], PyTree[Hashable]],
    *,
    high: ArrayLike = 2.0,
    low: ArrayLike = 0.5,
    floor: ArrayLike = 0.0,
    decay: ArrayLike = 0.98,
    ord: float | Norm = norms.l2,
    axis_name: AxisName = None,
    name: str = "aggc",
) -> optax.GradientTransformationExtraArgs:
    r"""Bring the norm of each labeled group of leaves into a band around its average.

    $$
    L = \max(n_{\min}, \alpha_{\mathrm{low}} S), \quad
    U = \max(L, \alpha_{\mathrm{high}} S), \quad
    u_g \leftarrow u_g \frac{\min(\max(\lVert u_g \rVert, L), U)}{\lVert u_g \rVert},
    \quad
    S \leftarrow \beta S + (1 - \beta) \lVert u_g \rVert
    $$

    where S is bias-corrected and updated with the new norm. Groups above the band are
    shrunk to U, and groups below it are scaled up to L; ``low=0`` only shrinks. The
    first gradient of a group passes unchanged, and zeros stay zeros.

    Args:
      labels: a prefix tree of labels, or a function from the updates to one, as in
        ``optax.partition``; the paper groups by kind of module, such as all query
        projections.
      high: the upper edge as a multiple of the average, $\alpha_{\mathrm{high}}$ >= 0.
      low: the lower edge as a multiple of the average, $\alpha_{\mathrm{low}}$ >= 0.
      floor: the floor under both edges, $n_{\min}$ >= 0.
      decay: β, at least 0 and below 1.
      ord: the order of the norm, at least 1 and possibly infinite, or a norm.
      axis_name: mesh axes over which leaves are sharded inside ``jax.shard_map``.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases. Its report has one
      entry per group, sorted by label.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `low`, `high` or `floor` is negative or NaN, `low` above
        `high`, `decay` not at least 0 and below 1, or `ord` below 1.

    Examples:
      >>> clip = optaxclip.aggc({"w": "body", "out": "head"})
      >>> state = clip.init({"w": jnp.zeros(1), "out": jnp.zeros(1)})
      >>> for w, out in (1.0, 8.0), (100.0, 0.1):
      ...     updates = {"w": jnp.array([w]), "out": jnp.array([out])}
      ...     updates, state = clip.update(updates, state)
      >>> updates["w"], updates["out"]
      (Array([2.], dtype=float32), Array([4.], dtype=float32))

    Note:
      The authors' code starts S at 0 without a correction, which sets the second step
      to a fiftieth of the first and keeps it there; hence the correction. As in their
      code, S is updated with the norm after clipping. Their floor applies only to the
      lower edge, which can thus rise above the upper one. The defaults of `low` and
      `high` are ours: theirs, both 1, scale every group to its average. Their
      multipliers change linearly in the middle of the run; for that, pass schedules for
      `low` and `high` to ``optax.inject_hyperparams(optaxclip.aggc)``. On several
      devices their code averages squared norms of local gradients; here the full
      gradient is measured.

    References:
      Li et al., AGGC: adaptive group gradient clipping for stabilizing large language
      model training, 2026, arXiv:2601.11864.
    """
    return clipper(
        scopes.groups(labels, axis_name=axis_name),
        as_norm(ord),
        Band(low, high, floor, decay),
        responses.normalize,
        name=name,
    )
