"""The loss of a step, passed to the update as the extra argument ``value``."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from optaxclip.arguments import is_real
from optaxclip.numbers import Number, as_number
from optaxclip.sentences import shown


def loss_of(extra_args: Mapping[str, Any]) -> Number | None:
    """Return the loss, or None if the update was not given one.

    Args:
      extra_args: the extra arguments of the update.

    Raises:
      TypeError: if it is no number, or comes as ``loss``, which would be ignored.
      ValueError: if it is not a scalar.
    """
    value = extra_args.get("value")
    if value is None and extra_args.get("loss") is not None:
        raise TypeError(
            "loss must be handed over as value, which is what optax calls it: "
            "update(updates, state, params, value=loss)."
        )
    if value is None:
        return None
    if not is_real(value):
        raise TypeError(
            f"value must be the loss, a number, not {shown(value)}; hand over that of "
            "the step."
        )
    if jnp.shape(value) != ():
        raise ValueError(
            f"value must be a scalar loss, not of shape {jnp.shape(value)}; hand over "
            "its mean."
        )
    return as_number(value)
