"""Every strategy of the library; a later one joins the matrix by one entry here."""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import optax
import oracles
import pytest
from oracles import Groupwise

import optaxclip
from optaxclip import norms


@dataclass(frozen=True, eq=False)
class Strategy:
    """A strategy, its oracle, and what the matrix must know of it.

    The oracle takes the updates and params, as lists of float64 arrays, and the limit;
    it gives the updates as the first step must return them.
    """

    name: str
    factory: Callable[..., Any]
    limit: str | None  # the name of its limit, if it has one
    oracle: Callable[..., list[np.ndarray]]
    options: Mapping[str, Any] = field(default_factory=dict)
    exempt: Mapping[str, str] = field(default_factory=dict)  # rows, each with a reason
    needs_params: bool = False

    def make(self, limit, **options):
        """The transformation with this limit."""
        given = {} if self.limit is None else {self.limit: limit}
        return self.factory(**given, **self.options, **options)


def by_rank(tree):
    """Label every leaf by the number of its axes."""
    return jax.tree.map(lambda x: "matrices" if np.ndim(x) >= 2 else "others", tree)


def at_constant_loss(factory):
    """A strategy that needs the loss, and is given 1 where the row has none."""

    @functools.wraps(factory)
    def make(**options):
        inner = factory(**options)

        def update(updates, state, params=None, *, value=1.0, **extra):
            return inner.update(updates, state, params, value=value, **extra)

        return optax.GradientTransformationExtraArgs(inner.init, update)

    return make


def exempt(reason: str, *rows: str) -> dict[str, str]:
    """Rows that do not apply, for one reason."""
    return dict(zip(rows, itertools.repeat(reason), strict=False))


SOFT = exempt(
    "it bends values below the limit too",
    "test_a_group_within_its_limit_keeps_its_bits",
    "test_a_group_within_its_limit_keeps_its_bits_in_every_dtype",
    "test_tiny_values_within_the_limit_keep_their_bits",
    "test_what_a_bad_element_leaves_alone_keeps_its_bits",
    "test_clipping_twice_is_clipping_once",
    "test_what_is_within_the_limit_keeps_its_bits",
)

SPHERES = SOFT | exempt(
    "it scales up as well as down",
    "test_a_group_keeps_its_direction_and_does_not_grow",
    "test_no_group_exceeds_its_limit",
    "test_clipping_commutes_with_a_change_of_unit",
    "test_the_derivative_at_zero_updates_is_the_identity",
)

# What a strategy without a limit to set, or one that its first step does not use, is
# exempt from.
LIMITLESS = exempt(
    "it has no limit that the first step obeys",
    "test_limit_zero_gives_zeros",
    "test_a_negative_or_nan_limit_is_refused_at_construction",
    "test_a_traced_negative_limit_acts_as_zero",
    "test_a_traced_nan_limit_makes_the_update_nan",
    "test_a_complex_number_is_clipped_by_its_modulus_and_keeps_its_phase",
    "test_no_group_exceeds_its_limit",
)

NO_INFINITE_LIMIT = exempt(
    "what is not finite never passes through it",
    "test_limit_inf_changes_no_bit_even_of_inf_and_nan",
)
SKIPS = exempt(
    "a step with a bad element is skipped",
    "test_what_a_bad_element_leaves_alone_keeps_its_bits",
) | exempt(
    "it remembers the value",
    "test_unexpected_extra_arguments_are_ignored",
)
LEAVES_OUT = exempt(
    "a step above its limit, or with a bad element, is left out as a whole",
    "test_what_a_bad_element_leaves_alone_keeps_its_bits",
    "test_leaves_that_cannot_be_clipped_pass_through_uncounted",
    "test_a_traced_nan_limit_makes_the_update_nan",
    "test_a_group_keeps_its_direction_and_does_not_grow",
)
UNGROUPED = exempt(
    "it does not compare the size of a group with a limit",
    "test_no_group_exceeds_its_limit",
    "test_a_group_keeps_its_direction_and_does_not_grow",
    "test_what_is_within_the_limit_keeps_its_bits",
)
UNITLESS = exempt(
    "the unit of the updates does not cancel out",
    "test_clipping_commutes_with_a_change_of_unit",
)
ELEMENT_STATE = exempt(
    "each device keeps the memory of its own numbers",
    "test_in_shard_map_an_axis_name_counts_every_leaf_once",
    "test_in_shard_map_unchecked_a_tree_of_axis_names_counts_every_leaf_once",
    "test_in_shard_map_extremes_and_nan_are_as_on_one_device",
)


def around(wrapper, measures):
    """A wrapper as the matrix sees it: round a clipper of the global norm."""

    @functools.wraps(wrapper)
    def factory(max_norm, **options):
        clip = optaxclip.clip_global_norm(max_norm, **options)
        return wrapper(clip, **options) if measures else wrapper(clip)

    return factory


@functools.wraps(optaxclip.skip_above)
def skip_above(threshold, **options):
    """The guard as the matrix sees it: round nothing, by the global norm."""
    whole = optaxclip.scopes.whole(**options)
    return optaxclip.skip_above(optax.identity(), threshold, scope=whole)


# Those that are measured in a way of their own; the curves of soft clipping are too
# much alike to be asked one by one.
ORDERS = {np.inf: norms.linf, 3: norms.p_norm(3)}

STRATEGIES = [
    Strategy(
        "clip_value",
        optaxclip.clip_value,
        "max_value",
        Groupwise(oracles.element, respond=oracles.clamp),
    ),
    Strategy(
        "clip_scaled_value",
        optaxclip.clip_scaled_value,
        "scale",
        Groupwise(oracles.element, oracles.per_root_size, oracles.clamp),
    ),
    Strategy(
        "clip_global_norm",
        optaxclip.clip_global_norm,
        "max_norm",
        Groupwise(oracles.global_norm(2)),
    ),
    *[
        Strategy(
            f"clip_global_norm_{order}",
            optaxclip.clip_global_norm,
            "max_norm",
            Groupwise(oracles.global_norm(order)),
            options={"ord": measure},
        )
        for order, measure in ORDERS.items()
    ],
    Strategy(
        "clip_tensor_norm",
        optaxclip.clip_tensor_norm,
        "max_norm",
        Groupwise(oracles.tensor_norm),
    ),
    Strategy(
        "clip_tensor_rms",
        optaxclip.clip_tensor_rms,
        "max_rms",
        Groupwise(oracles.tensor_rms),
    ),
    Strategy(
        "clip_unit_norm",
        optaxclip.clip_unit_norm,
        "max_norm",
        Groupwise(oracles.unit_norm),
    ),
    Strategy(
        "clip_group_norm",
        optaxclip.clip_group_norm,
        "max_norm",
        Groupwise(oracles.rank_norm),
        options={"labels": by_rank},
    ),
    Strategy(
        "soft_clip_value",
        optaxclip.soft_clip_value,
        "max_value",
        Groupwise(oracles.element, respond=oracles.soften(oracles.tanh)),
        exempt=SOFT,
    ),
    Strategy(
        "soft_clip_global_norm",
        optaxclip.soft_clip_global_norm,
        "max_norm",
        Groupwise(oracles.global_norm(2), respond=oracles.soften(oracles.tanh)),
        exempt=SOFT,
    ),
    Strategy(
        "agc",
        optaxclip.agc,
        "clipping",
        Groupwise(oracles.unit_norm, oracles.share_of_unit),
        needs_params=True,
    ),
    Strategy(
        "autoclip",
        optaxclip.autoclip,
        None,
        Groupwise(oracles.global_norm(2), oracles.unlimited),
        options={"window": 8},
        exempt=LIMITLESS,
    ),
    Strategy(
        "zclip",
        optaxclip.zclip,
        "max_norm",
        Groupwise(oracles.global_norm(2)),
    ),
    Strategy(
        "adagc",
        optaxclip.adagc,
        "max_norm",
        Groupwise(oracles.global_norm(2)),
    ),
    Strategy(
        "aggc",
        optaxclip.aggc,
        None,
        Groupwise(oracles.rank_norm, oracles.unlimited),
        options={"labels": by_rank},
        exempt=LIMITLESS,
    ),
    Strategy(
        "quantile_clip",
        optaxclip.quantile_clip,
        "init_norm",
        Groupwise(oracles.global_norm(2)),
        exempt=exempt(
            "its limit is that of the first step alone",
            "test_the_transformation_may_be_built_anew_at_every_step",
        ),
    ),
    Strategy(
        "greedy_clip",
        at_constant_loss(optaxclip.greedy_clip),
        "init_norm",
        Groupwise(oracles.global_norm(2)),
    ),
    Strategy(
        "delta_clip",
        optaxclip.delta_clip,
        "max_norm",
        Groupwise(oracles.global_norm(2), respond=oracles.shrink_by_at_least(0.1)),
        options={"min_factor": 0.1},
        exempt=exempt(
            "a share is left of what is above its limit",
            "test_limit_zero_gives_zeros",
            "test_a_traced_negative_limit_acts_as_zero",
            "test_no_group_exceeds_its_limit",
            "test_clipping_twice_is_clipping_once",
            "test_a_complex_number_is_clipped_by_its_modulus_and_keeps_its_phase",
        ),
    ),
    Strategy(
        "spam_clip",
        optaxclip.spam_clip,
        None,
        oracles.unchanged,
        exempt=LIMITLESS | UNGROUPED | ELEMENT_STATE,
    ),
    Strategy(
        "adaclip",
        optaxclip.adaclip,
        None,
        oracles.broken_tensors,
        exempt=LIMITLESS | UNGROUPED | NO_INFINITE_LIMIT,
    ),
    Strategy(
        "adagn",
        optaxclip.adagn,
        None,
        oracles.unit_tensors,
        exempt=SOFT | LIMITLESS | UNGROUPED | UNITLESS | NO_INFINITE_LIMIT,
    ),
    Strategy(
        "clippy",
        optaxclip.clippy,
        "max_relative",
        oracles.clippy,
        exempt=UNGROUPED
        | UNITLESS
        | exempt(
            "it allows something beyond its limit",
            "test_limit_zero_gives_zeros",
            "test_a_traced_negative_limit_acts_as_zero",
        ),
        needs_params=True,
    ),
    Strategy(
        "clip_trust_ratio",
        optaxclip.clip_trust_ratio,
        "max_ratio",
        Groupwise(oracles.tensor_norm, oracles.share_of_tensor),
        needs_params=True,
    ),
    Strategy(
        "relative_update",
        optaxclip.relative_update,
        "ratio",
        Groupwise(oracles.tensor_norm, oracles.own_size, oracles.normalize),
        exempt=SPHERES,
        needs_params=True,
    ),
    Strategy(
        "scale_by_stable_adam",
        optaxclip.scale_by_stable_adam,
        "max_rms",
        oracles.stable_adam,
        exempt=SOFT
        | UNGROUPED
        | UNITLESS
        | ELEMENT_STATE
        | exempt(
            "it scales by Adam besides",
            "test_the_derivative_at_zero_updates_is_the_identity",
            "test_limit_inf_changes_no_bit_even_of_inf_and_nan",
        ),
    ),
    Strategy(
        "error_feedback",
        around(optaxclip.error_feedback, measures=False),
        "max_norm",
        Groupwise(oracles.global_norm(2)),
        exempt=ELEMENT_STATE,
    ),
    Strategy(
        "zero_nonfinite",
        optaxclip.zero_nonfinite,
        None,
        oracles.finite_numbers,
        exempt=LIMITLESS | UNGROUPED | NO_INFINITE_LIMIT,
    ),
    Strategy(
        "watch",
        optaxclip.watch,
        None,
        oracles.unchanged,
        exempt=LIMITLESS | UNGROUPED,
        needs_params=True,
    ),
    *[
        Strategy(
            guard.__name__,
            around(guard, measures=True),
            "max_norm",
            oracles.FiniteSteps(oracles.global_norm(2)),
            exempt=NO_INFINITE_LIMIT | SKIPS,
        )
        for guard in (optaxclip.skip_nonfinite, optaxclip.skip_spikes)
    ],
    Strategy(
        "skip_above",
        skip_above,
        "threshold",
        oracles.FiniteSteps(oracles.global_norm(2), respond=oracles.leave_out),
        exempt=NO_INFINITE_LIMIT | LEAVES_OUT,
    ),
]

# What bounds the parameters is exempt from what is said of updates alone. The matrix
# leaves parameters at 2, which is above most of its limits.
WEIGHTS = exempt(
    "it bounds the parameters, which then have to move, and not the updates",
    "test_zero_updates_stay_zero",
    "test_limit_zero_gives_zeros",
    "test_a_traced_negative_limit_acts_as_zero",
    "test_the_derivative_at_zero_updates_is_the_identity",
    "test_tiny_values_within_the_limit_keep_their_bits",
    "test_a_complex_number_is_clipped_by_its_modulus_and_keeps_its_phase",
    "test_no_group_exceeds_its_limit",
    "test_a_group_keeps_its_direction_and_does_not_grow",
    "test_what_is_within_the_limit_keeps_its_bits",
    "test_clipping_twice_is_clipping_once",
    "test_clipping_commutes_with_a_change_of_unit",
)
WHOLE_MATRICES = exempt(
    "a matrix has to be whole on its device inside shard_map",
    "test_in_shard_map_an_axis_name_counts_every_leaf_once",
    "test_in_shard_map_unchecked_a_tree_of_axis_names_counts_every_leaf_once",
    "test_in_shard_map_extremes_and_nan_are_as_on_one_device",
)
SPECTRAL = {
    **WHOLE_MATRICES,
    **exempt(
        "it maps each singular value, to within its documented error, and turns a "
        "matrix; test_spectral has its laws",
        "test_no_group_exceeds_its_limit",
        "test_a_group_keeps_its_direction_and_does_not_grow",
        "test_clipping_commutes_with_a_change_of_unit",
        "test_a_complex_number_is_clipped_by_its_modulus_and_keeps_its_phase",
    ),
    **exempt(
        "a flattened gradient needs more than the row's five steps to halve the loss",
        "test_before_an_optimizer_it_trains",
    ),
}

STRATEGIES += [
    Strategy(
        "clip_singular_values",
        optaxclip.clip_singular_values,
        "max_value",
        oracles.Spectral(np.minimum, 5e-4, 2e-6),
        exempt=SPECTRAL,
    ),
    Strategy(
        "soft_clip_singular_values",
        optaxclip.soft_clip_singular_values,
        "max_value",
        oracles.Spectral(oracles.bend, 1e-5, 2e-6),
        exempt=SOFT | SPECTRAL,
    ),
    Strategy(
        "clip_weights",
        optaxclip.clip_weights,
        "max_value",
        oracles.OfWeights(Groupwise(oracles.element, respond=oracles.clamp)),
        exempt=WEIGHTS,
        needs_params=True,
    ),
    Strategy(
        "clip_weight_norm",
        optaxclip.clip_weight_norm,
        "max_norm",
        oracles.OfWeights(Groupwise(oracles.tensor_norm)),
        exempt=WEIGHTS,
        needs_params=True,
    ),
    Strategy(
        "clip_weight_unit_norm",
        optaxclip.clip_weight_unit_norm,
        "max_norm",
        oracles.OfWeights(Groupwise(oracles.unit_norm)),
        exempt=WEIGHTS,
        needs_params=True,
    ),
    Strategy(
        "clip_weights_to_init",
        optaxclip.clip_weights_to_init,
        "kappa",
        oracles.OfWeights(
            Groupwise(oracles.element, oracles.per_root_fan_in, oracles.clamp)
        ),
        exempt=WEIGHTS,
        needs_params=True,
    ),
    Strategy(
        "clip_weight_spectral_norm",
        optaxclip.clip_weight_spectral_norm,
        "max_norm",
        oracles.OfWeights(Groupwise(oracles.spectral_norm)),
        exempt=WEIGHTS | WHOLE_MATRICES,
        needs_params=True,
    ),
    Strategy(
        "normalize_weights",
        optaxclip.normalize_weights,
        "radius",
        oracles.OfWeights(Groupwise(oracles.unit_norm, respond=oracles.normalize)),
        exempt=WEIGHTS | SPHERES,
        needs_params=True,
    ),
    Strategy(
        "hyperball",
        optaxclip.hyperball,
        "learning_rate",
        oracles.hyperball,
        exempt=WEIGHTS
        | SPHERES
        | exempt(
            "however long a step is, it ends on the sphere",
            "test_limit_inf_changes_no_bit_even_of_inf_and_nan",
        ),
        needs_params=True,
    ),
]


def named(strategy):
    """The name of a strategy, for pytest's ids."""
    return strategy.name


ROWS = {}  # every row, and the strategies that it would be asked of but for exemptions


def asked_of(chosen):
    """A decorator that asks a row of what is chosen and not exempt from it."""

    def ask(row):
        ROWS[row.__name__] = list(filter(chosen, STRATEGIES))
        asked = [s for s in ROWS[row.__name__] if row.__name__ not in s.exempt]
        return pytest.mark.parametrize("strategy", asked, ids=named)(row)

    return ask


# Those that go the same way as another one, with another norm, limit or curve. Rows
# about that way are asked of the other one alone.
LIKE_ANOTHER = {
    "clip_scaled_value": "clip_value",
    "soft_clip_value": "clip_value",
    "clip_global_norm_inf": "clip_global_norm",
    "clip_global_norm_3": "clip_global_norm",
    "soft_clip_global_norm": "clip_global_norm",
    "clip_tensor_rms": "clip_tensor_norm",
    "delta_clip": "clip_global_norm",
    "clip_trust_ratio": "agc",
    "relative_update": "agc",
    "soft_clip_singular_values": "clip_singular_values",
    "clip_weight_norm": "clip_weights",
    "clip_weight_unit_norm": "clip_weights",
    "clip_weights_to_init": "clip_weights",
    "normalize_weights": "clip_weights",
    # Memories of their own, which test_memory takes through every scope.
    "zclip": "autoclip",
    "quantile_clip": "autoclip",
    "aggc": "clip_group_norm",
    "adaclip": "spam_clip",
}


def is_a_kind(strategy):
    """Whether it stands for a scope, a kind of memory, or a module of its own."""
    return strategy.name not in LIKE_ANOTHER


# One of each scope, one that remembers, one that asks for params, one that turns.
ONE_OF_EACH_SCOPE = (
    "clip_value",
    "clip_unit_norm",
    "clip_tensor_norm",
    "clip_group_norm",
    "clip_global_norm",
    "autoclip",
    "agc",
    "clip_singular_values",
)


every_strategy = asked_of(lambda strategy: True)
every_kind = asked_of(is_a_kind)
every_kind_with_params = asked_of(lambda s: is_a_kind(s) and s.needs_params)
every_scope = asked_of(lambda s: s.name in ONE_OF_EACH_SCOPE)
