"""QK-Clip and its inputs: the largest attention logits, and the weights to shrink.

`qk_clip` rescales the weights that produce the logits. `record_max_logits` makes a Flax
model record its largest logits, and `max_logits` collects them. The shares say which
projections to shrink, and by how much.
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
