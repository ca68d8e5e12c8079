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
from optaxclip.strategies.adagc import adagc
from optaxclip.strategies.agc import agc
from optaxclip.strategies.aggc import aggc
from optaxclip.strategies.autoclip import autoclip
from optaxclip.strategies.greedy_clip import greedy_clip
from optaxclip.strategies.norm_limits import (
    clip_global_norm,
    clip_group_norm,
    clip_tensor_norm,
    clip_tensor_rms,
    clip_unit_norm,
)
from optaxclip.strategies.quantile_clip import quantile_clip
from optaxclip.strategies.soft import soft_clip_global_norm, soft_clip_value
from optaxclip.strategies.values import clip_scaled_value, clip_value
from optaxclip.strategies.zclip import zclip
from optaxclip.trees import shrink_tree, tree_norm

__version__ = version("optaxclip")

__all__ = [
    "ClipReport",
    "ClipState",
    "PerExample",
    "adagc",
    "agc",
    "aggc",
    "autoclip",
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
    "greedy_clip",
    "norms",
    "per_example_norms",
    "quantile_clip",
    "report",
    "responses",
    "scopes",
    "shrink_tree",
    "soft_clip_global_norm",
    "soft_clip_value",
    "thresholds",
    "tree_norm",
    "zclip",
]
