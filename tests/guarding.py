"""The guards that wrap an optimizer, each made in the same way."""

import pytest

import optaxclip


def skip_above(inner, **where):
    """Skip what is far above its average, measured on the mesh axes given."""
    average, whole = optaxclip.thresholds.Ema(100.0), optaxclip.scopes.whole(**where)
    return optaxclip.skip_above(inner, average, scope=whole)


GUARDS = {
    "skip_above": skip_above,
    "skip_nonfinite": optaxclip.skip_nonfinite,
    "skip_spikes": optaxclip.skip_spikes,
}
every_guard = pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
