r"""What happens to a group that is too big?

A response weighs each group by its magnitude and limit, once, and then applies the
weights to the leaves. All but `clamp` multiply a group by one number, so that its
direction stays and the product fuses into whatever the optimizer does next.

What every strategy does at the edges, written once:

| input | outcome |
|---|---|
| group within its limit | the same bits (soft curves: slope 1 at 0) |
| zero updates | zeros; the derivative is finite |
| limit 0 | zeros, never NaN |
| limit infinity | exact no-op, even with inf or NaN inside |
| negative or NaN limit | ValueError; traced: as 0, as NaN |
| squares that overflow or underflow | clipped as float64 would |
| NaN or inf in a group | that group is NaN, no other; `clamp`: inf to the limit |
| float8 to float64, mixed | at least float32 inside; leaves keep their type |
| complex | by modulus; the phase stays |
| integers, bools, float0, keys | passed through and not counted |
| None, MaskedNode, empty leaves | passed through and not counted |
| subnormal numbers | 0 wherever XLA flushes them, as on CPU when multiplying |
"""

from optaxclip.responses.pointwise import clamp
from optaxclip.responses.response import GroupFactors, Response
from optaxclip.responses.scaling import auto_s, drop, normalize, shrink
from optaxclip.responses.softening import (
    Curve,
    algebraic,
    arctan,
    pseudo_huber,
    soften,
    tanh,
)

__all__ = [
    "Curve",
    "GroupFactors",
    "Response",
    "algebraic",
    "arctan",
    "auto_s",
    "clamp",
    "drop",
    "normalize",
    "pseudo_huber",
    "shrink",
    "soften",
    "tanh",
]
