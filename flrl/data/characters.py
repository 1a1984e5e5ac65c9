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
    if len(set(letters)) < len(letters):
        raise ValueError(f"{key}: has a character twice")
    if lacking := set(text) - set(letters):
        raise ValueError(f"{key}: lacks the character {min(lacking)!r}, which the text has")
    known, found = (np.frombuffer(part.encode("utf-32-le"), dtype="<u4") for part in (letters, text))
    order = np.argsort(known)
    # The smallest signed type: uint8 would be taken as pixels.
    places = order.astype(np.min_scalar_type(-max(1, len(letters))))
    numbers: np.ndarray = places[np.searchsorted(known[order], found)]
    return numbers
