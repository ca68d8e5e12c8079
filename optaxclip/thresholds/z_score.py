"""A limit for spikes: magnitudes many standard deviations above the mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int32

from optaxclip.arguments import check_decay, check_nonnegative, check_steps
from optaxclip.averages import moved
from optaxclip.numbers import Number
from optaxclip.roles import check_flag
from optaxclip.sentences import uncalled
from optaxclip.thresholds.memory import Remembering, choose, full, increment, like


@dataclass(frozen=True)
class Spike:
    """How a spike is limited.

    Attributes:
      name: the name it prints as.
      deviations: maps the z-score and the largest z-score allowed to the limit, in
        standard deviations above the mean; infinity means no limit.
    """

    name: str
    deviations: Callable[[Number, Number], Number]

    def __repr__(self) -> str:
        return f"thresholds.{self.name}"


# Divide first: the quotient is below 1, so the product cannot overflow.
adaptive_scaling = Spike(
    "adaptive_scaling",
    lambda z, allowed: jnp.where(z > allowed, allowed * (allowed / z), jnp.inf),
)
to_mean = Spike(
    "to_mean",
    lambda z, allowed: jnp.where(z > allowed, jnp.zeros_like(z), jnp.inf),
)
to_percentile = Spike(
    "to_percentile",
    lambda z, allowed: jnp.zeros_like(z) + allowed,
)


class ZScoreState(NamedTuple):
    """Mean and standard deviation, and the number of magnitudes so far.

    The deviation is stored, not the variance, which would overflow and underflow.
    """

    mean: Float[Array, "..."]
    deviation: Float[Array, "..."]
    step: Int32[Array, "..."]


@dataclass(frozen=True)
class ZScore(Remembering):
    r"""ZClip's limit, for magnitudes whose z-score is too large.

    $$
    z_t = \frac{x_t - \mu_t}{\sigma_t + \epsilon}, \qquad
    c_t = \mu_t + \frac{z_{\max}^2}{z_t} \sigma_t \text{ if } z_t > z_{\max},
    \text{ else } \infty
    $$

    for `adaptive_scaling`; `to_mean` and `to_percentile` give $\mu_t$ and
    $\mu_t + z_{\max} \sigma_t$ instead. During the first `warmup_steps` finite
    magnitudes, $\mu$ and $\sigma$ are the plain mean and standard deviation, and there
    is no limit; nor is there while all magnitudes were 0. After that,

    $$
    \mu \leftarrow \alpha \mu + (1 - \alpha) y, \qquad
    \sigma^2 \leftarrow \alpha \sigma^2 + (1 - \alpha) (y - \mu)^2
    $$

    with the new $\mu$, where y is the magnitude or, for a spike, its limit. So any
    finite spike moves them by a bounded amount; a spike during the warm-up counts in
    full and then decays with $\alpha$. A lasting jump to a much higher level is treated
    as spikes, and followed slowly if at all.

    Attributes:
      z_threshold: the largest z-score allowed, $z_{\max}$ >= 0.
      spike: how a spike is limited: `adaptive_scaling`, `to_mean`, `to_percentile`, or
        a `Spike`.
      decay: $\alpha$, at least 0 and below 1.
      warmup_steps: the number of finite magnitudes before the first limit, at least 1.
      skip_update_on_spike: whether spikes are left out of mean and deviation.
      eps: ε >= 0, in the unit of the magnitudes.
    """

    z_threshold: ArrayLike = 2.5
    spike: Spike = adaptive_scaling
    decay: ArrayLike = 0.97
    warmup_steps: ArrayLike = 25
    skip_update_on_spike: bool = False
    eps: ArrayLike = 1e-6

    def __post_init__(self) -> None:
        """Validate the arguments, unless traced."""
        check_nonnegative(self.z_threshold, "z_threshold")
        check_decay(self.decay)
        check_steps(self.warmup_steps, 1, "warmup_steps")
        check_flag(self.skip_update_on_spike, "skip_update_on_spike")
        check_nonnegative(self.eps, "eps")
        if not isinstance(self.spike, Spike):
            raise TypeError(
                f"spike must be a Spike such as thresholds.to_mean, not "
                f"{uncalled(self.spike)}."
            )

    def first(self, group: jax.ShapeDtypeStruct) -> ZScoreState:
        """See `Remembering.first`."""
        return ZScoreState(full(group, 0), full(group, 0), full(group, 0, jnp.int32))

    def step(self, size: Number, memory: ZScoreState) -> tuple[Number, ZScoreState]:
        """See `Remembering.step`."""
        mean, deviation, step = memory
        warm = step < jnp.asarray(self.warmup_steps).astype(step.dtype)
        z = (size - mean) / (deviation + like(self.eps, size))
        allowed = self.spike.deviations(z, like(self.z_threshold, size))
        limited = ~warm & (mean > 0) & ~(allowed == jnp.inf)
        allowed = jnp.where(limited, allowed, jnp.zeros_like(allowed))
        limit = jnp.where(limited, mean + deviation * allowed, jnp.inf)

        plain_share = 1 / (step.astype(size.dtype) + 1)
        share = jnp.where(warm, plain_share, 1 - like(self.decay, size))
        rest = 1 - share
        # Moving the mean by the share leaves (1 - share) of the distance. The reference
        # code squares that factor; a plain variance uses it once.
        spread = jnp.sqrt(share * rest) * jnp.where(warm, 1, jnp.sqrt(rest))
        number = jnp.minimum(size, limit)
        new = ZScoreState(
            moved(mean, number, share),
            jnp.hypot(jnp.sqrt(rest) * deviation, spread * (number - mean)),
            increment(step),
        )
        learns = ~(self.skip_update_on_spike & (size > limit))
        return limit, choose(learns, new, memory)
