"""What is known of primitives: which are products, and which are linear."""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.lax import GatherScatterMode

from optaxclip.per_example.calls import Atom, Equation, Fixed
from optaxclip.per_example.factors import Axis, Change, Factor
from optaxclip.per_example.terms import Convolution, Product, Sum, Term, is_zero
from optaxclip.per_example.written import NAME

# The operands in which a primitive is linear, taken together; the others are shared.
JOINTLY: dict[str, slice] = {
    **dict.fromkeys(
        (
            "add", "add_any", "sub", "neg", "copy", "concatenate", "split", "stack",
            "unstack", "reduce_sum", "cumsum", "transpose", "reshape", "squeeze",
            "expand_dims", "broadcast_in_dim", "convert_element_type", "slice", "rev",
        ),
        slice(None),
    ),
    "pad": slice(None),
    NAME: slice(None),
    "dynamic_slice": slice(1),
    "dynamic_update_slice": slice(2),
    "gather": slice(1),
    "scatter-add": slice(0, None, 2),
    "select_n": slice(1, None),
    "div": slice(1),
}  # fmt: skip
# Those that are linear in each of two operands.
SEPARATELY = ("mul", "dot_general", "conv_general_dilated")


def is_float(atom: Atom) -> bool:
    """Return whether an atom holds real floating-point numbers."""
    return jnp.issubdtype(atom.aval.dtype, jnp.floating)


def is_linear(equation: Equation, varying: Sequence[bool]) -> bool:
    """Return whether an equation is linear in the operands that vary."""
    own = [atom for atom, v in zip(equation.inputs, varying, strict=True) if v]
    if not all(map(is_float, (*own, *equation.outputs))):
        return False
    if equation.name in SEPARATELY:
        return sum(varying) == 1
    among = JOINTLY.get(equation.name)
    return among is not None and sum(varying[among]) == sum(varying)


def is_literal_zero(atom: Atom) -> bool:
    """Return whether an atom is the number zero."""
    return isinstance(atom, Fixed) and bool(np.all(np.asarray(atom.val) == 0))


Producer = Mapping[Atom, Equation]
Rule = Callable[[Equation, Sequence[Term], Producer], Term | None]


def _dot_general(
    equation: Equation, operands: Sequence[Term], producer: Producer
) -> Term:
    (left_sum, right_sum), (left_batch, right_batch) = equation.params[
        "dimension_numbers"
    ]
    left = [Axis(n) for n in equation.inputs[0].aval.shape]
    right = [Axis(n) for n in equation.inputs[1].aval.shape]
    for mine, yours in zip(
        (*left_sum, *left_batch), (*right_sum, *right_batch), strict=True
    ):
        right[yours] = left[mine]
    axes = [left[d] for d in left_batch]
    axes += [a for d, a in enumerate(left) if d not in (*left_sum, *left_batch)]
    axes += [a for d, a in enumerate(right) if d not in (*right_sum, *right_batch)]
    first = Factor(equation.inputs[0], tuple(left))
    second = Factor(equation.inputs[1], tuple(right))
    return Product(first, second, tuple(axes), equation.params["precision"])


def _mul(
    equation: Equation, operands: Sequence[Term], producer: Producer
) -> Term | None:
    """An element-wise product of arrays that are repeated along other axes."""
    axes = tuple(Axis(n) for n in equation.outputs[0].aval.shape)
    factors: list[Factor] = []
    for atom in equation.inputs:
        made = producer.get(atom)
        if made is None or made.name != "broadcast_in_dim":
            return None
        value, *sizes = made.inputs
        dims = made.params["broadcast_dimensions"]
        pairs = zip(dims, value.aval.shape, strict=True)
        # An axis of one entry is repeated, unless the result has no more.
        own = tuple(axes[d] if n == axes[d].size else Axis(1) for d, n in pairs)
        if sizes or not is_float(value):
            return None
        factors.append(Factor(value, own))
    left, right = factors
    if not {*axes} <= {*left.axes, *right.axes}:
        return None
    return Product(left, right, axes)


def _scatter_add(
    equation: Equation, operands: Sequence[Term], producer: Producer
) -> Term | None:
    """Adding rows to a table is a product: one-hot indices times the rows."""
    table, indices, rows = (atom.aval for atom in equation.inputs)
    numbers = equation.params["dimension_numbers"]
    into = numbers.scatter_dims_to_operand_dims
    window = [d for d in range(table.ndim) if d not in numbers.inserted_window_dims]
    whole = all(
        rows.shape[d] == table.shape[o]
        for d, o in zip(numbers.update_window_dims, window, strict=False)
    )
    if (
        numbers.operand_batching_dims
        or set(into) != set(numbers.inserted_window_dims)
        or not whole
    ):
        return None
    axes = [Axis(n) for n in table.shape]
    times = iter([Axis(n) for n in indices.shape[:-1]])
    found = iter(window)
    among = [
        axes[next(found)] if d in numbers.update_window_dims else next(times)
        for d in range(rows.ndim)
    ]
    where = [a for d, a in enumerate(among) if d not in numbers.update_window_dims]
    index = Factor(
        equation.inputs[1],
        (*where, Axis(len(into))),
        rows=tuple(axes[d] for d in into),
        drops=equation.params["mode"] != GatherScatterMode.CLIP,
    )
    product = Product(index, Factor(equation.inputs[2], tuple(among)), tuple(axes))
    return Sum((operands[0], product))


def _dynamic_update_slice(
    equation: Equation, operands: Sequence[Term], producer: Producer
) -> Term | None:
    """Writing one row into zeros is a product, too."""
    table, row, *starts = equation.inputs
    axes = tuple(Axis(n) for n in table.aval.shape)
    part = [d for d, axis in enumerate(axes) if row.aval.shape[d] != axis.size]
    if not is_zero(operands[0]) or len(part) != 1 or row.aval.shape[part[0]] != 1:
        return None
    (among,) = part
    start = Change(lambda index: index[..., None])
    index = Factor(starts[among], (Axis(1),), (axes[among],), False, (start,))
    own = tuple(Axis(1) if d == among else axis for d, axis in enumerate(axes))
    return Product(index, Factor(row, own), axes)


def _convolution(
    equation: Equation, operands: Sequence[Term], producer: Producer
) -> Term | None:
    if equation.params["feature_group_count"] != 1:
        return None  # A convolution of grouped batches.
    image, cotangent = equation.inputs
    shapes = tuple(atom.aval.shape for atom in (*equation.inputs, *equation.outputs))
    return Convolution(image, cotangent, shapes, tuple(equation.params.items()))


# How a product is made, if several operands vary.
RULES: dict[str, Rule] = {
    "dot_general": _dot_general,
    "mul": _mul,
    "scatter-add": _scatter_add,
    "dynamic_update_slice": _dynamic_update_slice,
    "conv_general_dilated": _convolution,
}
