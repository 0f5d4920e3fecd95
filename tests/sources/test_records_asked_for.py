"""What a record is, where the config says it: lines or whole files of text, the list under a key of JSON, Feather."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather

from mixer.errors import ConfigError, MalformedDataError
from mixer.sources import blocks
from tests.sources.test_readers import block_sizes, documents, in_one_folder, read, records, rest, stream_of


@given(st.text(st.sampled_from("ab é\n\r"), max_size=80), st.sampled_from([4, 16, 64 << 10]), st.booleans())
@in_one_folder
def test_lines_are_those_of_pythons_universal_newlines(tmp_path: Path, text: str, block: int, has_mark: bool) -> None:
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 * has_mark + f"first\n{text}".encode())
    with (tmp_path / "a.txt").open(encoding="utf-8-sig") as file:
        lines = [line.removesuffix("\n") for line in file]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        assert documents(tmp_path, data_files="a.txt", sample_by="line") == [line for line in lines if line]


@given(st.lists(st.text(st.sampled_from("ab é\n\r"), max_size=80), min_size=1, max_size=4), st.sampled_from([4, 64]))
@in_one_folder
def test_a_document_may_be_a_whole_file(tmp_path: Path, texts: list[str], block: int) -> None:
    folder = tmp_path / "files"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    texts = ["first", *texts]
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_bytes(text.encode())
    whole = [(folder / f"{i}.txt").read_text(encoding="utf-8") for i in range(len(texts))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        found = documents(tmp_path, data_files="files/*.txt", sample_by="document")
    assert found == [text for text in whole if text.strip("\n")]


@given(st.lists(records, max_size=12), st.dictionaries(st.text(max_size=4), st.integers(), max_size=3), block_sizes)
@in_one_folder
def test_records_under_a_key_are_those_of_a_file_of_lines(
    tmp_path: Path, rows: list[dict[str, Any]], others: dict[str, int], block: int
) -> None:
    rows = [{"text": "first"}, *rows]
    whole = {key: value for key, value in others.items() if key != "data"}
    before, after = dict(list(whole.items())[:1]), dict(list(whole.items())[1:])
    (tmp_path / "a.json").write_text(json.dumps(before | {"data": rows} | after, indent=1))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        under = _documents_and_bad(tmp_path, data_files="a.json", field="data")
        assert under == _documents_and_bad(tmp_path, data_files="a.jsonl")


def _documents_and_bad(folder: Path, **fields: Any) -> tuple[list[str], int]:
    found, bad = read(folder, on_bad_record="skip", **fields)
    return found, len(bad)


def test_records_under_a_key_are_gone_on_with_and_named_by_their_line(tmp_path: Path) -> None:
    rows = [{"text": f"number {i}"} for i in range(50)]
    (tmp_path / "a.json").write_text(json.dumps({"version": 1, "data": rows, "more": {"data": []}}, indent=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", 64)
        whole = rest(stream_of(tmp_path, data_files="a.json", field="data"))
        assert whole == [row["text"] for row in rows]
        stream = stream_of(tmp_path, data_files="a.json", field="data")
        begun = [text for _ in range(5) for text in stream.next_group()]
        other = stream_of(tmp_path, data_files="a.json", field="data")
        other.load_state_dict(stream.state_dict())
        assert rest(other, begun) == whole
    lines = json.dumps({"a": 1, "data": [{"text": "x"}, {"text": 3}]}, indent=0).splitlines()
    (tmp_path / "b.json").write_text("\n".join(lines))
    with pytest.raises(MalformedDataError, match=r"b\.json, line 7"):
        rest(stream_of(tmp_path, data_files="b.json", field="data"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"rows": []}', r"a\.json: no field 'data'; its keys are 'rows'"),
        ("{}", r"a\.json: no field 'data'; it is no object with keys"),
        ("[1]", r"a\.json: no field 'data'; it is no object with keys"),
        ('{"x": 1,\n"data": {"text": 1}}', r"a\.json, line 2: field 'data' is no list of records"),
        ('{"data": [{"text": "a"}],\n "x": }', r"a\.json, line 2: not JSON"),
        ('{"data": [{"text": "a"}', r"a\.json, line 1: not JSON"),
        ("", r"a\.json, line 1: not JSON"),
    ],
)
def test_a_file_without_a_list_under_the_key_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(MalformedDataError, match=message):
        rest(stream_of(tmp_path, data_files="a.json", field="data"))


def test_a_setting_of_another_kind_of_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(
        ConfigError, match=r"source web: sample_by 'line' is for files of text, and this source has json"
    ):
        stream_of(tmp_path, data_files="a.jsonl", sample_by="line")
    with pytest.raises(ConfigError, match=r"source web: field 'x' is for files of json, and this source has text"):
        stream_of(tmp_path, data_files="a.txt", field="x")


@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
def test_feather_files_are_read_as_arrow(tmp_path: Path, compression: str) -> None:
    feather.write_feather(pa.table({"text": ["one", "two"]}), tmp_path / "a.feather", compression=compression)
    assert documents(tmp_path, data_files="a.feather") == ["one", "two"]


def test_compressed_files_are_read_by_line_and_under_a_key_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b'{"data": ["one", "two"]}'))
    assert documents(tmp_path, data_files="a.txt.gz", sample_by="line") == ["one", "two"]
    assert documents(tmp_path, data_files="b.json.gz", field="data") == ["one", "two"]
