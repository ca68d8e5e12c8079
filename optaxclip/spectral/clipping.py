"""The named bounds on singular values."""

from __future__ import annotations

from typing import Any

import optax
from jaxtyping import PyTree

from optaxclip.spectral.transformation import BEND, CLIP, spectral_clipper
from optaxclip.thresholds import Limit, as_threshold


def clip_singular_values(
    max_value: Limit, *, leading_axes: PyTree[int] | None = None, axis: Any = None
) -> optax.GradientTransformationExtraArgs:
    r"""Clip the singular values of every matrix.

    $$U \operatorname{diag}(\sigma) V^* \leftarrow
    U \operatorname{diag}(\min(\sigma, c)) V^*$$

    This is the nearest matrix, in the Frobenius norm, of spectral norm at most c. A
    vector is a matrix of one column, whose one singular value is its norm; leave
    vectors, and embeddings, out through ``optax.masked`` if that is not wanted.

    Args:
      max_value: the largest singular value allowed, c >= 0: a number, an array, a
        schedule of the clipper's own step, a prefix tree of these, or a threshold.
      leading_axes: the number of leading dimensions that stack matrices, such as
        scanned layers: an int or a prefix tree of ints; 0 by default.
      axis: the dimensions of a leaf that are a matrix's inputs, the others being its
        outputs: an int, a tuple, or a prefix tree of these; all but the last if not
        given, as JAX keeps kernels input-first. So a kernel of a convolution is a
        matrix of what is under the window by the channels.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases. Its report
      has an entry a matrix: the largest singular value, which is exact where a CPU
      clipped it, or else by a few power iterations, which may be some percent too low.

    Raises:
      TypeError: if `max_value` has the wrong type.
      ValueError: if `max_value` is negative or NaN, or a leaf has no dimension `axis`
        or fewer than `leading_axes`.

    Examples:
      >>> clip = optaxclip.clip_singular_values(1.0)
      >>> state = clip.init(jnp.eye(2))
      >>> updates, _ = clip.update(jnp.diag(jnp.array([3.0, 0.5])), state)
      >>> updates.round(4)
      Array([[1. , 0. ],
             [0. , 0.5]], dtype=float32)

    References:
      Higham, Functions of matrices: theory and computation, SIAM, 2008, chapters 5
      and 8.

      Amsel et al., The Polar Express: optimal matrix sign methods and their application
      to the Muon algorithm, 2025, arXiv:2505.16932.

    Note:
      On a CPU, the matrices of a leaf are decomposed together if any of them may have a
      singular value above the limit, which a Cholesky factor tells. In the spectral
      norm the error is below 1e-5 times the largest singular value (float32, up to 512
      rows and columns).

      On accelerators, a fixed number of matrix products does it, which no decision
      interrupts; it takes them whether or not anything is above. The error is below
      4e-6 times the largest singular value where that is up to 4096 times the limit.
      Beyond, a matrix is clipped at a larger limit and scaled down to this one: what
      was between the two becomes smaller than it has to be, and no singular value ends
      above 1.1 times the limit. So it is computed for derivatives, everywhere.

      Matrices with no singular value above ``limit * (1 + 4e-6)`` keep their bits.
      Stacked matrices go together, by `leading_axes` or by ``jax.vmap``. Inside
      ``jax.shard_map`` a matrix has to be whole on its device, and the report is of
      the device's own.

      As a bound on weights, `bound_weights(clip_singular_values(c))`, it leaves
      float32 parameters within ``c * (1 + 1e-5)``. Those of narrower types are rounded
      one by one, which need not make a spectral norm smaller: it was up to 8% above c
      in bfloat16 and 7% in float16 (normal numbers, up to 512 rows and columns).
    """
    return spectral_clipper(
        "clip_singular_values",
        CLIP,
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
      leading_axes: the number of leading dimensions that stack matrices, such as
        scanned layers: an int or a prefix tree of ints; 0 by default.
      axis: the dimensions of a leaf that are a matrix's inputs, the others being its
        outputs: an int, a tuple, or a prefix tree of these; all but the last if not
        given.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases. Its report
      is that of `clip_singular_values`.

    Raises:
      TypeError: if `scale` has the wrong type.
      ValueError: if `scale` is negative or NaN, or a leaf has no dimension `axis` or
        fewer than `leading_axes`.

    Examples:
      >>> clip = optaxclip.soft_clip_singular_values(3.0)
      >>> state = clip.init(jnp.eye(2))
      >>> updates, _ = clip.update(jnp.diag(jnp.array([4.0, 0.0])), state)
      >>> updates.round(4)
      Array([[2.4, 0. ],
             [0. , 0. ]], dtype=float32)

    References:
      SPECTRA, 2026, arXiv:2603.14315.

    Note:
      The authors' code takes a fixed number of iterations, which is too few where
      singular values are above 30 c, and leaves vectors with a norm of at most c as
      they are, so that the map has a jump. Here vectors are bent as matrices are. A CPU
      decomposes the matrix, and accelerators take enough products for singular values
      up to 6e4 c; beyond, the smaller ones become too small, and none ends above c. The
      error is below 1e-5 times the largest singular value (float32, up to 512 rows and
      columns). The learning rate, the shape factor and the weight decay of the paper's
      optimizer are left to the rest of the chain.
    """
    return spectral_clipper(
        "soft_clip_singular_values",
        BEND,
        as_threshold(scale, "scale"),
        leading_axes,
        axis,
    )
