"""Linear algebra of stacked matrices, in full precision."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Real

Matrices = Inexact[Array, "_ _ _"]
PerMatrix = Real[Array, "_ 1 1"]
PerColumn = Real[Array, "_ 1 _"]


def matmul(a: Matrices, b: Matrices) -> Matrices:
    """Multiply in full precision; by default accelerators round float32."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def adjoint(a: Matrices) -> Matrices:
    """Return the conjugate transpose."""
    return jnp.conj(jnp.swapaxes(a, -1, -2))


def gram(a: Matrices) -> Matrices:
    """Return the Gram matrix, A*A."""
    return matmul(adjoint(a), a)


def scaled(a: Matrices, by: PerColumn | Real[Array, ""] | float) -> Matrices:
    """Multiply by real numbers, in the dtype of the matrices."""
    return a * jnp.asarray(by, a.dtype)


def eye(a: Matrices) -> Matrices:
    """Return the identity for square matrices."""
    return jnp.eye(a.shape[-1], dtype=a.dtype)[None]


def frobenius(a: Matrices) -> PerMatrix:
    """Return the Frobenius norm; entries must not be extreme. The slope at 0 is 0."""
    squares = jnp.square(a.real) + jnp.square(a.imag)
    total = jnp.sum(squares, axis=(-2, -1), keepdims=True)
    root = jnp.sqrt(jnp.where(total == 0, jnp.ones_like(total), total))
    return jnp.where(total == 0, jnp.zeros_like(total), root)


def unit_of(a: Matrices) -> PerMatrix:
    """Choose a power of two that is close to the largest entry."""
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(a)), axis=(-2, -1), keepdims=True)
    reach = jnp.finfo(largest.dtype).maxexp - 8
    _, exponent = jnp.frexp(largest)
    exponent = jnp.where(jnp.isfinite(largest), exponent, 0)
    return jnp.ldexp(jnp.ones_like(largest), jnp.clip(exponent, -reach, reach))
