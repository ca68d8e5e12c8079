"""Clipping of singular values."""

from __future__ import annotations

from typing import Any

import optax
from jaxtyping import PyTree

from optaxclip.spectral.transformation import BEND, CLIP, spectral_clipper
from optaxclip.thresholds import Limit, as_threshold


def clip_singular_values(
    max_value: Limit,
    *,
    leading_axes: PyTree[int] | None = None,
    axis: Any = None,
    name: str = "clip_singular_values",
) -> optax.GradientTransformationExtraArgs:
    r"""Clip the singular values of every matrix.

    $$U \operatorname{diag}(\sigma) V^* \leftarrow
    U \operatorname{diag}(\min(\sigma, c)) V^*$$

    The result is the nearest matrix, in the Frobenius norm, with spectral norm at most
    c. A vector counts as a matrix with one column, whose singular value is its norm;
    use ``optax.masked`` to exclude vectors and embeddings.

    Args:
      max_value: the largest singular value allowed, c >= 0: a number, an array, a
        schedule of the clipper's own step, a prefix tree of these, or a threshold.
      leading_axes: the number of leading dimensions that stack matrices, such as
        scanned layers: an int or a prefix tree of ints; 0 by default.
      axis: the dimensions of a leaf that are the inputs of a matrix, the others being
        its outputs: an int, a tuple, or a prefix tree of these; all but the last by
        default, since JAX stores kernels as ``(..., inputs, outputs)``. A convolution
        kernel is thus a matrix of the numbers under the window by output channels.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases. Its report has one
      entry per matrix: the largest singular value. It is exact where a CPU clipped the
      matrix; otherwise it comes from a few power iterations and may be some percent too
      low.

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
      singular value above the limit, according to a Cholesky factorization. In the
      spectral norm, the error is below 1e-5 times the largest singular value (float32,
      up to 512 rows and columns).

      Accelerators use a fixed number of matrix products without branches, whether or
      not anything is above the limit. The error is below 4e-6 times the largest
      singular value if that is up to 4096 times the limit. Beyond, a matrix is clipped
      at a larger limit and scaled down to this one: singular values between the two
      become smaller than necessary, and none ends above 1.1 times the limit.
      Derivatives are computed this way everywhere.

      Matrices with no singular value above ``limit * (1 + 4e-6)`` are bitwise
      unchanged. Stacked matrices, by `leading_axes` or ``jax.vmap``, are processed
      together.

      Under ``jit`` matrices may be sharded in any way. Inside ``jax.shard_map`` each
      matrix has to be whole on its device, though devices may have different ones, and
      the report is about the device's own. There is no ``axis_name``: the singular
      values of a matrix are no sum over its parts, so its parts would have to be
      gathered first. There is no ``ord``, since the norm is the method.

      As a bound on weights, `bound_weights(clip_singular_values(c))` keeps float32
      parameters within ``c * (1 + 1e-5)``. Parameters of narrower dtypes are rounded
      one by one, which can increase the spectral norm: it was up to 8% above c in
      bfloat16 and 7% in float16 (normal numbers, up to 512 rows and columns).
    """
    return spectral_clipper(
        name,
        CLIP,
        as_threshold(max_value, "max_value"),
        leading_axes,
        axis,
    )


def soft_clip_singular_values(
    max_value: Limit,
    *,
    leading_axes: PyTree[int] | None = None,
    axis: Any = None,
    name: str = "soft_clip_singular_values",
) -> optax.GradientTransformationExtraArgs:
    r"""Saturate the singular values of every matrix smoothly at a bound.

    $$X \leftarrow (I + X X^* / c^2)^{-1/2} X, \qquad
    \sigma \leftarrow \sigma / \sqrt{1 + \sigma^2 / c^2}$$

    A vector counts as a matrix with one column, whose singular value is its norm.

    Args:
      max_value: the bound c >= 0: a number, an array, a schedule of the clipper's own
        step, a prefix tree of these, or a threshold.
      leading_axes: as in `clip_singular_values`.
      axis: as in `clip_singular_values`.
      name: what `optaxclip.report` calls it.

    Returns:
      A transformation; see `optaxclip.responses` for edge cases, and
      `clip_singular_values` for its report.

    Raises:
      TypeError: if `max_value` has the wrong type.
      ValueError: if `max_value` is negative or NaN, or a leaf has no dimension `axis`
        or fewer than `leading_axes`.

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
      The authors' code uses a fixed number of iterations, which is too few for singular
      values above 30 c, and does not change vectors with a norm of at most c, so that
      the map is discontinuous. Here vectors are treated like matrices. A CPU decomposes
      the matrix, and accelerators use enough products for singular values up to 6e4 c;
      beyond, the smaller ones become too small, and none ends above c. The error is
      below 1e-5 times the largest singular value (float32, up to 512 rows and columns).
      The learning rate, the shape factor and the weight decay of the paper's optimizer
      are left to the rest of the chain.
    """
    return spectral_clipper(
        name,
        BEND,
        as_threshold(max_value, "max_value"),
        leading_axes,
        axis,
    )
