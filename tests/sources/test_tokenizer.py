"""Tokenizers from files and from training: what encodes, what is refused and what is kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mixer.config.curriculum import Curriculum
from mixer.errors import ConfigError, MissingDataError, TokenizerError
from mixer.sources.tokenizer import TextTokenizer
from mixer.sources.tokenizer_training import load_tokenizer, train

SEPARATOR = "<|endoftext|>"
TEXTS = [f"the {word} of the {word}s" for word in ("cat", "dog", "bird", "fish")] * 20


@pytest.fixture(scope="module")
def trained() -> TextTokenizer:
    return TextTokenizer(train(TEXTS, 300, SEPARATOR), SEPARATOR)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def a_curriculum(folder: Path, **fields: Any) -> Curriculum:
    (folder / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    source = {"name": "web", "data_files": str(folder / "web.jsonl")}
    return Curriculum(total_steps=100, batch_rows=2, sequence_length=8, sources=[source], **fields)


def a_file(folder: Path, tokenizer: Tokenizer) -> str:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


@given(st.lists(st.text(), max_size=5))
def test_every_text_comes_back_from_its_tokens(trained: TextTokenizer, texts: list[str]) -> None:
    encoded = trained.encode(texts)
    assert [trained.decode(ids) for ids in encoded] == texts
    assert all(ids.dtype == np.uint32 for ids in encoded)


@given(st.lists(st.text(), max_size=5))
def test_texts_encoded_together_are_each_ones_tokens_and_a_separator(trained: TextTokenizer, texts: list[str]) -> None:
    ids = trained.encode_joined(texts)
    assert ids.dtype == np.uint32
    assert ids.tolist() == [i for each in trained.encode(texts) for i in [*each.tolist(), trained.separator_id]]


def test_a_document_cannot_forge_a_separator(trained: TextTokenizer) -> None:
    [ids] = trained.encode([f"before{SEPARATOR}after"])
    assert trained.separator_id not in ids
    assert trained.decode(ids) == f"before{SEPARATOR}after"


def test_truncation_and_padding_in_the_file_are_switched_off() -> None:
    tokenizer = train(TEXTS, 300, SEPARATOR)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    wrapped = TextTokenizer(tokenizer, SEPARATOR)
    long = "a long text that is not cut"
    assert [wrapped.decode(ids) for ids in wrapped.encode([long, "b"])] == [long, "b"]


def test_training_twice_gives_the_same_tokenizer(trained: TextTokenizer) -> None:
    again = TextTokenizer(train(TEXTS, 300, SEPARATOR), SEPARATOR)
    assert again.fingerprint == trained.fingerprint
    assert TextTokenizer(train(TEXTS, 270, SEPARATOR), SEPARATOR).fingerprint != trained.fingerprint


def test_a_trained_tokenizer_is_kept_until_text_or_settings_change(tmp_path: Path, own_cache: Path) -> None:
    first = load_tokenizer(a_curriculum(tmp_path, tokenizer={"train_vocab_size": 280}))
    [kept] = (own_cache / "tokenizers").iterdir()
    before = kept.stat().st_mtime_ns
    assert load_tokenizer(a_curriculum(tmp_path, tokenizer={"train_vocab_size": 280})).fingerprint == first.fingerprint
    assert kept.stat().st_mtime_ns == before
    load_tokenizer(a_curriculum(tmp_path, tokenizer={"train_vocab_size": 290}))
    assert len(list((own_cache / "tokenizers").iterdir())) == 2
    assert first.vocab_size <= 280


def test_a_tokenizer_is_read_from_a_file_relative_to_the_config(tmp_path: Path, trained: TextTokenizer) -> None:
    a_file(tmp_path, train(TEXTS, 300, SEPARATOR))
    curriculum = a_curriculum(tmp_path, tokenizer="tokenizer.json")
    curriculum._base_dir = tmp_path
    assert load_tokenizer(curriculum).fingerprint == trained.fingerprint


def test_a_curriculum_without_a_tokenizer_is_told_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no `tokenizer:`.*train_vocab_size"):
        load_tokenizer(a_curriculum(tmp_path))


def test_a_missing_tokenizer_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no such file: .*nowhere\.json"):
        load_tokenizer(a_curriculum(tmp_path, tokenizer=str(tmp_path / "nowhere.json")))


@pytest.mark.parametrize("content", ["{}", "not json", '{"model": 3}'])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"bad\.json is not a `tokenizers` JSON file"):
        load_tokenizer(a_curriculum(tmp_path, tokenizer=str(tmp_path / "bad.json")))


def test_a_binary_file_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TokenizerError, match=r"bad\.json cannot be read"):
        load_tokenizer(a_curriculum(tmp_path, tokenizer=str(tmp_path / "bad.json")))


def test_an_unknown_separator_lists_the_special_tokens(tmp_path: Path) -> None:
    path = a_file(tmp_path, train(TEXTS, 300, "<|end|>"))
    with pytest.raises(TokenizerError, match=r"'<\|endoftext\|>' is not in the vocabulary.*special tokens: <\|end\|>"):
        load_tokenizer(a_curriculum(tmp_path, tokenizer=path))


def test_a_tokenizer_above_the_models_vocabulary_gives_both_numbers(tmp_path: Path) -> None:
    path = a_file(tmp_path, train(TEXTS, 280, SEPARATOR))
    size = TextTokenizer(Tokenizer.from_file(path), SEPARATOR).vocab_size
    with pytest.raises(TokenizerError, match=rf"needs a vocabulary of {size}, .*vocab_size is 260; raise .* {size}"):
        load_tokenizer(a_curriculum(tmp_path, tokenizer=path, vocab_size=260))
    assert load_tokenizer(a_curriculum(tmp_path, tokenizer=path, vocab_size=size)).vocab_size == size


def test_a_change_of_kind_trains_another_tokenizer(tmp_path: Path, own_cache: Path) -> None:
    fields = {"train_vocab_size": 280}
    bpe = load_tokenizer(a_curriculum(tmp_path, tokenizer=fields))
    harris = load_tokenizer(a_curriculum(tmp_path, tokenizer={**fields, "kind": "harris"}))
    assert bpe.fingerprint != harris.fingerprint
    assert len(list((own_cache / "tokenizers").iterdir())) == 2
    assert "Unigram" in harris.to_json()


@pytest.mark.parametrize("kind", ["bpe", "harris"])
@pytest.mark.parametrize("separator", ["the", "END", " ", "\n", "e", "<|>", "42"])
def test_a_separator_that_could_be_a_word_of_a_document_is_refused(tmp_path: Path, kind: str, separator: str) -> None:
    fields = {"train_vocab_size": 280, "kind": kind, "separator": separator}
    with pytest.raises(TokenizerError, match=rf"separator {re.escape(repr(separator))} could be a word of a document"):
        load_tokenizer(a_curriculum(tmp_path, tokenizer=fields))


def test_a_kind_beside_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer: kind harris says what to train, but a\.json is trained already"):
        a_curriculum(tmp_path, tokenizer={"file": "a.json", "kind": "harris"})


def test_an_unknown_kind_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.kind: Input should be 'bpe' or 'harris', got 'morfessor'"):
        a_curriculum(tmp_path, tokenizer={"train_vocab_size": 280, "kind": "morfessor"})


@pytest.mark.parametrize(
    ("tokenizer", "fingerprint"),
    [
        (None, "62ef7712c6d7b114efd9eb0ce3ea47ca"),
        ("a.json", "b076919c6d34112546178203ee73993f"),
        ({"train_vocab_size": 280}, "e56ca8a9610607b1f8d39d751be1c03e"),
        ({"train_vocab_size": 280, "kind": "bpe"}, "e56ca8a9610607b1f8d39d751be1c03e"),
    ],
)
def test_a_curriculum_without_another_kind_has_the_fingerprint_of_earlier_releases(
    tokenizer: Any, fingerprint: str
) -> None:
    source = {"name": "web", "data_files": "web.jsonl"}
    run = Curriculum(total_steps=100, batch_rows=2, sequence_length=8, sources=[source], tokenizer=tokenizer)
    assert run.fingerprint == fingerprint


def test_the_kind_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    runs = [a_curriculum(tmp_path, tokenizer={"train_vocab_size": 280, "kind": kind}) for kind in ("bpe", "harris")]
    assert runs[0].fingerprint != runs[1].fingerprint


def test_training_on_a_missing_file_names_the_source(tmp_path: Path) -> None:
    curriculum = a_curriculum(tmp_path, tokenizer={"train_vocab_size": 280})
    (tmp_path / "web.jsonl").unlink()
    with pytest.raises(MissingDataError, match=r"source web: no file matches 'web\.jsonl'"):
        load_tokenizer(curriculum)


@pytest.mark.parametrize("first", ["train", "encode"])
def test_a_forked_process_encodes_though_its_parent_had_threads(first: str) -> None:
    """As workers of a DataLoader do, whose parent trained the tokenizer and encoded nothing."""
    code = f"""
import os, signal
from mixer.sources.tokenizer import TextTokenizer
from mixer.sources.tokenizer_training import train
texts = ["one two three " * n for n in range(100)]
tokenizer = TextTokenizer(train(texts, 290, "<end>"), "<end>")
if {first!r} == "encode":
    tokenizer.encode(texts)
child = os.fork()
if not child:
    signal.alarm(20)
    tokenizer.encode(texts)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
