"""QK-Clip, and what it needs to know of attention: logits and owners of weights.

`qk_clip` bounds the weights that make the logits. `max_logits` measures these in a
model of your own, `record_max_logits` in a Flax model, and the shares tell which
projections to shrink, and by how much each.
"""

from optaxclip.attention.logits import max_logits, record_max_logits
from optaxclip.attention.qk import qk_clip
from optaxclip.attention.shares import (
    HeadShare,
    attention_shares,
    latent_attention_shares,
)

__all__ = [
    "HeadShare",
    "attention_shares",
    "latent_attention_shares",
    "max_logits",
    "qk_clip",
    "record_max_logits",
]
