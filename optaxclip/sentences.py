"""Short descriptions of arguments, for error messages."""

import inspect
import reprlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def shown(given: Any) -> str:
    """Describe an argument in a few words, without the contents of its arrays."""
    if isinstance(given, np.ndarray | jax.Array | jax.ShapeDtypeStruct):
        return f"an array of {given.dtype} of shape {given.shape}"
    name = getattr(given, "__name__", type(given).__name__)
    if isinstance(given, type):
        return f"the class {name}"
    if inspect.isroutine(given):
        return f"the function {name}"
    if isinstance(given, str | bytes | int | float | complex | np.generic | None):
        return _SHORT.repr(given)
    # JAX warns of an iterator among leaves, unless it is told to take it for one.
    leaves = jax.tree.leaves(given, is_leaf=lambda x: isinstance(x, Iterator))
    if len(leaves) == 1 and leaves[0] is given:
        return f"an object of type {name}"
    article = "an" if name[0] in "AEIOUaeiou" else "a"
    return f"{article} {name} of {len(leaves)} leaves"


def uncalled(given: Any) -> str:
    """Describe an argument, and suggest calling it if it is a class or function."""
    is_named = inspect.isroutine(given) and given.__name__ != "<lambda>"
    if isinstance(given, type) or is_named:
        return f"{shown(given)}; call it, as in {given.__name__}()"
    return shown(given)
