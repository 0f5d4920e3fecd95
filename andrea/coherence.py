"""How coherent a text is, 0 to 100, beside text that a run reads: what the gate of ``andrea.gate`` looks at.

The axes and their points are ANDREA-120M's (35 for bigrams, 35 for trigrams, 20 for words, 10 for characters); how each
is computed was never published, so the formulas are ours. Counting different bigrams alone would give full points to a
text of random words, so a bigram counts if it occurs in the run's own text. Words in their right frequencies, but in a
random order, still get the points for words and characters: the score tells a collapse from speech, not good from bad.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

POINTS = {"bigrams": 35.0, "trigrams": 35.0, "words": 20.0, "characters": 10.0}
_WORD = re.compile(r"\w+")

Gram = tuple[str, ...]


class Axes(NamedTuple):
    """What is measured of a text; see ``Coherence.axes``."""

    bigrams: float
    trigrams: float
    words: float
    characters: float


@dataclass(frozen=True)
class Score:
    """The points of a text, and their sum."""

    bigrams: float
    trigrams: float
    words: float
    characters: float

    @property
    def total(self) -> float:
        """The score, 0 to 100."""
        return self.bigrams + self.trigrams + self.words + self.characters


class Coherence:
    """What text of a run is like, to score other text by.

    Text comes in pieces (rows, documents), and no n-gram reaches from one into the next. Words are runs of letters,
    digits and underscores, in lower case.

    Args:
        reference: pieces whose words, bigrams and trigrams are known.
        typical: texts of the same kind that are not in the reference, each in pieces and about as long as the text that
            is to be scored; their mean on each axis gets that axis's full points.
    """

    def __init__(self, reference: Iterable[str], typical: Iterable[Sequence[str]]) -> None:
        self._known: tuple[set[Gram], ...] = (set(), set(), set())  # words, bigrams, trigrams
        for piece in reference:
            for known, grams in zip(self._known, _grams(piece), strict=True):
                known.update(grams)
        measured = [axes for axes in (self.axes(pieces) for pieces in typical) if axes.characters]
        self.typical = Axes(*(sum(axis) / len(measured) for axis in zip(*measured, strict=True))) if measured else None
        """The mean of the typical texts on each axis; None without any."""

    def axes(self, pieces: Sequence[str]) -> Axes:
        """Measure a text.

        - bigrams: different pairs of neighbouring words that the reference has, over all pairs of the text;
        - trigrams: the same of three words;
        - words: words, each as often as it occurs, that the reference has, over all words;
        - characters: the number of characters that would, if all were as frequent, vary as much: e to the power of the
          entropy of the text's characters in nats.

        An axis without anything to count is 0.
        """
        found: list[list[Gram]] = [[], [], []]
        for piece in pieces:
            for grams, more in zip(found, _grams(piece), strict=True):
                grams += more
        words, bigrams, trigrams = found
        return Axes(
            _share(len(self._known[1] & set(bigrams)), len(bigrams)),
            _share(len(self._known[2] & set(trigrams)), len(trigrams)),
            _share(sum(word in self._known[0] for word in words), len(words)),
            _variety("".join(pieces)),
        )

    def score(self, pieces: Sequence[str]) -> Score | None:
        """Score a text: on each axis its points times the text's measure over the typical one, at most the points.

        Characters lose points both ways, times the smaller over the larger: noise varies more than speech. An axis on
        which the typical text has 0 asks for nothing, and gives its full points. None without typical text.
        """
        axes = self.axes(pieces)
        if self.typical is None:
            return None
        shares = dict(zip(Axes._fields, map(_part, axes, self.typical), strict=True))
        if axes.characters > self.typical.characters:
            shares["characters"] = self.typical.characters / axes.characters
        return Score(**{name: points * shares[name] for name, points in POINTS.items()})


def compression_ratio(text: str) -> float:
    """Return how many times smaller zlib makes a text, in bytes of UTF-8; about 2 for 1,500 bytes of prose.

    A text that repeats itself is far above; 0 for no text.
    """
    data = text.encode("utf-8", errors="replace")
    return len(data) / len(zlib.compress(data, level=9)) if data else 0.0


def _grams(piece: str) -> tuple[list[Gram], list[Gram], list[Gram]]:
    """Return words, bigrams and trigrams of a piece, in order."""
    words = _WORD.findall(piece.casefold())
    return (
        [(word,) for word in words],
        list(pairwise(words)),
        list(zip(words, words[1:], words[2:], strict=False)),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _variety(text: str) -> float:
    counts = Counter(text).values()
    return math.exp(-sum(n / len(text) * math.log(n / len(text)) for n in counts)) if text else 0.0


def _part(value: float, typical: float) -> float:
    return min(1.0, value / typical) if typical else 1.0
