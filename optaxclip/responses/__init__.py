r"""Responses: what happens to a group that is too big.

A response computes weights for each group from its magnitude and limit, once, and then
applies them to the leaves. All responses but `clamp` multiply a group by one number, so
its direction stays the same and the product fuses into the rest of the optimizer.

All strategies treat edge cases like this:

| input | outcome |
|---|---|
| group within its limit | bitwise unchanged (soft curves: slope 1 at 0) |
| zero updates | zeros; the derivative is finite |
| limit 0 | zeros, never NaN |
| limit infinity | exact no-op, even with inf or NaN inside |
| negative or NaN limit | ValueError; if traced, treated as 0 or NaN |
| squares that overflow or underflow | clipped as float64 would |
| 1e-33 of a norm above 1.8e19, or less | may become 0; for float32 |
| NaN or inf in a group | only that group becomes NaN; `clamp`: inf becomes the limit |
| float8 to float64, mixed | computed in at least float32; leaves keep their dtype |
| complex | by modulus; the phase is kept |
| integers, bools, float0, keys | passed through and not counted |
| None, MaskedNode, empty leaves | passed through and not counted |
| subnormal numbers | 0 wherever XLA flushes them, as in products on CPU |
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
