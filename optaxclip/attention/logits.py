"""The largest attention logit of each head, recorded in Flax models."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

if TYPE_CHECKING:
    from flax import nnx


def head_logits(
    query: Float[Array, ...],
    key: Float[Array, ...],
    bias: Any = None,
    mask: Any = None,
    is_causal: bool = False,
) -> Float[Array, " heads"]:
    r"""Return the largest logit $q \cdot k / \sqrt d$ of each head.

    Args:
      query: of shape ``(..., positions, heads, features)``.
      key: like `query`; its number of heads must divide that of the queries.
      bias: added to the logits, of shape ``(..., heads, queries, keys)``.
      mask: which pairs of queries and keys count, of the same shape.
      is_causal: whether to ignore later keys.

    Returns:
      A vector with one entry per head, in at least float32.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    query, key = query.astype(dtype), key.astype(dtype)
    key = jnp.repeat(key, query.shape[-2] // key.shape[-2], axis=-2)
    scale = jnp.asarray(query.shape[-1] ** -0.5, dtype)
    logits = jnp.einsum("...qhd,...khd->...hqk", query * scale, key)
    if bias is not None:
        logits = logits + bias.astype(dtype)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    if is_causal:
        lower = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        logits = jnp.where(lower, logits, -jnp.inf)
    others = tuple(d for d in range(logits.ndim) if d != logits.ndim - 3)
    return jnp.max(logits, axis=others)


@functools.cache
def _kinds() -> tuple[type, type]:
    """Define the variable and the module lazily, since Flax is optional."""
    from flax import nnx

    class MaxLogit(nnx.Variable):
        """The largest logit of each head in the last forward pass."""

    class Recorder(nnx.Module):
        """An attention function that records the largest logit of each head."""

        def __init__(self, attention: Any, heads: int):
            self.attention = attention
            self.max_logit = MaxLogit(jnp.zeros(heads, jnp.float32))

        def __call__(self, query: Array, key: Array, value: Array, **options: Any):
            given = {n: options.get(n) for n in ("bias", "mask")}
            causal = bool(options.get("is_causal", False))
            logits = head_logits(query, key, **given, is_causal=causal)
            noted = jax.lax.stop_gradient(logits).astype(jnp.float32)
            self.max_logit[...] = noted
            return self.attention(query, key, value, **options)

    return MaxLogit, Recorder


def record_max_logits(model: nnx.Module) -> None:
    """Make every ``nnx.MultiHeadAttention`` of a model record its largest logits.

    Call it once, before the optimizer is created. Each forward pass then overwrites the
    previous record. Recording computes the logits separately from the attention.

    Args:
      model: the model, which is changed in place. Its parameters do not change.

    Examples:
      >>> from flax import nnx
      >>> attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0))
      >>> optaxclip.attention.record_max_logits(attention)
      >>> _ = attention(jnp.ones((1, 3, 4)))
      >>> optaxclip.attention.max_logits(attention).shape
      (2,)
    """
    from flax import nnx

    _, recorder = _kinds()
    found = [
        node
        for _, node in nnx.iter_graph(model)
        if isinstance(node, nnx.MultiHeadAttention)
    ]
    for attention in found:
        if not isinstance(attention.attention_fn, recorder):
            noting = recorder(attention.attention_fn, attention.num_heads)
            attention.attention_fn = nnx.data(noting)


def max_logits(model: nnx.Module) -> PyTree[Array]:
    """Collect the largest logits of the last forward pass, for `qk_clip`.

    Args:
      model: a model prepared by `record_max_logits`.

    Returns:
      Dicts nested like the attention modules, with one vector of heads per module.

    Raises:
      ValueError: if the model records no logits.
    """
    from flax import nnx

    variable, _ = _kinds()
    flat = nnx.to_flat_state(nnx.state(model, variable))
    if not flat:
        raise ValueError(
            "model notes no logits; call optaxclip.attention.record_max_logits(model) "
            "first."
        )
    nested: dict[Any, Any] = {}
    for path, noted in flat:
        value = noted[...] if isinstance(noted, nnx.Variable) else noted
        *home, _, _ = path
        if not home:
            return value
        place = nested
        for name in home[:-1]:
            place = place.setdefault(name, {})
        place[home[-1]] = value
    return nested
