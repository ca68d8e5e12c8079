"""Bias-corrected exponential averages."""

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array

from optaxclip.numbers import Number


def newest_share(decay: ArrayLike, number: Array, dtype: DTypeLike) -> Number:
    r"""Return the weight of the newest number in a bias-corrected average.

    $$\frac{1 - \beta}{1 - \beta^t}$$

    Moving the average by this weight (see `moved`) gives the usual exponential average
    divided by its bias $1 - \beta^t$. The first number is taken exactly.

    Args:
      decay: the decay β of the average.
      number: the count t of numbers so far, including the newest; 0 is treated as 1.
      dtype: the dtype of the average.
    """
    # 1 - β is represented more accurately than β and its powers are.
    rate = jnp.log1p(jnp.asarray(decay - 1.0, dtype))
    steps = jnp.maximum(number, 1).astype(dtype)
    share = jnp.expm1(rate) / jnp.expm1(steps * rate)
    return jnp.where(steps == 1, jnp.ones_like(share), share)


def moved(mean: Number, number: Number, share: Number) -> Number:
    """Move an average toward a number by a fraction of the distance.

    The result lies between the two despite rounding, so the average of equal numbers
    is exactly that number. No intermediate sum can overflow.
    """
    between = (1 - share) * mean + share * number
    return jnp.clip(between, jnp.minimum(mean, number), jnp.maximum(mean, number))


def root_mean_square(old: Number, new: Number, share: Number) -> Number:
    """Update a root mean square without forming squares that could overflow.

    The derivative at 0 is 0, not infinite.
    """
    largest = jnp.maximum(old, new)
    some = largest > 0
    unit = jnp.where(some, largest, jnp.ones_like(largest))
    total = (1 - share) * jnp.square(old / unit) + share * jnp.square(new / unit)
    root = jnp.sqrt(jnp.where(some, total, jnp.ones_like(total)))
    return jnp.where(some, unit * root, jnp.zeros_like(largest))
