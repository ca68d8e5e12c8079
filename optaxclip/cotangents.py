"""Clip gradients in the middle of a backward pass."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from optaxclip.leaves import counted, filled, structure_of
from optaxclip.numbers import Leaf
from optaxclip.roles import check_transformation


def clip_cotangents(x: PyTree, clip: optax.GradientTransformation) -> PyTree:
    r"""Return numbers unchanged, and clip the gradients that flow back through them.

    $$f(x) = x, \qquad \bar x = \mathrm{clip}(\bar f)$$

    Use it inside a loss, where clipping the gradient of the parameters would come too
    late. On the state of a recurrent cell, for instance, it stops an exploding backward
    pass at the step where it starts. Under ``jax.lax.scan`` every step is clipped on
    its own, and under ``jax.vmap`` every example.

    Args:
      x: any tree; leaves that are not floating-point numbers pass through.
      clip: a clipper without memory, such as ``clip_value(1.0)`` or
        ``clip_tensor_norm(1.0)``, or a chain of them. Its limit may be traced under
        ``jax.jit``.

    Returns:
      The same numbers.

    Raises:
      TypeError: if `clip` is no transformation, or has memory, as with a schedule or
        `zclip`: a backward pass has nowhere to keep it.
      ValueError: if `clip` needs ``params``; raised when the derivative is taken.

    Examples:
      >>> def loss(h, clip):
      ...     for _ in range(3):
      ...         h = 10 * optaxclip.clip_cotangents(h, clip)
      ...     return h
      >>> float(jax.grad(loss)(1.0, optaxclip.clip_value(jnp.inf)))
      1000.0
      >>> float(jax.grad(loss)(1.0, optaxclip.clip_value(5.0)))
      5.0

    Note:
      Second derivatives include the derivative of the clipping, as for updates.
      Forward-mode differentiation is not available, since JAX does not support it for
      functions with a custom reverse-mode derivative.

    References:
      Graves, Generating sequences with recurrent neural networks, 2013,
      arXiv:1308.0850, which clips the derivatives with respect to a network's outputs
      and cells.
    """
    check_transformation(clip, "clip")
    leaves, tree = counted(x), structure_of(x)
    if _remembers(jax.eval_shape(lambda: clip.init(tree.unflatten(leaves)))):
        raise TypeError(
            "clip must be a clipper without a memory, such as clip_value(1.0), as a "
            "backward pass has nowhere to keep one; give a number as its limit."
        )

    def clipped(*cotangents: Leaf) -> list[Leaf]:
        given = tree.unflatten(cotangents)
        return counted(clip.update(given, clip.init(given))[0])

    # The clipper may hold tracers whose trace ends before the backward pass, so JAX
    # needs them as arguments, along with the numbers.
    backward, limits = jax.closure_convert(clipped, *leaves)
    return filled(x, _identity(backward, leaves, limits))


def _remembers(state: Any) -> bool:
    """Return whether a state holds more than a report."""

    def apart(node: Any) -> Any:
        return node._replace(report=()) if _reports(node) else node

    kept = jax.tree.map(apart, state, is_leaf=_reports)
    return bool(jax.tree.leaves(kept))


def _reports(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "report")


def _forward(
    backward: Any, leaves: list[Any], limits: list[Any]
) -> tuple[list[Any], list[Any]]:
    return leaves, limits


def _back(backward: Any, limits: list[Any], cotangents: list[Any]) -> tuple[Any, Any]:
    return backward(*cotangents, *limits), jax.tree.map(jnp.zeros_like, limits)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _identity(backward: Any, leaves: list[Any], limits: list[Any]) -> list[Any]:
    return leaves


_identity.defvjp(_forward, _back)
