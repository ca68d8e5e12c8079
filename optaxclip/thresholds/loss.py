"""The loss of a step, which the update is told as its extra argument ``value``."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from optaxclip.numbers import Number, as_number


def loss_of(extra_args: Mapping[str, Any]) -> Number | None:
    """Give the loss, or None where the update was told none.

    Args:
      extra_args: the extra arguments of the update.

    Raises:
      TypeError: if it comes as ``loss``, which would be overlooked.
      ValueError: if it is no scalar.
    """
    value = extra_args.get("value")
    if value is None and extra_args.get("loss") is not None:
        raise TypeError(
            "loss must be handed over as value, which is what optax calls it: "
            "update(updates, state, params, value=loss)."
        )
    if value is None:
        return None
    if jnp.shape(value) != ():
        raise ValueError(
            f"value must be a scalar loss, not of shape {jnp.shape(value)}; hand over "
            "its mean."
        )
    return as_number(value)
