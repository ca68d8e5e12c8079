"""Characters as numbers: the manual that ships with Python, or a file of the user's."""

from collections import Counter
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

CHARACTERS, LENGTH, HELD_OUT = 64, 200_000, 0.1


@cache
def characters(file: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Number the most frequent characters from 1 on, and call all others 0."""
    if file is None:
        text = "\n".join(topics[name] for name in sorted(topics))
    else:
        text = file.read_text(encoding="utf-8")
    text = text[:LENGTH]
    frequent = [letter for letter, _ in Counter(text).most_common(CHARACTERS - 1)]
    numbers = {letter: number for number, letter in enumerate(frequent, start=1)}
    sequence = np.array([numbers.get(letter, 0) for letter in text], np.uint8)
    split = int(len(sequence) * (1 - HELD_OUT))
    return sequence[:split], sequence[split:]
