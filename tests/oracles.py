"""What every strategy must return: plain NumPy in float64, from the formulae.

A tree is a list of arrays here. `sizes` functions say how big the group of each number
is, `limits` functions how big it may be, and a response makes the two agree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


def norm(x, p, axes=None):
    """The p-norm over `axes`, scaled by the largest so that float64 holds it."""
    x = np.abs(x)
    top = x.max(axes, keepdims=True, initial=0.0)
    if p == np.inf:
        return top
    scale = np.where(top > 0, top, 1.0)
    return scale * ((x / scale) ** p).sum(axes, keepdims=True) ** (1 / p)


def element(leaves):
    """Every number alone."""
    return [np.abs(x) for x in leaves]


def unit_norm(leaves):
    """Every output unit alone: all axes but the last; vectors and scalars whole."""
    return [norm(x, 2, tuple(range(x.ndim - 1)) or None) for x in leaves]


def tensor_norm(leaves):
    """Every leaf alone."""
    return [norm(x, 2) for x in leaves]


def tensor_rms(leaves):
    """Every leaf alone, by its root mean square."""
    return [norm(x, 2) / np.sqrt(max(x.size, 1)) for x in leaves]


def spectral_norm(leaves):
    """Every leaf alone, as a matrix whose columns are its last dimension."""
    sizes = []
    for x in leaves:
        matrix = x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1)
        finite = np.isfinite(matrix).all()
        sizes.append(np.linalg.norm(matrix, 2) if finite and x.size else np.nan)
    return [np.asarray(size) for size in sizes]


def global_norm(p):
    """All numbers together."""

    def sizes(leaves):
        whole = norm(np.concatenate([np.zeros(1), *map(np.ravel, leaves)]), p)
        return [whole.reshape(()) for _ in leaves]

    return sizes


def rank_norm(leaves):
    """Two groups: matrices (two axes or more) and the rest."""
    matrices = global_norm(2)([x for x in leaves if x.ndim >= 2])
    others = global_norm(2)([x for x in leaves if x.ndim < 2])
    return [matrices[0] if x.ndim >= 2 else others[0] for x in leaves]


def as_given(params, limit):
    """The limit itself, for every leaf."""
    return [np.asarray(limit, np.float64) for _ in params]


def unlimited(params, limit):
    """No limit, whatever is given for one: there is no history yet."""
    return as_given(params, np.inf)


def per_root_size(params, limit):
    """The limit over the root of the number of parameters."""
    return as_given(params, limit / np.sqrt(max(sum(x.size for x in params), 1)))


def share_of_unit(params, limit):
    """AGC: a share of the norm of the unit's own weights, which counts as 1e-3 or more.

    A unit's sizes keep their axes, so that they broadcast against the updates.
    """
    return [limit * np.maximum(size, 1e-3) for size in unit_norm(params)]


def per_root_fan_in(params, limit):
    """The limit over the root of the fan-in, of trees that are built as the matrix's.

    A vector right before a matrix is its bias; a scalar stands beside the last kernel
    of a convolution. Others have no kernel beside them.
    """
    limits = []
    for i, x in enumerate(params):
        after = params[i + 1] if i + 1 < len(params) else x
        convolutions = [y for y in params[:i] if y.ndim == 3]
        kernel = x if x.ndim > 1 else None
        if x.ndim == 1 and after.ndim == 2:
            kernel = after
        if x.ndim == 0 and convolutions:
            kernel = convolutions[-1]
        fan_in = 0 if kernel is None else np.prod(kernel.shape[:-1])
        unlimited = np.nan if np.isnan(limit) else np.inf
        limits.append(np.asarray(limit / np.sqrt(fan_in) if fan_in else unlimited))
    return limits


def shrink(x, size, limit):
    """Scale a group down to its limit; an infinite limit leaves everything alone."""
    factor = np.where(size > limit, limit / size, 1.0)
    factor = np.where(np.isfinite(size), factor, np.nan)
    return np.where(np.isinf(limit), x, x * factor)


def normalize(x, size, limit):
    """Scale a group to its limit, up as well as down; zeros stay."""
    factor = np.where(size > 0, limit / np.where(size > 0, size, 1.0), 1.0)
    factor = np.where(np.isfinite(size), factor, np.nan)
    return np.where(np.isinf(limit), x, x * factor)


def shrink_by_at_least(factor):
    """Scale a group down to its limit, but by no factor below the given one."""

    def respond(x, size, limit):
        return shrink(
            x, size, np.maximum(limit, np.where(size < np.inf, size, 0) * factor)
        )

    return respond


def clamp(x, size, limit):
    """Bring every number down to the limit, infinite ones too."""
    direction = np.where(np.isinf(size), np.sign(x), x / np.where(size > 0, size, 1))
    return np.where(size > limit, direction * limit, x)


def soften(curve):
    """Replace the size r of a group by c * curve(r / c)."""

    def respond(x, size, limit):
        ratio = size / np.where(limit > 0, limit, 1.0)
        factor = np.where(ratio > 0, curve(ratio) / np.where(ratio > 0, ratio, 1), 1)
        factor = np.where(limit > 0, factor, 0.0)
        factor = np.where(np.isfinite(size), factor, np.nan)
        return np.where(np.isinf(limit), x, x * factor)

    return respond


def tanh(t):
    """The hyperbolic tangent."""
    return np.tanh(t)


def arctan(t):
    """The arc tangent with slope 1 at 0 and limit 1."""
    return 2 / np.pi * np.arctan(np.pi / 2 * t)


def algebraic(t):
    """The simplest rational saturation."""
    return t / (1 + t)


def pseudo_huber(t):
    """The derivative of the pseudo-Huber loss."""
    return t / np.sqrt(1 + t**2)


@dataclass(frozen=True)
class Groupwise:
    """The oracle of what measures groups, asks for their limits, and responds."""

    sizes: Callable[..., Any]
    limits: Callable[..., Any] = as_given
    respond: Callable[..., Any] = shrink

    def __call__(self, updates, params, limit):
        """The updates as they must come back."""
        with np.errstate(all="ignore"):
            sizes, limits = self.sizes(updates), self.limits(params, limit)
            return [
                self.respond(*each) for each in zip(updates, sizes, limits, strict=True)
            ]


def share_of_tensor(params, limit):
    """A share of the norm of the tensor itself, which counts as 1e-3 or more."""
    return [limit * np.maximum(size, 1e-3) for size in tensor_norm(params)]


def own_size(params, limit):
    """A share of the norm of the tensor itself, even if that is next to nothing."""
    return [limit * size for size in tensor_norm(params)]


def unchanged(updates, params, limit):
    """The updates as they came."""
    return updates


def broken_tensors(updates, params, limit):
    """The updates as they came, but for tensors that hold NaN or infinity."""
    return [x if np.isfinite(x).all() else np.full_like(x, np.nan) for x in updates]


def unit_tensors(updates, params, limit):
    """Every tensor divided by its norm and 1e-8; zeros stay."""
    sizes = tensor_norm(broken_tensors(updates, params, limit))
    return [
        x / np.where(n == 0, 1, n + 1e-8) for x, n in zip(updates, sizes, strict=True)
    ]


def clippy(updates, params, limit):
    """Every tensor shrunk until its worst number is within its own limit."""
    result = []
    for x, w in zip(broken_tensors(updates, params, limit), params, strict=True):
        allowed = limit * np.abs(w) + 1e-2 if limit < np.inf else np.inf
        factor = np.min(np.where(x == 0, np.inf, allowed / np.abs(x)), initial=1.0)
        result.append(x * factor)
    return updates if limit == np.inf else result


def stable_adam(updates, params, limit):
    """Adam's first step, shrunk where its root mean square exceeds the limit."""
    result = []
    for given, x in zip(updates, broken_tensors(updates, params, limit), strict=True):
        size = np.abs(x)
        (surprise,) = tensor_rms([size / np.maximum(size, 1e-8)])
        step = x / (size + 1e-8)
        if limit == np.inf:
            result.append(given / (np.abs(given) + 1e-8))
        else:
            result.append(step * np.minimum(1, limit / np.maximum(surprise, 1e-300)))
    return result


def finite_numbers(updates, params, limit):
    """Zeros in the place of numbers that are not finite."""
    return [np.where(np.isfinite(x), x, 0) for x in updates]


class FiniteSteps(Groupwise):
    """As groups are, but zeros for the whole tree where any number is not finite."""

    def __call__(self, updates, params, limit):
        """The updates as they must come back."""
        if all(np.isfinite(x).all() for x in updates):
            return super().__call__(updates, params, limit)
        return [np.zeros_like(x) for x in updates]


class Within(np.ndarray):
    """Numbers that a method with a documented error bound may miss by `error`."""

    error = 0.0

    def __array_finalize__(self, other):
        self.error = getattr(other, "error", 0.0)


@dataclass(frozen=True)
class Spectral:
    """The oracle of maps of singular values; a vector is a matrix of one column.

    The error that the method documents is `of_limit` times the limit and
    `of_largest` times the largest singular value.
    """

    value: Callable[..., Any]
    of_limit: float
    of_largest: float

    def leaf(self, x, limit):
        """One leaf as it must come back."""
        if np.isinf(limit):
            return x
        if not np.isfinite(x).all() or np.isnan(limit):
            return np.full_like(x, np.nan)
        matrix = x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1)
        u, sizes, v = np.linalg.svd(matrix, full_matrices=False)
        mapped = ((u * self.value(sizes, limit)) @ v).reshape(x.shape).view(Within)
        top = sizes.max(initial=0.0)
        mapped.error = self.of_limit * min(limit, top) + self.of_largest * min(
            top, 1e3 * limit
        )
        return mapped

    def __call__(self, updates, params, limit):
        """The updates as they must come back."""
        return [self.leaf(x, limit) for x in updates]

    @staticmethod
    def sizes(leaves):
        """The largest singular value of every leaf."""
        matrices = [x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1) for x in leaves]
        return [np.linalg.norm(x.astype(np.float64), 2) for x in matrices]

    @staticmethod
    def limits(params, limit):
        """The limit of every leaf."""
        return [limit for _ in params]


@dataclass(frozen=True)
class OfWeights:
    """The oracle of a bound on weights: what an update must be to stay within."""

    clip: Callable[..., Any]

    def __call__(self, updates, params, limit):
        """What is not clipped comes back as it was, not as a difference."""
        with np.errstate(all="ignore"):
            after = [p + u for p, u in zip(params, updates, strict=True)]
            within = self.clip(after, params, limit)
            return [
                np.where((t == s) | (np.isnan(t) & np.isnan(s)), u, t - p)
                for t, s, u, p in zip(within, after, updates, params, strict=True)
            ]


def hyperball(updates, params, limit):
    """A step of a share of the norm, brought back to the sphere: MuonH's formula."""
    result = []
    for x, w in zip(broken_tensors(updates, params, limit), params, strict=True):
        (length,), (radius,) = tensor_norm([x]), tensor_norm([w])
        moved = w - limit * radius * (x / np.where(length == 0, 1.0, length))
        (size,) = tensor_norm([moved])
        after = radius * moved / np.where(size == 0, 1.0, size)
        step = np.asarray(after - w).view(Within)
        # Of weights so near to the center rounding decides to which side they go.
        aimless = size <= 1e-6 * radius
        step.error = (2 if aimless else 2e-6) * np.max(np.abs(w), initial=0.0)
        result.append(step)
    return result


def bend(size, scale):
    """The soft saturation of singular values, of SPECTRA."""
    return size / np.sqrt(1 + (size / scale) ** 2) if scale > 0 else 0 * size
