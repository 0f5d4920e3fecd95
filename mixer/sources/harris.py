"""A vocabulary of segments of words, cut where Harris's successor variety jumps, instead of BPE's merges of pairs.

Harris (1955, "From phoneme to morpheme", Language 31) counts the different letters that follow the beginning of a word:
few inside a morpheme, many at its end. ANDREA's tokenizer is made so. Its thresholds and its rule of encoding were not
published; these are ours:

- A word is what GPT-2's pattern calls one, without the space before it. Words seen at least twice count.
- A word may be cut after its beginning ``b`` if more letters follow ``b`` than ``b`` without its last letter. The
  end of a word counts as a letter. No word is cut after its first letter.
- A segment is any stretch of a word between two cuts; at the beginning of a word it has the space that stands there.
- The segments most often used in encoding the words are kept: a choice four times as large is thinned out twice.
- A text becomes the likeliest sequence of segments and bytes under their frequencies (the library's ``Unigram``).

On the text of the demo 2,048 segments need 2 % more tokens than a BPE of that size, and 8,192 segments 6 % more.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mixer.sources.encoders import note_threads

# GPT-2's pattern, by which the library's ByteLevel divides a text, as far as Python's `re` can say it
_WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
_END = "\0"  # the letter that stands for the end of a word
_MAX_LETTERS = 32  # a longer word is data, and its beginnings take memory by the square of its length
_MAX_WORDS = 200_000  # the most frequent ones, as all their beginnings are in memory at once
_CHOICES = (4, 2, 1)  # of segments, in multiples of those wanted: the first one, and after each thinning out
_NO_USE = 0.5  # how often a piece counts as used that never is, for its logarithm

_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # the character that the library writes for each byte
_WHOLE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def train_harris(texts: Iterable[str], vocab_size: int, separator: str) -> Tokenizer:
    """Return a tokenizer of at most ``vocab_size`` tokens: the 256 bytes, segments, and the separator.

    The same texts in the same order give the same tokenizer. ANDREA's 8,192 and 2,048 segments are a ``vocab_size`` of
    8,449 and 2,305. Fewer come out where the texts have fewer.
    """
    note_threads()
    words = word_counts(texts)
    num_segments = vocab_size - len(_BYTES) - 1
    uses = {_in_bytes(segment): float(count) for segment, count in segment_counts(words).items()}
    for times in _CHOICES:
        uses = _uses(words, _tokenizer(_most_used(uses, times * num_segments)))
    tokenizer = _tokenizer(_most_used(uses, num_segments))
    tokenizer.add_special_tokens([separator])
    return tokenizer


def word_counts(texts: Iterable[str]) -> dict[str, int]:
    """Return how often each word occurs, of those that occur twice and have at most 32 letters, most frequent first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(text))
    return {word: n for word, n in counts.most_common(_MAX_WORDS) if n > 1 and len(word) <= _MAX_LETTERS}


def successor_varieties(words: Iterable[str]) -> Counter[str]:
    """Return, for each beginning of these words, how many different letters follow it; the end counts as one."""
    beginnings = {word[:i] for word in (f"{word}{_END}" for word in words) for i in range(1, len(word) + 1)}
    return Counter(beginning[:-1] for beginning in beginnings)


def cuts(word: str, varieties: Mapping[str, int]) -> list[int]:
    """Return where a word may be cut, in letters from its beginning, 0 and its length included."""
    jumps = [i for i in range(2, len(word)) if varieties[word[:i]] > varieties[word[: i - 1]]]
    return [0, *jumps, len(word)]


def segment_counts(words: Mapping[str, int]) -> Counter[str]:
    """Return how often each segment occurs in words, which have the space before them; single bytes are left out."""
    varieties = successor_varieties({_without_space(word) for word in words})
    counts: Counter[str] = Counter()
    for word, count in words.items():
        bare = _without_space(word)
        space = len(word) - len(bare)
        places = [0, *(space + place for place in cuts(bare, varieties)[1:])]
        for first, begin in enumerate(places):
            for end in places[first + 1 :]:
                counts[word[begin:end]] += count
    return Counter({segment: n for segment, n in counts.items() if len(segment.encode()) > 1})


def _without_space(word: str) -> str:
    return word if word.isspace() else word.removeprefix(" ")


def _in_bytes(segment: str) -> str:
    """A segment as the library's vocabulary has it, one character for each byte."""
    [(written, _)] = _WHOLE.pre_tokenize_str(segment)
    return str(written)


def _most_used(uses: Mapping[str, float], num_segments: int) -> dict[str, float]:
    """Return the bytes in order, then the segments used most, most used first, equals in alphabetical order."""
    segments = sorted((piece for piece in uses if len(piece) > 1), key=lambda piece: (-uses[piece], piece))
    return {piece: uses.get(piece, 0.0) for piece in (*_BYTES, *segments[:num_segments])}


def _tokenizer(uses: Mapping[str, float]) -> Tokenizer:
    """Return the tokenizer of these pieces, each as likely as it is used; its ids are in their order."""
    total = sum(uses.values()) + 1
    # rounded: the library reads a number of 17 digits from a file as a neighbouring one
    pieces = [(piece, round(math.log(max(n, _NO_USE) / total), 6)) for piece, n in uses.items()]
    tokenizer = Tokenizer(models.Unigram(pieces))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _uses(words: Mapping[str, int], tokenizer: Tokenizer) -> dict[str, float]:
    """Return how often each piece is used in the words, encoded one by one and counted as often as they occur."""
    uses = np.zeros(tokenizer.get_vocab_size())
    for encoding, count in zip(tokenizer.encode_batch_fast(list(words)), words.values(), strict=True):
        np.add.at(uses, encoding.ids, count)
    return {piece: float(uses[i]) for piece, i in tokenizer.get_vocab().items()}
