"""Words that distinguish the text of an item from the texts of the other items."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

_WORD = re.compile(r"[^\W\d_]{3,}")
MAX_CHARACTERS = 4000  # of a text that are read
MAX_TEXTS = 20_000  # whose words are counted


class DistinctiveWords:
    """The words of a text with the highest tf-idf: (1 + log count in the text) log(texts / texts with the word).

    Excluded are words that fewer than two texts have, since they are names rather than keywords, and English stop
    words (scikit-learn's list).

    Args:
        texts: those of the catalogue; the first `MAX_TEXTS` are counted.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts_with: Counter[str] = Counter()
        self._texts = 0
        for text, _ in zip(texts, range(MAX_TEXTS), strict=False):
            self._texts_with.update(set(_words(text)))
            self._texts += 1

    def of(self, text: str, n: int = 8) -> list[str]:
        """The `n` best words of a text, best first; ties in alphabetical order."""
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        counts = Counter(word for word in _words(text) if word not in ENGLISH_STOP_WORDS)
        scored = [
            (-(1 + math.log(count)) * math.log(self._texts / self._texts_with[word]), word)
            for word, count in counts.items()
            if 2 <= self._texts_with[word] < self._texts
        ]
        return [word for _, word in sorted(scored)[:n]]


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFC", text[:MAX_CHARACTERS]).lower())
