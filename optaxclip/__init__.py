"""Clip gradients, updates and weights in JAX, as Optax transformations."""

from importlib.metadata import version

from optaxclip import attention, norms, responses, scopes, thresholds, tuning
from optaxclip.clipper import clipper
from optaxclip.cotangents import clip_cotangents
from optaxclip.exports import register_for_export
from optaxclip.feedback import error_feedback
from optaxclip.guards import (
    skip_above,
    skip_nonfinite,
    skip_spikes,
    stop_on_streak,
    zero_nonfinite,
)
from optaxclip.paths import by_path
from optaxclip.per_example import (
    ClippedGradient,
    NeighboringRelation,
    PerExample,
    clip_per_example,
    clipped_grad,
    clipped_value_and_grad,
    explain,
    per_example_norms,
)
from optaxclip.reading import report
from optaxclip.reports import ClipReport, ClipState
from optaxclip.spectral.clipping import (
    clip_singular_values,
    soft_clip_singular_values,
)
from optaxclip.strategies.adagc import adagc
from optaxclip.strategies.agc import agc
from optaxclip.strategies.aggc import aggc
from optaxclip.strategies.autoclip import autoclip
from optaxclip.strategies.clippy import clippy
from optaxclip.strategies.delta_clip import delta_clip
from optaxclip.strategies.greedy_clip import greedy_clip
from optaxclip.strategies.norm_limits import (
    clip_global_norm,
    clip_group_norm,
    clip_tensor_norm,
    clip_tensor_rms,
    clip_unit_norm,
)
from optaxclip.strategies.quantile_clip import quantile_clip
from optaxclip.strategies.relative_update import relative_update
from optaxclip.strategies.soft import soft_clip_global_norm, soft_clip_value
from optaxclip.strategies.spam import spam_clip
from optaxclip.strategies.stable_adam import scale_by_stable_adam
from optaxclip.strategies.stable_spam import adaclip, adagn
from optaxclip.strategies.trust_ratio import clip_trust_ratio
from optaxclip.strategies.values import clip_scaled_value, clip_value
from optaxclip.strategies.zclip import zclip
from optaxclip.trees import shrink_tree, tree_norm
from optaxclip.watch import watch
from optaxclip.weights.bounds import bound_weights
from optaxclip.weights.clips import (
    clip_weight_norm,
    clip_weight_unit_norm,
    clip_weights,
)
from optaxclip.weights.initialization import clip_weights_to_init
from optaxclip.weights.spectral_norm import clip_weight_spectral_norm
from optaxclip.weights.spheres import hyperball, normalize_weights

__version__ = version("optaxclip")

__all__ = [
    "ClipReport",
    "ClipState",
    "ClippedGradient",
    "NeighboringRelation",
    "PerExample",
    "adaclip",
    "adagc",
    "adagn",
    "agc",
    "aggc",
    "attention",
    "autoclip",
    "bound_weights",
    "by_path",
    "clip_cotangents",
    "clip_global_norm",
    "clip_group_norm",
    "clip_per_example",
    "clip_scaled_value",
    "clip_singular_values",
    "clip_tensor_norm",
    "clip_tensor_rms",
    "clip_trust_ratio",
    "clip_unit_norm",
    "clip_value",
    "clip_weight_norm",
    "clip_weight_spectral_norm",
    "clip_weight_unit_norm",
    "clip_weights",
    "clip_weights_to_init",
    "clipped_grad",
    "clipped_value_and_grad",
    "clipper",
    "clippy",
    "delta_clip",
    "error_feedback",
    "explain",
    "greedy_clip",
    "hyperball",
    "normalize_weights",
    "norms",
    "per_example_norms",
    "quantile_clip",
    "register_for_export",
    "relative_update",
    "report",
    "responses",
    "scale_by_stable_adam",
    "scopes",
    "shrink_tree",
    "skip_above",
    "skip_nonfinite",
    "skip_spikes",
    "soft_clip_global_norm",
    "soft_clip_singular_values",
    "soft_clip_value",
    "spam_clip",
    "stop_on_streak",
    "thresholds",
    "tree_norm",
    "tuning",
    "watch",
    "zclip",
    "zero_nonfinite",
]
