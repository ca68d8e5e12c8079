"""Kernels of convolutions, with any stride, padding, dilation and groups.

The gradient of a kernel is processed one entry of its window at a time: there it is
that of a dense layer on a shifted view of the image, so no patches are stored. Norms
come from the gradient itself or from inner products between positions, as for products.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from optaxclip.per_example.factors import Factor
from optaxclip.per_example.kinds import traced_once
from optaxclip.per_example.layouts import contract, inner_products
from optaxclip.per_example.terms import Convolution
from optaxclip.per_example.ways import Squares, added


@dataclass(frozen=True)
class Kernel:
    """The gradient of a kernel; names refer to the forward convolution.

    Attributes:
      term: the convolution that computes the gradient.
    """

    term: Convolution

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The arrays that are convolved."""
        return self.term.factors

    @property
    def _specs(self) -> tuple[Sequence[int], ...]:
        numbers = self.term.params["dimension_numbers"]
        return numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec

    def _sizes(self, which: int) -> tuple[int, ...]:
        return tuple(self.term.shapes[which][d] for d in self._specs[which])

    @property
    def groups(self) -> int:
        """The number of channel groups."""
        return self.term.params["batch_group_count"]

    @property
    def channels(self) -> tuple[int, int]:
        """The number of input and output channels per group."""
        return self._sizes(0)[0] // self.groups, self._sizes(1)[0] // self.groups

    @property
    def places(self) -> tuple[int, ...]:
        """The spatial extent of the kernel."""
        return self._sizes(2)[2:]

    @property
    def positions(self) -> int:
        """The number of positions of an example."""
        return math.prod(self.extents)

    @property
    def extents(self) -> tuple[int, ...]:
        """The images within an example, and the spatial extent of the result."""
        return self._sizes(1)[1:]

    def _image(self, x: Array) -> Array:
        """Arrange as (examples, images, space, groups, channels)."""
        channel, image, *space = self._specs[0]
        x = jnp.transpose(x, (0, 1 + image, *(1 + d for d in space), 1 + channel))
        return x.reshape(*x.shape[:-1], self.groups, -1)

    def _padded(self, x: Array, space: Sequence[int]) -> Array:
        """Pad, crop and dilate, as the convolution does, along the axes of space."""
        pads = [(0, 0, 0)] * x.ndim
        params = self.term.params
        for axis, (low, high), dilation in zip(
            space, params["padding"], params["lhs_dilation"], strict=True
        ):
            pads[axis] = (low, high, dilation - 1)
        return jax.lax.pad(x, jnp.zeros((), x.dtype), pads)

    def _cotangent(self, x: Array) -> Array:
        """Arrange as (examples, groups, positions, channels)."""
        channel, image, *space = self._specs[1]
        x = jnp.transpose(x, (0, 1 + image, *(1 + d for d in space), 1 + channel))
        x = x.reshape(len(x), -1, self.groups, self.channels[1])
        return jnp.moveaxis(x, 2, 1)

    @property
    def _starts(self) -> np.ndarray:
        """The offset in the image of each place of the kernel."""
        places = list(itertools.product(*map(range, self.places)))
        starts = np.asarray(places) * self.term.params["window_strides"]
        return starts.astype(np.int32)

    def _view(self, image: Array, start: Sequence[Any]) -> Array:
        """Return the image as seen from a place of the kernel, like the cotangent.

        It is padded anew for each place: XLA would pad all images before the loops
        over places, and hold them.
        """
        image, *start = jax.lax.optimization_barrier((image, *start))
        image = self._padded(image, range(2, image.ndim - 2))
        strides = self.term.params["rhs_dilation"]
        extents = [
            (n - 1) * s + 1 for n, s in zip(self.extents[1:], strides, strict=True)
        ]
        sizes = (*image.shape[:2], *extents, *image.shape[-2:])
        none = np.int32(0)
        view = jax.lax.dynamic_slice(image, (none, none, *start, none, none), sizes)
        view = jax.lax.slice(view, [0] * view.ndim, sizes, (1, 1, *strides, 1, 1))
        view = view.reshape(len(view), -1, self.groups, self.channels[0])
        return jnp.moveaxis(view, 2, 1)

    def arranged(self, total: Array) -> Array:
        """Rearrange (places, groups, in, out) like the convolution's result."""
        inputs, outputs = self.channels
        total = total.reshape(*self.places, self.groups, inputs, outputs)
        total = jnp.moveaxis(total, -2, 0)
        total = total.reshape(inputs, *self.places, self.groups * outputs)
        order = (0, total.ndim - 1, *range(1, total.ndim - 1))
        total = jnp.transpose(total, order)
        back = [self._specs[2].index(d) for d in range(total.ndim)]
        return jnp.transpose(total, back)

    def added(self, image: Array, cotangent: Array) -> Array:
        """Add up the gradients; the examples are merged into one batch of images."""
        specs = self._specs
        image = _in_one(image, specs[0][1])
        cotangent = _in_one(cotangent, specs[1][1])
        params = dict(self.term.params)
        params["preferred_element_type"] = None
        if np.min(params["padding"]) < 0:
            # On CPU, JAX 0.8 reads out of bounds if a convolution crops the image.
            image = self._padded(image, specs[0][2:])
            params["padding"] = [(0, 0)] * len(self.places)
            params["lhs_dilation"] = [1] * len(self.places)
        params.pop("out_sharding", None)
        return jax.lax.conv_general_dilated(image, cotangent, **params)


class KernelGram(Kernel):
    """Norms from the inner products between positions."""

    @property
    def cost(self) -> int:
        """The number of multiplications for the norm of one example."""
        inputs, outputs = self.channels
        entries = math.prod(self.places) * inputs + outputs
        return self.groups * self.positions**2 * entries

    @property
    def memory(self) -> int:
        """The numbers stored for one example."""
        return 2 * self.groups * self.positions**2

    @traced_once
    def squares(self, values: Sequence[Array]) -> Squares:
        """Compute the squared norm of each example."""
        image, cotangent = self._image(values[0]), self._cotangent(values[1])
        starts = jnp.asarray(self._starts)

        def seen_from(place: Any, seen: Array | float) -> Array:
            view = self._view(image, list(starts[place]))
            return inner_products(view, view) + seen

        # A loop, since XLA would otherwise store the views of all places.
        seen = jax.lax.fori_loop(1, len(starts), seen_from, seen_from(0, 0.0))
        terms = seen * inner_products(cotangent, cotangent)
        inputs, outputs = self.channels
        return added([terms], len(starts) * inputs + outputs)


class KernelDirect(Kernel):
    """The gradient of each example, multiplied out."""

    @property
    def cost(self) -> int:
        """The number of multiplications for the norm of one example."""
        return self.memory * self.positions

    @property
    def memory(self) -> int:
        """The numbers stored for one example."""
        return math.prod(self.places) * self.groups * math.prod(self.channels)

    @traced_once
    def formed(self, values: Sequence[Array]) -> Array:
        """Multiply out the gradient of each example, one place after another."""
        image, cotangent = self._image(values[0]), self._cotangent(values[1])
        starts = jnp.asarray(self._starts)

        def at_place(start: Array) -> Array:
            view = self._view(image, list(start))
            return contract("ngti,ngto->ngio", view, cotangent)

        return jnp.moveaxis(jax.lax.map(at_place, starts), 0, 1)


def _in_one(x: Array, axis: int) -> Array:
    """Merge the axis of examples into that of their images."""
    x = jnp.moveaxis(x, 0, axis)
    shape = list(x.shape)
    shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
    return x.reshape(shape)
