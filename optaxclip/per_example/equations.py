"""One equation of a traced program, evaluated."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn, jaxpr_as_fun


def evaluate(eqn: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """Evaluate an equation; values are what its operands stand for."""
    if eqn.primitive.name == "shard_map":
        return _mapped(eqn.params)(*values)
    result = eqn.primitive.bind(*values, **eqn.params)
    return result if eqn.primitive.multiple_results else [result]


def _mapped(params: dict[str, Any]) -> Callable[..., list[Any]]:
    """Map over the mesh once more: JAX does not take the function as it traced it."""
    named = "newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"
    return jax.shard_map(
        jaxpr_as_fun(ClosedJaxpr(params["jaxpr"], ())),
        mesh=params["mesh"],
        in_specs=params["in_specs"],
        out_specs=list(params["out_specs"]),
        axis_names=set(params[named]),
        check_vma=params["check_vma"],
    )
