"""The words that set an item's text apart from those of the other items."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

_WORD = re.compile(r"[^\W\d_]{3,}")
READ = 4000  # characters of a text
COUNTED = 20_000  # items whose words are counted


class DistinctiveWords:
    """Words by their number in a text times log(items / items with the word), as in tf-idf; a repeat counts its log.

    Counted are the first `COUNTED` texts. A word of fewer than two of them is a name more often than a keyword, and is
    left out; so are English stop words (scikit-learn's list).
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._items_with: Counter[str] = Counter()
        self._items = 0
        for text, _ in zip(texts, range(COUNTED), strict=False):
            self._items_with.update(set(_words(text)))
            self._items += 1

    def of(self, text: str, n: int = 8) -> list[str]:
        """The `n` best words of a text, best first; equal ones in alphabetical order."""
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        counts = Counter(word for word in _words(text) if word not in ENGLISH_STOP_WORDS)
        scored = [
            (-(1 + math.log(count)) * math.log(self._items / self._items_with[word]), word)
            for word, count in counts.items()
            if 2 <= self._items_with[word] < self._items
        ]
        return [word for _, word in sorted(scored)[:n]]


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFC", text[:READ]).lower())
