"""Paths to leaves, and values chosen by patterns of paths."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import jax
from jaxtyping import PyTree


def check_matched(
    argument: str, entries: Iterable[tuple[str, ...]], tree: PyTree, tree_name: str
) -> None:
    """Reject an entry that matches no part of a tree, masked or empty ones included."""

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
    """Return the names along the path to a leaf, for any kind of tree."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


@partial(
    jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["patterns"]
)
@dataclass(frozen=True)
class ByPath:
    """A value for each leaf, from the first pattern that matches its path.

    Attributes:
      patterns: shell patterns, such as ``"*/lora_*"``.
      values: the value for each pattern.
    """

    patterns: tuple[str, ...]
    values: tuple[Any, ...]

    def __call__(self, tree: PyTree) -> PyTree:
        """Return a tree like the given one, with a value in place of each leaf."""
        matched: set[int] = set()

        def value(path: tuple[Any, ...], leaf: Any) -> Any:
            place = "/".join(names_of(path))
            for i, pattern in enumerate(self.patterns):
                if fnmatchcase(place, pattern):
                    matched.add(i)
                    return self.values[i]
            raise ValueError(
                f"by_path has no pattern for {place or 'the one leaf'}; add one, such "
                "as '*' for all others."
            )

        found = jax.tree_util.tree_map_with_path(value, tree)
        for i, pattern in enumerate(self.patterns):
            if matched and i not in matched:
                raise ValueError(
                    f"by_path has the pattern {pattern!r}, which matches no leaf, or "
                    "none that an earlier one does not; take it out or correct it."
                )
        return found


def by_path(values: Mapping[str, Any]) -> ByPath:
    """Give each leaf the value of the first pattern that matches its path.

    The result works wherever a prefix tree does: for the limits of tensors and units,
    and for ``labels``, ``axis`` and ``leading_axes``. It is also a function from a tree
    to labels, as ``optax.partition`` expects. For ``optax.masked``, call it with the
    parameters: ``by_path({...})(params)``.

    Args:
      values: a dict from shell patterns to limits, labels or other values. A path
        consists of the names on the way to a leaf, joined by slashes, such as
        ``"layers/0/attention/lora_a"``; ``*`` matches any characters, slashes included.

    Returns:
      A tree of the values that also holds the patterns.

    Raises:
      TypeError: if `values` is not a dict whose keys are strings.
      ValueError: on use, if a leaf matches no pattern, or a pattern matches no leaf.

    Examples:
      >>> params = {"dense": {"kernel": jnp.ones(2), "lora_a": jnp.ones(2)}}
      >>> labels = optaxclip.by_path({"*/lora_*": "lora", "*": "frozen"})
      >>> labels(params)
      {'dense': {'kernel': 'frozen', 'lora_a': 'lora'}}
    """
    is_dict = isinstance(values, Mapping)
    if not is_dict or not all(isinstance(pattern, str) for pattern in values):
        raise TypeError("values must be a dict from patterns, which are strings.")
    return ByPath(tuple(values), tuple(values.values()))
