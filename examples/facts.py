"""What a row of text says before its labels have numbers: hashed words and names."""

import zlib
from collections.abc import Iterable
from typing import NamedTuple

BUCKETS = 32768


class Facts(NamedTuple):
    """The hashed words of one row, and the names of its labels.

    Rows with the same `group` are near duplicates; an empty one says that there are none.
    """

    buckets: list[int]
    names: list[str]
    group: str = ""


def hashed(words: Iterable[str]) -> list[int]:
    """The bucket of each word, sorted and without duplicates."""
    return sorted({zlib.crc32(word.encode("utf-8", "replace")) % BUCKETS for word in words})
