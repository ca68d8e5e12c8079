"""Sum the clipped gradients of a batch, all at once or in chunks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from optaxclip.arguments import check_named_axis
from optaxclip.leaves import AxisName, as_tuple
from optaxclip.mesh import check_axes, vary, varying_axes
from optaxclip.norms import Magnitude
from optaxclip.numbers import as_dtype, as_number, measuring_dtype
from optaxclip.per_example import batches
from optaxclip.per_example.again import measured_again
from optaxclip.per_example.decisions import LeafGroups, decide, measure_examples
from optaxclip.per_example.limits import Limits
from optaxclip.per_example.microbatches import chunked, differences, joined
from optaxclip.per_example.tracing import Recorded, Traced, checked_params, trace
from optaxclip.per_example.twice import Twice, in_two_passes
from optaxclip.responses import Response


class PerExample(NamedTuple):
    """Results for each example; every array has a leading axis of examples.

    Attributes:
      value: the loss.
      aux: the auxiliary output of the loss.
      norm: the norm of the gradient before clipping, 0 where the mask excludes the
        example; for several limits, one norm for each, arranged like the limits.
    """

    value: Float[Array, "examples"]
    aux: PyTree
    norm: PyTree[Float[Array, "examples ..."]]


@dataclass(frozen=True)
class Loss:
    """The loss of one example.

    Attributes:
      function: takes the parameters and one example.
      has_aux: whether it returns an auxiliary output, too.
    """

    function: Callable[..., Any]
    has_aux: bool


class Examples(NamedTuple):
    """A checked batch, with a leading axis of examples.

    Attributes:
      params: the parameters.
      in_axes: 0 for arguments with a leading axis of examples, None for shared ones.
      batch: the arguments of the loss after the parameters.
      mask: which examples count.
      axis_name: the mesh axes over which the examples are sharded.
    """

    params: PyTree
    in_axes: tuple[Any, ...]
    batch: batches.Batch
    mask: Bool[Array, "examples"]
    axis_name: AxisName

    def trace(self, loss: Loss) -> Traced:
        """Trace the gradient of one example."""
        example = batches.one_example(self.in_axes, self.batch)
        traced = trace(loss.function, self.params, example, loss.has_aux, self.in_axes)
        self._refuse_shared_keys(traced)
        return traced

    def _refuse_shared_keys(self, traced: Traced) -> None:
        """Refuse random numbers that are the same for all examples by accident."""
        program = traced.program
        _, read = program.needs(program.outputs)
        given = program.inputs[len(jax.tree.leaves(self.params)) :]
        for position, name in batches.shared_keys(self.in_axes, self.batch).items():
            if given[position] in read:
                raise ValueError(
                    f"{name} is a random key inside of what all examples share, so "
                    "that all would draw the same numbers; hand over one key as an "
                    "argument of its own, which is split, and let the loss use it, by "
                    "nnx.reseed(module, dropout=key) in Flax NNX."
                )

    def dtype(self) -> np.dtype:
        """Return the dtype in which norms are measured."""
        return measuring_dtype(jax.tree.leaves(self.params))

    def number(self, denominator: ArrayLike | None) -> Float[Array, ""]:
        """Return the divisor; by default the examples that count, on the whole mesh."""
        if denominator is not None:
            return as_number(denominator)
        number = self._over_mesh(jnp.sum(self.mask, dtype=self.dtype()))
        return jnp.maximum(number, 1)

    def gradient(self, sums: list[Array], dtype: DTypeLike | None) -> PyTree:
        """Add sums up over the mesh, in a type or that of each parameter."""
        leaves, treedef = jax.tree.flatten(self.params)
        wanted = [x.dtype if dtype is None else dtype for x in leaves]
        return treedef.unflatten(map(as_dtype, self._over_mesh(sums), wanted))

    def _over_mesh(self, sums: Any) -> Any:
        return sums if self.axis_name is None else jax.lax.psum(sums, self.axis_name)


def prepare(
    params: PyTree,
    batch: tuple,
    named: dict[str, Any],
    in_axes: Any,
    mask: Any,
    axis_name: AxisName,
) -> Examples:
    """Check and arrange the user's arguments, also those given by name."""
    params = checked_params(params)
    check_named_axis("axis_name", axis_name)
    check_axes(as_tuple(axis_name))
    axes, batch = batches.axes_of(in_axes, batch, named), (*batch, named)
    number = batches.number_of_examples(axes, batch)
    axes, batch = batches.examples_first(axes, batch, number, as_tuple(axis_name))
    mask = jnp.ones(number, bool) if mask is None else jnp.asarray(mask)
    if mask.shape != (number,) or mask.dtype != bool:
        raise ValueError(
            f"mask must be a bool for each of the {number} examples, not "
            f"{mask.dtype} of shape {mask.shape}."
        )
    # Otherwise JAX would sum the gradients of replicated parameters over the mesh.
    varying = frozenset().union(*map(varying_axes, batches.arrays_of((batch, mask))))
    params = jax.tree.map(lambda x: vary(x, varying), params)
    return Examples(params, axes, batch, vary(mask, varying), axis_name)


def add_up(
    loss: Loss,
    limits: Limits,
    response: Response,
    number: Array,
    examples: Examples,
) -> tuple[PerExample, list[Array]]:
    """Clip each example's gradient, and sum them, divided by a number, leaf by leaf."""
    traced = examples.trace(loss)
    found, sizes = _measured(traced, limits.groups, examples)
    pairs, good = decide(response, sizes, limits.values, examples.mask, number)
    totals = found.totals(limits.of_leaves(pairs), good, examples.params)
    return _told(found, limits, sizes, examples.mask), totals


def _told(
    found: Recorded | Twice, limits: Limits, sizes: list[Magnitude], mask: Array
) -> PerExample:
    norms = [jnp.where(mask, size.plain, jnp.zeros_like(size.value)) for size in sizes]
    return PerExample(found.value, found.aux, limits.like_given(norms))


def measure_norms(loss: Loss, groups: Limits, examples: Examples) -> PerExample:
    """Measure each example's gradient."""
    traced = examples.trace(loss)
    found, sizes = _measured(traced, groups.groups, examples)
    return _told(found, groups, sizes, examples.mask)


def _measured(
    traced: Traced, groups: LeafGroups, examples: Examples
) -> tuple[Recorded | Twice, list[Magnitude]]:
    """Evaluate the trace, and measure each group of leaves."""
    params, in_axes, batch, mask, _ = examples
    given, dtype = (params, batch, in_axes), examples.dtype()
    found = (
        in_two_passes(traced, *given, groups, mask, dtype)
        if traced.program.rematerializes
        else traced.record(*given)
    )
    again = partial(measured_again, traced, *given, groups)
    squares = found.squares()
    return found, measure_examples(squares, again, groups, mask, dtype)


def _of_none(
    function: Callable[[Examples], tuple[PerExample, list[Array]]], examples: Examples
) -> tuple[PerExample, list[Array]]:
    """Call a function for one example that does not count, and forget that one."""
    batch = batches.with_one_of_zeros(examples.in_axes, examples.batch)
    mask = vary(jnp.zeros(1, bool), varying_axes(examples.mask))
    told, sums = function(examples._replace(batch=batch, mask=mask))
    return jax.tree.map(lambda x: x[:0], told), sums


def in_chunks(
    function: Callable[[Examples], tuple[PerExample, list[Array]]],
    examples: Examples,
    size: int | None,
) -> tuple[PerExample, list[Array]]:
    """Call a function for chunks of the examples, one after another, or for all."""
    number = len(examples.mask)
    if number == 0:
        return _of_none(function, examples)
    if size is None:
        return function(examples)
    if not isinstance(size, int | np.integer):
        raise TypeError(f"microbatch_size must be an int, not {size!r}.")
    if size < 1:
        raise ValueError(f"microbatch_size must be at least 1, not {size}.")
    if number % size:
        raise ValueError(
            f"microbatch_size must divide the batch of {number} examples, which "
            f"{size} does not; pad the batch and exclude the padding by mask."
        )
    own, together = differences(examples.in_axes, examples.batch)

    def one(chunk: Any) -> tuple[PerExample, list[Array]]:
        parts, mask = chunk
        return function(examples._replace(batch=together(parts), mask=mask))

    chunks = jax.tree.map(lambda x: chunked(x, size), (own, examples.mask))
    totals = jax.eval_shape(one, jax.tree.map(lambda x: x[0], chunks))[1]

    def step(sums: list[Array], chunk: Any) -> tuple[list[Array], PerExample]:
        told, totals = one(chunk)
        return [s + t.astype(s.dtype) for s, t in zip(sums, totals, strict=True)], told

    over = varying_axes(examples.mask)
    start = [vary(jnp.zeros(t.shape, t.dtype), over) for t in totals]
    sums, told = jax.lax.scan(step, start, chunks)
    return jax.tree.map(joined, told), sums
