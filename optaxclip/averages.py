"""Exponential averages that are right from their first number on."""

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from optaxclip.numbers import Number


def newest_share(decay: ArrayLike, number: Array, dtype: DTypeLike) -> Number:
    r"""Give the share of the newest number in a debiased average of so many.

    $$\frac{1 - \beta}{1 - \beta^t}$$

    Averaging with it, as `moved` does, is the usual exponential average divided by its
    bias $1 - \beta^t$, and the first number is taken exactly.

    Args:
      decay: the decay β of the average.
      number: how many numbers it holds, the newest included; 0 is taken as 1.
      dtype: the type of the average.
    """
    # The distance from 1 fits a float better than β itself and its powers do.
    rate = jnp.log1p(jnp.asarray(decay - 1.0, dtype))
    steps = jnp.maximum(number, 1).astype(dtype)
    share = jnp.expm1(rate) / jnp.expm1(steps * rate)
    return jnp.where(steps == 1, jnp.ones_like(share), share)


def moved(mean: Number, number: Number, share: Number) -> Number:
    """Move an average towards a number by a share of the distance.

    It ends between the two whatever is rounded, so that an average of equal numbers is
    that number; and no sum on the way can overflow.
    """
    between = (1 - share) * mean + share * number
    return jnp.clip(between, jnp.minimum(mean, number), jnp.maximum(mean, number))


def root_mean_square(old: Number, new: Number, share: Number) -> Number:
    """Average squares, but keep and give their root, as a square may not fit a float.

    Its derivative at 0 is 0, not infinite.
    """
    largest = jnp.maximum(old, new)
    some = largest > 0
    unit = jnp.where(some, largest, jnp.ones_like(largest))
    total = (1 - share) * jnp.square(old / unit) + share * jnp.square(new / unit)
    root = jnp.sqrt(jnp.where(some, total, jnp.ones_like(total)))
    return jnp.where(some, unit * root, jnp.zeros_like(largest))
