"""Integers that are known while a loss is traced, such as what a loop counts.

Each has a leading axis for the steps of the loop that it lies in, of one entry if it is
the same at every step, and outside of loops.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optaxclip.per_example.calls import Atom, Equation, Fixed, Loop
from optaxclip.per_example.program import Program

Known = Mapping[Atom, np.ndarray]

# What is read by place is read at few places; masks are known, too, but of no use.
_MOST_NUMBERS = 1 << 16


def known_of(program: Program) -> Known:
    """Return the integers of a program that depend on none of its inputs."""
    given: dict[Atom, np.ndarray] = {
        value: np.asarray(constant)[None]
        for value, constant in program.constants.items()
        if _is_small_integer(value)
        and not isinstance(constant, Tracer)
        and getattr(constant, "is_fully_addressable", True)
    }
    return _followed(program, given)


def known_inside(equation: Equation, loop: Loop, outside: Known) -> Known:
    """Return what is known inside of a loop at every step."""
    program, first = loop.program, loop.constant + loop.carried
    given: dict[Atom, np.ndarray] = {}
    for i, value in enumerate(program.inputs):
        x = _read(equation.inputs[i], outside)
        if x is None or len(x) != 1:
            continue
        if i < loop.constant:
            given[value] = x
        elif i >= first:
            given[value] = x[0]
    made = {out: each for each in program.equations for out in each.outputs}
    order = np.arange(loop.length)[:: -1 if loop.order["reverse"] else 1]
    for i, value in enumerate(loop.carries):
        start = _read(equation.inputs[loop.constant + i], outside)
        step = _step(value, made.get(program.outputs[i]), given)
        if start is not None and start.shape == (1,) and step is not None:
            given[value] = (start + order * step).astype(start.dtype)
    return _followed(program, given)


def _step(carry: Atom, end: Equation | None, given: Known) -> np.ndarray | None:
    """Return what is added to a carried number at each step."""
    if end is None or end.name not in ("add", "sub") or carry not in end.inputs:
        return None
    place = end.inputs.index(carry)
    step = _read(end.inputs[1 - place], given)
    if step is None or step.shape != (1,) or (place and end.name == "sub"):
        return None
    return step if end.name == "add" else -step


def _followed(program: Program, known: dict[Atom, np.ndarray]) -> Known:
    for equation in program.equations:
        if not all(map(_is_small_integer, equation.outputs)):
            if isinstance(equation.call, Loop):
                known |= _out_of(equation, equation.call, known)
            continue
        inputs = [_read(atom, known) for atom in equation.inputs]
        rule = _RULES.get(equation.name)
        if rule is None or any(x is None for x in inputs):
            continue
        found = rule(equation, *inputs)
        if found is not None:
            (out,) = equation.outputs
            known[out] = found.astype(out.aval.dtype)
    return known


def _out_of(equation: Equation, loop: Loop, outside: Known) -> Known:
    """Return what is known of the results that a loop stacks."""
    inside = known_inside(equation, loop, outside)
    pairs = zip(equation.outputs, loop.program.outputs, strict=True)
    found: dict[Atom, np.ndarray] = {}
    for out, atom in list(pairs)[loop.carried :]:
        x = _read(atom, inside) if _is_small_integer(out) else None
        if x is not None:
            found[out] = np.broadcast_to(x, out.aval.shape)[None]
    return found


def _read(atom: Atom, known: Known) -> np.ndarray | None:
    if isinstance(atom, Fixed) and _is_small_integer(atom):
        return np.asarray(atom.val, atom.aval.dtype)[None]
    return known.get(atom)


def _is_small_integer(atom: Atom) -> bool:
    dtype = atom.aval.dtype
    integer = jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)
    return integer and math.prod(atom.aval.shape) <= _MOST_NUMBERS


_Rule = Callable[..., np.ndarray | None]


def _by_element(function: Callable[..., np.ndarray]) -> _Rule:
    return lambda equation, *arrays: function(*_aligned(arrays))


def _aligned(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Let numbers broadcast to arrays, step by step."""
    most = max(x.ndim for x in arrays)
    return [x.reshape(x.shape + (1,) * (most - x.ndim)) for x in arrays]


def _divided(function: Callable[..., np.ndarray]) -> _Rule:
    """By 0 each processor divides in its own way."""
    return lambda equation, x, y: function(*_aligned((x, y))) if np.all(y) else None


def _quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Divide, rounding towards zero."""
    return np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))


def _chosen(equation: Equation, which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    number, *choices = _aligned((which.astype(np.int32), *cases))
    return np.choose(number, choices)


def _iota(equation: Equation) -> np.ndarray:
    shape, dim = equation.outputs[0].aval.shape, equation.params["dimension"]
    along = [1] * len(shape)
    along[dim] = shape[dim]
    return np.broadcast_to(np.arange(shape[dim]).reshape(along), shape)[None]


def _broadcast(equation: Equation, x: np.ndarray) -> np.ndarray:
    shape = equation.outputs[0].aval.shape
    along = [1] * len(shape)
    for dim, n in zip(
        equation.params["broadcast_dimensions"], x.shape[1:], strict=True
    ):
        along[dim] = n
    return np.broadcast_to(x.reshape(len(x), *along), (len(x), *shape))


def _reshaped(equation: Equation, x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), *equation.outputs[0].aval.shape)


def _reversed(equation: Equation, x: np.ndarray) -> np.ndarray:
    return np.flip(x, tuple(1 + d for d in equation.params["dimensions"]))


_RULES: dict[str, _Rule] = {
    "add": _by_element(np.add),
    "sub": _by_element(np.subtract),
    "mul": _by_element(np.multiply),
    "neg": _by_element(np.negative),
    "sign": _by_element(np.sign),
    "max": _by_element(np.maximum),
    "min": _by_element(np.minimum),
    "div": _divided(_quotient),
    "rem": _divided(np.fmod),
    "lt": _by_element(np.less),
    "le": _by_element(np.less_equal),
    "gt": _by_element(np.greater),
    "ge": _by_element(np.greater_equal),
    "eq": _by_element(np.equal),
    "ne": _by_element(np.not_equal),
    "and": _by_element(np.bitwise_and),
    "or": _by_element(np.bitwise_or),
    "not": _by_element(np.invert),
    "copy": _by_element(np.asarray),
    "convert_element_type": _by_element(np.asarray),
    "select_n": _chosen,
    "iota": _iota,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "expand_dims": _reshaped,
    "rev": _reversed,
}
