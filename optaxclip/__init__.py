"""Gradient, update and weight clipping for JAX, as optax transformations."""

from importlib.metadata import version

from optaxclip import norms, responses, scopes, thresholds
from optaxclip.clipper import clipper
from optaxclip.per_example import (
    PerExample,
    clip_per_example,
    clipped_grad,
    clipped_value_and_grad,
    explain,
    per_example_norms,
)
from optaxclip.reports import ClipReport, ClipState, report
from optaxclip.strategies.agc import agc
from optaxclip.strategies.norm_limits import (
    clip_global_norm,
    clip_group_norm,
    clip_tensor_norm,
    clip_tensor_rms,
    clip_unit_norm,
)
from optaxclip.strategies.soft import soft_clip_global_norm, soft_clip_value
from optaxclip.strategies.values import clip_scaled_value, clip_value
from optaxclip.trees import shrink_tree, tree_norm

__version__ = version("optaxclip")

__all__ = [
    "ClipReport",
    "ClipState",
    "PerExample",
    "agc",
    "clip_global_norm",
    "clip_group_norm",
    "clip_per_example",
    "clip_scaled_value",
    "clip_tensor_norm",
    "clip_tensor_rms",
    "clip_unit_norm",
    "clip_value",
    "clipped_grad",
    "clipped_value_and_grad",
    "clipper",
    "explain",
    "norms",
    "per_example_norms",
    "report",
    "responses",
    "scopes",
    "shrink_tree",
    "soft_clip_global_norm",
    "soft_clip_value",
    "thresholds",
    "tree_norm",
]
