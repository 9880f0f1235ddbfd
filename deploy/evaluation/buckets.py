"""Answers sorted by how long the right answer is, as the paper sorts S-NI and UnNI."""

from __future__ import annotations

LENGTH_BUCKETS: dict[str, tuple[int, int | None]] = {
    "[0,5]": (0, 5),
    "[6,10]": (6, 10),
    "[11,inf)": (11, None),
}
"""Name -> fewest and most words; None = no limit."""
ALL = "all"
"""The name of what is not sorted."""


def num_words(text: str) -> int:
    """Words between spaces."""
    return len(text.split())


def length_bucket(words: int) -> str:
    """The bucket of a reference answer of so many words."""
    return next(
        name
        for name, (fewest, most) in LENGTH_BUCKETS.items()
        if words >= fewest and (most is None or words <= most)
    )
