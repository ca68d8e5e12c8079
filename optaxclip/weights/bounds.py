"""Turn any clipper into a bound on the updated parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import PyTree

from optaxclip.leaves import beside, counted, filled
from optaxclip.numbers import Leaf, Number, widen, widest
from optaxclip.reports import BoundState, SphereState, marked
from optaxclip.roles import check_transformation
from optaxclip.updates import check_updates


def _rounded(x: Number, dtype: DTypeLike) -> Number:
    """Round to a narrower dtype, but keep the wider one.

    XLA may remove a cast to a narrow dtype and back, but not this.
    """
    narrow, wide = jnp.finfo(dtype), jnp.finfo(x.dtype)
    if narrow.bits >= wide.bits:
        return x
    normal = jax.lax.reduce_precision(x, narrow.nexp, narrow.nmant)
    if narrow.nexp == wide.nexp:
        return normal
    step = float(narrow.smallest_subnormal)
    return jnp.where(
        jnp.abs(x) < float(narrow.tiny), jnp.round(x / step) * step, normal
    )


def _applied(
    param: Number, update: Number, types: tuple[DTypeLike, DTypeLike]
) -> Number:
    """Return the result of ``optax.apply_updates``, in at least float32."""
    with jax.numpy_dtype_promotion("standard"):
        sum_type = jnp.promote_types(*types)
    return _rounded(_rounded(param + update, sum_type), types[0])


def _next(x: Number, goal: Number, dtype: DTypeLike) -> Number:
    """Return the next float of a dtype toward a goal, with the derivative of x."""
    here, there = jax.lax.stop_gradient((x.astype(dtype), goal.astype(dtype)))
    step = jax.lax.stop_gradient(jnp.nextafter(here, there).astype(x.dtype))
    return jnp.where(jnp.isfinite(x), x + (step - jax.lax.stop_gradient(x)), step)


def _toward_zero(x: Number, dtype: DTypeLike) -> Number:
    near = _rounded(x, dtype)
    inner = _next(near, jnp.zeros_like(near), dtype)
    return jnp.where(jnp.abs(near) > jnp.abs(x), inner, near)


def _reach(
    param: Number,
    update: Number,
    target: Number,
    types: tuple[DTypeLike, DTypeLike],
) -> Number:
    """Find the update that brings a parameter to its target, or just below it.

    If the given update already does so, it is returned unchanged.
    """
    there = _applied(param, update, types)
    same = (there == target) | (jnp.isnan(there) & jnp.isnan(target))
    target = _toward_zero(target, types[0])
    found = _rounded(target - param, types[1])
    beyond = _applied(param, found, types) * jnp.sign(target) > jnp.abs(target)
    most = float(jnp.finfo(types[1]).max)  # Some dtypes have no infinity.
    less = _next(found, jnp.where(target > 0, -most, most), types[1])
    return jnp.where(same, update, jnp.where(beyond, less, found))


def _nearest(param: Number, update: Number, target: Number) -> Number:
    """Find the update that brings a parameter to a target, on either side of it."""
    there = param + update
    same = (there == target) | (jnp.isnan(there) & jnp.isnan(target))
    return jnp.where(same, update, target - param)


def _parts(x: Leaf) -> list[Number]:
    return [x.real, x.imag] if jnp.iscomplexobj(x) else [x]


def _whole(parts: list[Number]) -> Leaf:
    return jax.lax.complex(*parts) if len(parts) == 2 else parts[0]


class _Pair:
    """A parameter and its update, in a common dtype of at least float32.

    A complex number is stored as two real ones.
    """

    def __init__(self, param: Leaf, update: Leaf):
        self.dtype = update.dtype
        self.types = jnp.finfo(param.dtype).dtype, jnp.finfo(update.dtype).dtype
        update = widen(update, self.types[0])
        both = widest(update.dtype, param.dtype)
        self.update = _parts(update.astype(both))
        self.param = _parts(widen(param, self.types[1]).astype(both))

    def sum(self) -> Leaf:
        pairs = zip(self.param, self.update, strict=True)
        return _whole([_applied(p, u, self.types) for p, u in pairs])

    def reach(self, target: Leaf) -> Leaf:
        each = zip(self.param, self.update, _parts(target), strict=True)
        found = _whole([_reach(p, u, t, self.types) for p, u, t in each])
        return found.astype(self.dtype)

    def unrounded(self) -> Leaf:
        pairs = zip(self.param, self.update, strict=True)
        return _whole([p + u for p, u in pairs])

    def nearest(self, target: Leaf) -> Leaf:
        each = zip(self.param, self.update, _parts(target), strict=True)
        found = _whole([_nearest(p, u, t) for p, u, t in each])
        return found.astype(self.dtype)


def bound_weights(
    clip: optax.GradientTransformation, *, name: str = "bound_weights"
) -> optax.GradientTransformationExtraArgs:
    r"""Apply a clipper to the updated parameters instead of the updates.

    $$u \leftarrow \mathrm{clip}(w + u) - w$$

    Place it last in a chain. Where `clip` changes nothing, the update is bitwise
    unchanged. Elsewhere it is rounded so that ``optax.apply_updates``, in the
    parameter's dtype, gives no number farther from zero than the clipper's, if any
    update of its dtype does.

    Args:
      clip: any clipper of the library, or a chain of them.
      name: the name used in error messages.

    Returns:
      A transformation that needs ``params``. Its state is that of `clip`, and its
      report is about the parameters.

    Raises:
      TypeError: if `clip` is no transformation.
      ValueError: in the update, if ``params`` are missing or do not fit the updates.

    Examples:
      >>> ball = optaxclip.bound_weights(optaxclip.clip_global_norm(5.0))
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, _ = ball.update(jnp.array([3.0, 4.0]), ball.init(params), params)
      >>> optax.apply_updates(params, updates)
      Array([3., 4.], dtype=float32)

    Note:
      If the dtype of the update cannot represent the step, the parameter becomes
      smaller than necessary: a float16 of 6e4 with a limit of 1 becomes 0, since no
      float16 update leads from 6e4 to 1. If none leads to within the bound, as when
      updates are bfloat16 and a parameter is a float32 of 1001.9, it takes two steps.
    """
    check_transformation(clip, "clip")
    return _of_weights(marked(clip, BoundState), name, _Pair.sum, _Pair.reach)


def place_weights(
    clip: optax.GradientTransformation, name: str
) -> optax.GradientTransformationExtraArgs:
    """Let a clipper set the new parameters, rounded to the nearest number.

    A bound rounds toward zero, but that would shrink a sphere with every step.

    Args:
      clip: any clipper of the library.
      name: the name used in error messages.
    """
    on_spheres = marked(clip, SphereState)
    return _of_weights(on_spheres, name, _Pair.unrounded, _Pair.nearest)


def _of_weights(
    inner: optax.GradientTransformationExtraArgs,
    name: str,
    add: Callable[[_Pair], Leaf],
    lead: Callable[[_Pair, Leaf], Leaf],
) -> optax.GradientTransformationExtraArgs:
    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, Any]:
        check_updates(name, updates)
        given = counted(beside(name, updates, params))
        pairs = [_Pair(*each) for each in zip(given, counted(updates), strict=True)]
        sums = map(add, pairs)
        following = filled(updates, sums)
        targets, state = inner.update(following, state, params, **extra)
        found = (
            lead(pair, target)
            for pair, target in zip(pairs, counted(targets), strict=True)
        )
        return filled(updates, found), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
