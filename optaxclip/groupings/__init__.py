"""Numbers arranged in groups, in the two ways in which groups are kept.

Groupings hold no arrays and are hashable, so that measuring is compiled once a tree.
"""

from optaxclip.groupings.bundled import Bundled, Single
from optaxclip.groupings.by_leaf import ByLeaf, Elements
from optaxclip.groupings.grouping import Grouping, each_group

__all__ = ["Bundled", "ByLeaf", "Elements", "Grouping", "Single", "each_group"]
