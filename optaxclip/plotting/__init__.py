"""Pictures of what clipping did, drawn by matplotlib.

Each function draws on the axes that it is given, or on those of a new figure, and
returns them. Ask for it by ``import optaxclip.plotting``; it needs matplotlib, which
``pip install 'optaxclip[plot]'`` brings.
"""

from importlib.util import find_spec

if find_spec("matplotlib") is None:
    raise ImportError(
        "optaxclip.plotting draws with matplotlib, which is not installed; run "
        "pip install 'optaxclip[plot]'."
    )

from optaxclip.plotting.distribution import plot_norms
from optaxclip.plotting.layers import plot_groups
from optaxclip.plotting.scores import plot_sweep
from optaxclip.plotting.steps import plot_history

__all__ = ["plot_groups", "plot_history", "plot_norms", "plot_sweep"]
