"""Gradients that a function transforms before they are clipped.

They are formed example by example: a transformation of a gradient that is never formed
could not be any function. They are then the gradients of new parameters, by which they
are multiplied.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from optaxclip.mesh import vary, varying_axes
from optaxclip.numbers import measuring_dtype
from optaxclip.per_example.sums import Examples, Loss, PerExample
from optaxclip.sentences import shown

Transform = Callable[[PyTree], PyTree]


def transformed(
    loss: Loss, transform: Transform | None, examples: Examples
) -> tuple[Loss, Examples]:
    """Return a loss and parameters whose gradient is the transformed one.

    The value and the auxiliary output of the given loss are the auxiliary output of
    the new one.
    """
    if transform is None:
        return loss, examples

    def product(factors: PyTree, params: PyTree, *example: Any) -> tuple[Any, Any]:
        leaves = jax.tree.leaves(factors)
        # Otherwise JAX would sum the gradients over the mesh.
        over = frozenset().union(*map(varying_axes, leaves))
        params = jax.tree.map(lambda x: vary(x, over), params)
        both = jax.value_and_grad(loss.function, has_aux=loss.has_aux)
        told, gradient = both(params, *example)
        value, aux = told if loss.has_aux else (told, None)
        dtype = measuring_dtype(leaves)
        found = jax.lax.stop_gradient(transform(gradient))
        terms = jax.tree.map(
            lambda x, g: jnp.sum(jnp.real(x * g)).astype(dtype), factors, found
        )
        return sum(jax.tree.leaves(terms), jnp.zeros((), dtype)), (value, aux)

    over, shapes = varying_axes(examples.mask), _shapes(transform, examples.params)
    factors = jax.tree.map(lambda g: vary(jnp.zeros(g.shape, g.dtype), over), shapes)
    axes, batch = (None, *examples.in_axes), (examples.params, *examples.batch)
    return Loss(product, True), examples._replace(
        params=factors, in_axes=axes, batch=batch
    )


def _shapes(transform: Transform, params: PyTree) -> PyTree:
    """Return what is transformed, without its numbers."""
    found = jax.eval_shape(transform, params)
    leaves = jax.tree.leaves(found)
    if not leaves or not all(jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves):
        raise TypeError(
            "pre_clipping_transform must return a tree of floating-point arrays, not "
            f"{shown(found)}."
        )
    return found


def told_before(told: PerExample) -> PerExample:
    """Return what the given loss told of each example."""
    value, aux = told.aux
    return told._replace(value=value, aux=aux)
