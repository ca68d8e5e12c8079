"""How QK-Clip splits the factor of a head among its projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class HeadShare:
    r"""How much one projection contributes to shrinking the logits of each head.

    Attributes:
      power: the projection is multiplied by this power of the head's factor $\gamma$.
      start: the first feature to multiply.
      stop: the end of the features to multiply, exclusive; None for all the rest.
    """

    power: float
    start: int = 0
    stop: int | None = None


HeadShares = Mapping[str, tuple[HeadShare, ...]]


def attention_shares(query: str = "query", key: str = "key") -> HeadShares:
    r"""Split the factor evenly between queries and keys: $\sqrt\gamma$ each.

    If heads share a key, as in grouped-query attention, the key does not change and the
    queries take all of $\gamma$, so that no other head is affected.

    Args:
      query: the name of the query projection.
      key: the name of the key projection.

    Returns:
      The shares, for `qk_clip`.

    Examples:
      >>> sorted(optaxclip.attention.attention_shares("wq", "wk"))
      ['wk', 'wq']
    """
    return {query: (HeadShare(0.5),), key: (HeadShare(0.5),)}


def latent_attention_shares(query: str, key_value: str, features: int) -> HeadShares:
    r"""Split the factor for multi-head latent attention.

    The first features of a head's queries and keys, which carry no position, take
    $\sqrt\gamma$ each. The rotary queries take $\gamma$. The rotary key, shared by all
    heads, does not change, and neither do the values.

    Args:
      query: the name of the projection from the latent to the queries.
      key_value: the name of the projection from the latent to keys and values.
      features: the number of features per head that carry no position.

    Returns:
      The shares, for `qk_clip`.

    Examples:
      >>> optaxclip.attention.latent_attention_shares("wq_b", "wkv_b", 128)["wkv_b"]
      (HeadShare(power=0.5, start=0, stop=128),)
    """
    plain = HeadShare(0.5, stop=features)
    return {query: (plain, HeadShare(1.0, start=features)), key_value: (plain,)}
