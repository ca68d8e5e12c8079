"""Text as numbers: the standard library's own sources, or any text file."""

import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Pure Python modules that all versions have; they may differ in a few lines between
# versions, and so may the losses.
MODULES = (
    *("argparse", "calendar", "csv", "dataclasses", "difflib", "fractions"),
    *("functools", "heapq", "inspect", "pprint", "random", "shutil", "statistics"),
    *("textwrap", "typing"),
)
HELD_OUT = 0.1


class TextDataError(Exception):
    """The text cannot be used; the message says why in one sentence."""


class Text(NamedTuple):
    """A text as numbers of characters, with the last tenth held out."""

    name: str
    train: np.ndarray
    test: np.ndarray
    characters: str


def standard_library() -> Text:
    """Read some modules that ship with every Python."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = [folder / f"{module}.py" for module in MODULES]
    found = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    if not found:
        raise TextDataError(
            f"{folder} holds no sources of the standard library; give a text with "
            "--data FILE."
        )
    return numbered("Python's standard library", "\n".join(found))


def text_file(file: Path) -> Text:
    """Read the user's own file."""
    try:
        return numbered(file.name, file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TextDataError(
            f"{file} cannot be read: {error.strerror or error}."
        ) from error
    except UnicodeDecodeError as error:
        raise TextDataError(
            f"{file} is not a text in UTF-8; byte {error.start} does not fit."
        ) from error


def numbered(name: str, text: str) -> Text:
    """Number the characters in Unicode order."""
    characters = "".join(sorted(set(text)))
    numbers = {character: number for number, character in enumerate(characters)}
    sequence = np.array([numbers[character] for character in text], np.int32)
    train, test = np.split(sequence, [int(len(sequence) * (1 - HELD_OUT))])
    return Text(name, train, test, characters)


def windows(sequence: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Cut out a row of `length` numbers at each start."""
    return sequence[starts[..., None] + np.arange(length)]
