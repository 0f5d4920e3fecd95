"""Harris's segments: where words are cut, which segments are kept, and that every text comes back from them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from mixer.sources.harris import cuts, segment_counts, successor_varieties, train_harris, word_counts
from mixer.sources.tokenizer import TextTokenizer

SEPARATOR = "<|endoftext|>"
STEMS = """
walk talk jump play look help turn call start open work show point form add act aid aim air ask bark beam bend blend boil
bolt book burn camp cheer clean cook count crawl dream drift earn end farm fear fill film find fish fold gain greet hand
heat hunt join kick laugh learn lift list load lock mark melt mend milk mind need paint pick print push
""".split()  # noqa: SIM905  # a list of quoted words is hard to read
ENDINGS = ("", "s", "ed", "ing", "er", "ers")
WORDS = [stem + ending for stem in STEMS for ending in ENDINGS]
TEXTS = [f"He said: {word}, {other}! They {word} again.\n" for word in WORDS for other in WORDS[:: len(ENDINGS) * 9]]


@pytest.fixture(scope="module")
def trained() -> TextTokenizer:
    return TextTokenizer(train_harris(TEXTS, 330, SEPARATOR), SEPARATOR)


def pieces(tokenizer: TextTokenizer, text: str) -> list[str]:
    [ids] = tokenizer.encode([text])
    return [tokenizer.decode([i]) for i in ids]


def test_as_many_varieties_as_different_letters_follow_a_beginning() -> None:
    varieties = successor_varieties(["read", "reads", "reader", "real", "red"])
    assert [varieties["read"[:i]] for i in range(1, 5)] == [1, 2, 2, 3]  # e; a d; d l; end s e
    assert varieties["reads"] == 1  # the end
    assert varieties["unseen"] == 0


def test_a_word_is_cut_where_more_letters_follow_than_one_letter_before() -> None:
    varieties = successor_varieties(WORDS)
    assert cuts("walking", varieties) == [0, 4, 7]
    assert cuts("starters", varieties) == [0, 5, 8]
    assert cuts("walk", varieties) == [0, 4]  # the end of the word is no cut more


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=30))
def test_cuts_rise_from_the_beginning_to_the_end_and_spare_the_first_letter(words: list[str]) -> None:
    varieties = successor_varieties(words)
    for word in words:
        places = cuts(word, varieties)
        assert places == sorted(set(places))
        assert places[0] == 0
        assert places[-1] == len(word)
        assert 1 not in places[1:-1]


@given(st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=20))
def test_varieties_are_those_counted_one_by_one(words: list[str]) -> None:
    varieties = successor_varieties(words)
    for word in words:
        for i in range(len(word) + 1):
            followers = {f"{other}\0"[i] for other in words if other.startswith(word[:i])}
            assert varieties[word[:i]] == len(followers)


def test_segments_are_the_stretches_between_cuts_with_the_space_before_the_word() -> None:
    counts = segment_counts({" walking": 3, **dict.fromkeys(WORDS, 1)})
    assert counts[" walk"] == 3
    assert counts[" walking"] == 3
    assert counts["walk"] == len(ENDINGS)
    assert counts["ing"] == 3 + len(STEMS)
    assert " " not in counts  # a byte, which every vocabulary has


def test_words_seen_once_and_words_too_long_for_a_language_do_not_count() -> None:
    long = "x" * 33
    assert word_counts([f"and and and {long} {long} once"]) == {" and": 2}


def test_the_vocabulary_has_the_size_asked_for_with_all_bytes_and_the_separator(trained: TextTokenizer) -> None:
    vocabulary = Tokenizer.from_str(trained.to_json()).get_vocab()
    assert sorted(vocabulary.values()) == list(range(330))
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(vocabulary)
    assert vocabulary[SEPARATOR] == trained.separator_id == 329


def test_a_small_text_gives_fewer_segments_than_asked_for() -> None:
    tokenizer = train_harris(["to be or not to be"], 8449, SEPARATOR)
    assert tokenizer.get_vocab_size() == 256 + len({" be"}) + 1


def test_no_text_at_all_gives_the_bytes() -> None:
    tokenizer = TextTokenizer(train_harris([], 300, SEPARATOR), SEPARATOR)
    assert tokenizer.vocab_size == 257
    assert tokenizer.decode(tokenizer.encode(["añ\0 😀"])[0]) == "añ\0 😀"


def test_words_become_stems_and_endings(trained: TextTokenizer) -> None:
    assert pieces(trained, " walking turned") == [" walk", "ing", " turn", "ed"]


def test_a_tokenizer_read_from_its_file_is_equal_to_the_one_written(trained: TextTokenizer) -> None:
    text = "".join(chr(i) for i in range(32, 1000)) + " ".join(WORDS)
    many = TextTokenizer(train_harris([*TEXTS, text, text], 900, SEPARATOR), SEPARATOR)
    for tokenizer in (trained, many):
        assert TextTokenizer(Tokenizer.from_str(tokenizer.to_json()), SEPARATOR).fingerprint == tokenizer.fingerprint


@given(st.lists(st.text(), max_size=5))
def test_every_text_comes_back_from_its_segments(trained: TextTokenizer, texts: list[str]) -> None:
    assert [trained.decode(ids) for ids in trained.encode(texts)] == texts


@given(st.text())
def test_a_file_that_any_program_can_read_encodes_alike(trained: TextTokenizer, text: str) -> None:
    loaded = Tokenizer.from_str(trained.to_json())
    assert loaded.encode(text.replace(SEPARATOR, "")).ids == trained.encode([text.replace(SEPARATOR, "")])[0].tolist()


@given(st.binary())
def test_bytes_that_are_no_text_have_tokens_from_which_they_come_back(trained: TextTokenizer, data: bytes) -> None:
    """`tokenizers` takes text alone, so that such bytes can be written token by token only."""
    table = BYTE_CHARACTERS
    vocabulary = Tokenizer.from_str(trained.to_json()).get_vocab()
    ids = [vocabulary[table[byte]] for byte in data]
    back = {vocabulary[character]: byte for byte, character in table.items()}
    assert bytes(back[i] for i in ids) == data
    assert trained.decode(ids) == data.decode(errors="replace")


def byte_characters() -> dict[int, str]:
    """The character that stands for each byte; those that stand for themselves are found through texts with them."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found: dict[int, str] = {}
    for character in map(chr, (*range(0x800), *range(0x800, 0xD800, 0x40), *range(0xE000, 0x110000, 0x400))):
        [(written, _)] = split.pre_tokenize_str(character)
        found.update(zip(character.encode(), written, strict=True))
    of_no_text = sorted(set(range(256)) - set(found))  # C0, C1, F5 to FF
    rest = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(found.values()))
    return {**found, **dict(zip(of_no_text, rest, strict=True))}


BYTE_CHARACTERS = byte_characters()


def test_half_a_character_in_a_text_is_refused(trained: TextTokenizer) -> None:
    with pytest.raises(TypeError):
        trained.encode(["a\ud800"])


def test_a_document_cannot_forge_the_separator(trained: TextTokenizer) -> None:
    [ids] = trained.encode([f"before{SEPARATOR}after"])
    assert trained.separator_id not in ids
    assert trained.decode(ids) == f"before{SEPARATOR}after"


def test_training_again_in_another_process_gives_the_same_file(tmp_path: Path, trained: TextTokenizer) -> None:
    code = """
import sys
from tests.sources.test_harris import SEPARATOR, TEXTS, train_harris
train_harris(TEXTS, 330, SEPARATOR).save(sys.argv[1])
"""
    path = tmp_path / "tokenizer.json"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=True)
    assert TextTokenizer(Tokenizer.from_file(str(path)), SEPARATOR).fingerprint == trained.fingerprint


def test_a_long_run_of_letters_is_encoded_in_time_that_grows_with_its_length(trained: TextTokenizer) -> None:
    text = "walking" * 100_000
    assert trained.decode(trained.encode([text])[0]) == text
