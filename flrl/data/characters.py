"""Characters as numbers."""

import numpy as np


def encoded(text: str, letters: str, *, key: str) -> np.ndarray:
    """The place of each character of a text among `letters`, in the smallest signed type that holds all, `[len(text)]`.

    Args:
        text: any text.
        letters: all characters that there are, each once.
        key: the setting that an error names.

    Raises:
        ValueError: `letters` has a character twice, or not one of the text.

    Example:
        >>> encoded("abba", "ab", key="letters")
        array([0, 1, 1, 0], dtype=int8)
    """
    numbers = {letter: place for place, letter in enumerate(letters)}
    if len(numbers) < len(letters):
        raise ValueError(f"{key}: has a character twice")
    # uint8 would be taken as pixels.
    small = np.min_scalar_type(-max(1, len(letters)))
    try:
        return np.fromiter((numbers[letter] for letter in text), dtype=small, count=len(text))
    except KeyError as error:
        raise ValueError(f"{key}: lacks the character {error.args[0]!r}, which the text has") from None
