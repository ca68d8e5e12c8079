"""Parts of the same kind, for which the same is computed, and traced once."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import jax
from jaxtyping import Array

from optaxclip.per_example.calls import Atom, Value
from optaxclip.per_example.factors import Axis, Change

_NONE = Value(None)


@functools.cache
def _numbered(number: int, size: int) -> Axis:
    return Axis(size)


def bare(part: Any) -> Any:
    """Return a part without its arrays, equal wherever the same is to be computed."""
    known: dict[Axis, Axis] = {}

    def of(x: Any) -> Any:
        if isinstance(x, Axis):
            return known.setdefault(x, _numbered(len(known), x.size))
        if isinstance(x, Atom):
            return _NONE
        if type(x) is tuple:
            return tuple(of(each) for each in x if not isinstance(each, Change))
        if is_dataclass(x) and not isinstance(x, type):
            return replace(x, **{f.name: of(getattr(x, f.name)) for f in fields(x)})
        return x

    return of(part)


def traced_once(method: Callable[..., Any]) -> Callable[..., Any]:
    """Trace what a part computes once for all parts of which the same is computed."""
    run = jax.jit(method, static_argnums=0)

    @functools.wraps(method)
    def of_part(part: Any, values: Sequence[Array]) -> Any:
        return run(bare(part), tuple(values))

    return of_part
