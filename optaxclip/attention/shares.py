"""How QK-Clip splits the factor of a head among its projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optaxclip.arguments import check_nonnegative, check_order, is_static_int
from optaxclip.sentences import shown, uncalled


def _check_count(value: Any, argument: str) -> None:
    """Reject anything but a static number of features, counted from the first."""
    if not is_static_int(value):
        raise TypeError(
            f"{argument} must be a Python int, not {shown(value)}; count the features "
            "of a head from the first."
        )
    if value < 0:
        raise ValueError(
            f"{argument} must be at least 0, not {shown(value)}; count the features of "
            "a head from the first, not from the end."
        )


@dataclass(frozen=True)
class HeadShare:
    r"""How much one projection contributes to shrinking the logits of each head.

    Attributes:
      power: the projection is multiplied by this power, at least 0, of the head's
        factor $\gamma$.
      start: the first feature to multiply, counted from 0.
      stop: the end of the features to multiply, exclusive, at least `start`; None for
        all the rest.
    """

    power: float
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        check_nonnegative(self.power, "power")
        _check_count(self.start, "start")
        if self.stop is not None:
            _check_count(self.stop, "stop")
            check_order(self.start, self.stop, ("start", "stop"))


HeadShares = Mapping[str, tuple[HeadShare, ...]]


def check_shares(shares: Any) -> None:
    """Reject anything but a dict from names of projections to tuples of shares."""
    if not isinstance(shares, Mapping):
        raise TypeError(
            "shares must be a dict of tuples of HeadShare, one for each projection, "
            f"not {uncalled(shares)}; see attention_shares."
        )
    if not shares:
        raise ValueError("shares must name a projection, not none; see HeadShare.")
    for name, given in shares.items():
        if not isinstance(name, str):
            raise TypeError(
                f"shares must name projections by strings, not {shown(name)}; give the "
                "name in the path of the parameters."
            )
        # A list serves as well; an iterator would be empty after the first leaf.
        parts = given if isinstance(given, tuple | list) else (None,)
        if not all(isinstance(part, HeadShare) for part in parts):
            raise TypeError(
                f"shares[{shown(name)}] must be a tuple of HeadShare, not "
                f"{shown(given)}; write (HeadShare(0.5),), with the comma."
            )


def check_inside(name: str, shares: tuple[HeadShare, ...], features: int) -> None:
    """Reject shares that count more features than the projection of that name has."""
    most = max((max(share.start, share.stop or 0) for share in shares), default=0)
    if most > features:
        raise ValueError(
            f"shares[{shown(name)}] counts {most} features per head, but the "
            f"projection has {features}; give a start and stop of at most that."
        )


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
      features: the number of features per head that carry no position, at least 0.

    Returns:
      The shares, for `qk_clip`.

    Raises:
      TypeError: if `features` is no int.
      ValueError: if `features` is negative.

    Examples:
      >>> optaxclip.attention.latent_attention_shares("wq_b", "wkv_b", 128)["wkv_b"]
      (HeadShare(power=0.5, start=0, stop=128),)
    """
    _check_count(features, "features")
    plain = HeadShare(0.5, stop=features)
    return {query: (plain, HeadShare(1.0, start=features)), key_value: (plain,)}
