"""Text of this machine: complete enough, in a fixed order, kept, and honest when there is none."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixer.config.sources import SourceConfig
from mixer.errors import EmptySourceError, UnknownSourceError
from mixer.sources import local
from mixer.sources.huggingface import open_stream
from mixer.sources.local import COLLECTIONS, Collection, gather


@pytest.fixture(scope="module")
def files(gathered: Path) -> dict[str, Path]:
    """Every collection."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXER_CACHE", str(gathered))
        return {name: gather(name) for name in COLLECTIONS}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIXER_CACHE", str(tmp_path))
    return tmp_path


def records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_there_are_many_collections_uneven_in_size(files: dict[str, Path]) -> None:
    sizes = sorted(path.stat().st_size for path in files.values())
    assert len(sizes) >= 8
    assert sizes[-1] > 50 * sizes[0]
    for name, path in files.items():
        assert all(set(record) == {"text", "origin"} and record["text"].strip() for record in records(path)), name


def test_licences_are_the_smallest_and_repeat_themselves(files: dict[str, Path]) -> None:
    assert min(files, key=lambda name: files[name].stat().st_size) == "licences"
    lines = [line for record in records(files["licences"]) for line in record["text"].splitlines() if line.strip()]
    assert len(set(lines)) < 0.75 * len(lines)  # 0.57 to 0.60 as the installed packages are; prose has 0.9 and more


def test_dialogues_are_turns_with_answers(files: dict[str, Path]) -> None:
    texts = [record["text"] for record in records(files["dialogues"])]
    assert all(text.startswith("> ") and "\n< " in text for text in texts)


def test_definitions_have_the_shape_of_andreas_dictionary(files: dict[str, Path]) -> None:
    texts = {record["text"] for record in records(files["definitions"])}
    assert "> define ≤\n< ≤ is the symbol less-than or equal to, U+2264.\n" in texts
    assert "> define ½\n< ½ is the number vulgar fraction one half worth 0.5, U+00BD.\n" in texts


def test_no_document_comes_twice(files: dict[str, Path]) -> None:
    for name, path in files.items():
        texts = [record["text"] for record in records(path)]
        assert len(set(texts)) == len(texts), name


def test_gathering_again_gives_the_same_bytes_in_the_same_order(files: dict[str, Path]) -> None:
    for name in ("glossary", "licences", "readmes", "topics", "errors", "dialogues"):
        assert gather(name).read_bytes() == files[name].read_bytes(), name


def test_a_gathered_file_is_kept_and_no_part_of_one_is_left(own_cache: Path) -> None:
    path = gather("glossary")
    before = path.stat().st_mtime_ns
    assert gather("glossary") == path
    assert path.stat().st_mtime_ns == before
    assert list((own_cache / "local").iterdir()) == [path]


def test_a_failure_while_writing_leaves_nothing(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> Iterator[tuple[str, str]]:
        yield "one", "here"
        raise OSError("no space left")

    monkeypatch.setitem(COLLECTIONS, "breaks", Collection("breaks", "a full disk", breaks))
    with pytest.raises(OSError, match="no space left"):
        gather("breaks")
    assert list((own_cache / "local").iterdir()) == []


def test_a_limit_keeps_whole_documents_from_the_beginning(files: dict[str, Path]) -> None:
    part = records(gather("topics", limit_bytes=20_000))
    assert 0 < sum(len(record["text"].encode()) for record in part) <= 20_000
    assert records(files["topics"])[: len(part)] == part


def test_an_unknown_collection_suggests_the_nearest() -> None:
    with pytest.raises(UnknownSourceError, match=r"no collection 'licenses'; did you mean 'licences'\?; known: code,"):
        gather("licenses")


def test_a_machine_without_the_text_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local, "_distributions", lambda: [])
    with pytest.raises(EmptySourceError, match="local: readmes: this Python .* has none of it"):
        gather("readmes")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "nowhere"))
    with pytest.raises(EmptySourceError, match="local: topics"):
        gather("topics")


def test_pip_alone_is_enough_for_readmes_and_licences(monkeypatch: pytest.MonkeyPatch) -> None:
    pip = importlib.metadata.distribution("pip")
    monkeypatch.setattr(local, "_distributions", lambda: [pip])
    assert records(gather("readmes"))
    assert records(gather("licences"))


def test_a_library_without_tests_still_has_dialogues(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: [] if self.name == "test" else everything(self, pattern))
    assert records(gather("dialogues"))


def test_a_collection_is_streamed_by_its_name(files: dict[str, Path]) -> None:
    stream = open_stream(SourceConfig(name="words", local="glossary"))
    assert stream.next_group()[0] == records(files["glossary"])[0]["text"]
