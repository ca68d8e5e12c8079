"""Groups of leaves: reduce them to one number per group, and broadcast back."""

from optaxclip.groups.entries import Entry, paths_of
from optaxclip.groups.groups import (
    Groups,
    PerGroup,
    Summary,
    map_groups,
    share_trace,
)
from optaxclip.groups.joint import Labeled, Whole
from optaxclip.groups.per_leaf import Elements, PerLeaf, Tensors

__all__ = [
    "Elements",
    "Entry",
    "Groups",
    "Labeled",
    "PerGroup",
    "PerLeaf",
    "Summary",
    "Tensors",
    "Whole",
    "map_groups",
    "paths_of",
    "share_trace",
]
