"""Which projections of an attention take which share of the factor of a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class HeadShare:
    r"""How a projection takes part in shrinking the logits of each head.

    Attributes:
      power: the projection is multiplied by this power of the head's factor $\gamma$.
      start: the first feature of a head that does so.
      stop: the first after it that does not; None for all of the rest.
    """

    power: float
    start: int = 0
    stop: int | None = None


HeadShares = Mapping[str, tuple[HeadShare, ...]]


def attention_shares(query: str = "query", key: str = "key") -> HeadShares:
    r"""Share the factor between queries and keys: $\sqrt\gamma$ for each.

    Where heads share a key, as in grouped-query attention, the key stays and the
    queries take all of $\gamma$, so that no other head is touched.

    Args:
      query: what the query projection is called.
      key: what the key projection is called.

    Returns:
      The shares, as `qk_clip` takes them.

    Examples:
      >>> sorted(optaxclip.attention_shares("wq", "wk"))
      ['wk', 'wq']
    """
    return {query: (HeadShare(0.5),), key: (HeadShare(0.5),)}


def latent_attention_shares(query: str, key_value: str, features: int) -> HeadShares:
    r"""Share the factor in multi-head latent attention.

    Of a head's queries and keys the first features, without position, take
    $\sqrt\gamma$ each. The rotary queries take $\gamma$, since the rotary key is shared
    by all heads and stays; so do the values.

    Args:
      query: what the projection from the latent to the queries is called.
      key_value: what the projection from the latent to keys and values is called.
      features: how many features of a head are without position.

    Returns:
      The shares, as `qk_clip` takes them.

    Examples:
      >>> optaxclip.latent_attention_shares("wq_b", "wkv_b", 128)["wkv_b"]
      (HeadShare(power=0.5, start=0, stop=128),)
    """
    plain = HeadShare(0.5, stop=features)
    return {query: (plain, HeadShare(1.0, start=features)), key_value: (plain,)}
