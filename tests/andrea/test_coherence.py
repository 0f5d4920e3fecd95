"""How coherent a text is: numbers worked by hand, and real text beside text that no model should write."""

from __future__ import annotations

import pydoc_data.topics
import random
import string
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from andrea.coherence import POINTS, Coherence, compression_ratio

TINY = Coherence(["the cat sat on the mat"], [["the cat sat on a hat"]])


def test_the_typical_text_of_a_tiny_reference_is_measured_as_by_hand() -> None:
    assert TINY.typical is not None
    assert TINY.typical.words == pytest.approx(4 / 6)  # the, cat, sat, on of six
    assert TINY.typical.bigrams == pytest.approx(3 / 5)  # the cat, cat sat, sat on of five
    assert TINY.typical.trigrams == pytest.approx(2 / 4)  # the cat sat, cat sat on of four


def test_a_tiny_text_is_scored_as_by_hand() -> None:
    found = TINY.score(["The cat sat. The cat sat"])
    assert found is not None
    assert found.words == pytest.approx(20)  # all known, where typical text has two of three
    assert found.bigrams == pytest.approx(35 * (2 / 5) / (3 / 5))  # two different ones of five pairs
    assert found.trigrams == pytest.approx(35 * (1 / 4) / (2 / 4))
    assert found.total == pytest.approx(found.words + found.bigrams + found.trigrams + found.characters)


def test_no_ngram_reaches_from_one_piece_into_the_next() -> None:
    assert TINY.axes(["the cat", "sat on"]).bigrams == 1.0
    assert TINY.axes(["the", "cat"]).bigrams == 0.0
    assert TINY.axes(["the mat", "the cat"]).trigrams == 0.0


@pytest.mark.parametrize(("text", "expected"), [("abab", 2.0), ("aaaa", 1.0), ("abcd", 4.0), ("", 0.0)])
def test_equally_frequent_characters_vary_as_much_as_there_are(text: str, expected: float) -> None:
    assert TINY.axes([text]).characters == pytest.approx(expected)


@given(st.text(alphabet="abcde ", min_size=1, max_size=200))
def test_characters_vary_by_the_entropy_that_scipy_finds(text: str) -> None:
    counts = [text.count(character) for character in set(text)]
    assert TINY.axes([text]).characters == pytest.approx(2 ** entropy(counts, base=2))


def test_characters_lose_points_both_ways() -> None:
    coherence = Coherence([], [["abcd"]])
    few, many = coherence.score(["ab"]), coherence.score(["abcdefgh"])
    assert few is not None
    assert many is not None
    assert [few.characters, many.characters] == pytest.approx([5.0, 5.0])


@given(st.lists(st.text(max_size=60), max_size=5))
def test_every_text_has_points_between_none_and_all_of_each_axis(pieces: list[str]) -> None:
    found = TINY.score(pieces)
    assert found is not None
    assert all(0 <= getattr(found, name) <= points for name, points in POINTS.items())
    assert 0 <= found.total <= 100


def test_without_typical_text_nothing_is_scored() -> None:
    assert Coherence(["the cat"], []).score(["the cat"]) is None


# --- real text: the manual of Python that comes with it

WORDS = " ".join(pydoc_data.topics.topics.values()).split()
SIZE = 250  # words of a sample, about 420 tokens
CHUNKS = [" ".join(WORDS[i : i + SIZE]) for i in range(0, len(WORDS) - SIZE, SIZE)]
MANUAL = Coherence(CHUNKS[0::3], [[chunk] for chunk in CHUNKS[1::3]])
UNSEEN = CHUNKS[2::3]


def score(text: str) -> float:
    found = MANUAL.score([text])
    assert found is not None
    return found.total


def test_real_text_scores_high_shuffled_words_low_and_random_characters_and_loops_below_the_gate() -> None:
    dice = random.Random(0)
    real = [score(text) for text in UNSEEN]
    shuffled = [score(" ".join(dice.sample(text.split(), SIZE))) for text in UNSEEN]
    noise = [score("".join(dice.choices(string.printable, k=1500))) for _ in range(20)]
    loops = [score(" ".join([word] * SIZE)) for word in ("region", "games,", "Budy")]
    assert sum(real) / len(real) > 75
    assert sum(found > 50 for found in real) > 0.9 * len(real)
    assert sum(shuffled) / len(shuffled) < 55
    assert all(low < high for low, high in zip(shuffled, real, strict=True))
    assert max(noise) < 30
    assert max(loops) < 30


def test_a_loop_compresses_far_better_than_text() -> None:
    data = UNSEEN[0].encode()
    assert compression_ratio(UNSEEN[0]) == len(data) / len(zlib.compress(data, 9))
    assert compression_ratio("region " * 200) > 20 > 4 > compression_ratio(UNSEEN[0]) > 1
    assert compression_ratio("") == 0
