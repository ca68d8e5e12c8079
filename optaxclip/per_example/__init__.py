"""Clip every example's gradient, at about the cost of one batch gradient.

The gradient of one example is traced, and its calls written out (`program`, `calls`).
Each leaf's gradient is followed back through linear steps to the products that it is
made of (`origins`, `rules`, `loops`, `terms`, `factors`). A plan is chosen for each
leaf (`plans`): whichever holds the least is held. The trace is then evaluated for all
examples at once, up to the factors of those products (`tracing`). From the factors come
the norms (`pieces`, `steps`, `places`, `products`, `tables`, `convolutions`), which are
measured `again` where `decisions` does not trust them, and the weighted sums, which go
through the same steps as the gradient (`linear`, `assembly`, `formed`). What
is computed for parts of one kind is traced once (`kinds`), and so are blocks that
repeat (`blocks`). Losses that rematerialize take two passes (`twice`), in which what
loops stack is measured and summed at every step (`stepwise`). On a mesh with explicit
axes the compiler lays out all of that (`placement`). What `clipped_grad` returns knows
how far one example can move it (`sensitivity`).
"""

from optaxclip.per_example.clipped import clipped_grad, clipped_value_and_grad
from optaxclip.per_example.explain import explain
from optaxclip.per_example.measured import per_example_norms
from optaxclip.per_example.sensitivity import ClippedGradient, NeighboringRelation
from optaxclip.per_example.stacked import clip_per_example
from optaxclip.per_example.sums import PerExample

__all__ = [
    "ClippedGradient",
    "NeighboringRelation",
    "PerExample",
    "clip_per_example",
    "clipped_grad",
    "clipped_value_and_grad",
    "explain",
    "per_example_norms",
]
