"""Places in a tree, by the names on the way to them."""

from collections.abc import Iterable
from typing import Any

import jax
from jaxtyping import PyTree


def check_matched(
    argument: str, entries: Iterable[tuple[str, ...]], tree: PyTree, tree_name: str
) -> None:
    """Refuse an entry for what a tree has not, not even as a masked or empty part."""

    def is_end(node: Any) -> bool:
        return node is None or (isinstance(node, dict | list | tuple) and not node)

    places = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_end)
    names = [names_of(path) for path, _ in places]
    for entry in entries:
        ends = (entry[: len(name)] == name[: len(entry)] for name in names)
        if names and not any(ends):
            raise ValueError(
                f"{argument} must be one value or a prefix tree of {tree_name}, and "
                f"has an entry for {'/'.join(entry)}, which matches nothing; take it "
                "out, or write it as they do."
            )


def names_of(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Name the places on the way to a leaf, in whatever kind of tree."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
