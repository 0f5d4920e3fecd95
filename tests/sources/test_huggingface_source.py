"""Streams over real files and real `datasets` code: exact order, exact resume, errors that name the place."""

from __future__ import annotations

import csv
import gc
import gzip
import json
import logging
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixer.config.sources import SourceConfig
from mixer.errors import (
    ConfigError,
    EmptySourceError,
    MalformedDataError,
    MissingDataError,
    SourceError,
    StateMismatchError,
)
from mixer.sources import text_stream
from mixer.sources.huggingface import open_stream
from mixer.sources.streams import Stream
from mixer.sources.text_stream import TextStream

ROWS = [
    {"text": f"document {i} " + "word " * (i % 7), "category": "abc"[i % 3], "number": i} if i % 11 else
    {"text": "", "category": "a", "number": i}
    for i in range(333)
]  # fmt: skip


@pytest.fixture
def collected() -> Iterator[None]:
    """Let what a test leaves open be found while the test's own filters hold."""
    yield
    gc.collect()


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> str:
    """Write rows into several files of uneven size and return the pattern that finds them."""
    borders = [0, 1, 66, 130, 131, len(rows)]
    for k, (start, end) in enumerate(zip(borders, borders[1:], strict=False)):
        part, path = rows[start:end], folder / f"part{k}.{kind}"
        table = pa.Table.from_pylist(part)
        if kind == "jsonl":
            write_jsonl(path, part)
        elif kind == "parquet":
            pq.write_table(table, path, row_group_size=[1, 7, 50, 64, 100][k])
        elif kind == "arrow":
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                for batch in table.to_batches(max_chunksize=[1, 7, 50, 64, 100][k]):
                    writer.write_batch(batch)
        elif kind == "csv":
            with path.open("w", newline="") as file:
                writer_of_rows = csv.DictWriter(file, list(part[0]))
                writer_of_rows.writeheader()
                writer_of_rows.writerows(part)
        else:
            path.write_text("\n\n".join(row["text"].strip() for row in part if row["text"]) + "\n\n")
    return f"part*.{kind}"


def stream_of(folder: Path, dataset: datasets.IterableDataset | None = None, **fields: Any) -> Stream[Any]:
    return open_stream(SourceConfig(name="web", **fields), resolve=lambda path: folder / path, dataset=dataset)


def groups_of(stream: Stream[Any]) -> Iterator[list[str]]:
    while group := stream.next_group():
        yield group


def documents_of(stream: Stream[Any]) -> list[str]:
    return [document for group in groups_of(stream) for document in group]


@pytest.mark.parametrize("where", [{}, {"category": ["a", "b"]}], ids=["all", "where"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "csv", "txt"])
@pytest.mark.usefixtures("collected")
def test_a_stream_keeps_file_order_and_resumes_at_every_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: dict[str, Any]
) -> None:
    if kind == "txt" and where:
        pytest.skip("text files have no other column")
    monkeypatch.setattr(text_stream, "GROUP_DOCUMENTS", 23)  # groups that do not end where batches do
    pattern = write(tmp_path, kind, ROWS)
    expected = [row["text"] for row in ROWS if row["text"] and (not where or row["category"] in where["category"])]
    if kind == "txt":
        expected = [str(text).strip() for text in expected]
    stream = stream_of(tmp_path, data_files=pattern, where=where)
    groups, states = [], [json.dumps(stream.state_dict())]
    for group in groups_of(stream):
        groups.append(group)
        states.append(json.dumps(stream.state_dict()))
    got = [document for group in groups for document in group]
    assert [text.strip() for text in got] == expected if kind == "txt" else got == expected

    for index, state in enumerate(states):
        restored = stream_of(tmp_path, data_files=pattern, where=where)
        restored.load_state_dict(json.loads(state))
        assert json.dumps(restored.state_dict()) == state
        rest = []
        for group in groups_of(restored):
            rest.append(group)
            restored.load_state_dict(json.loads(json.dumps(restored.state_dict())))  # resumed from a resumed one
        assert rest == groups[index:]
        restored.restart()
        assert list(groups_of(restored))[: index + 1] == groups[: index + 1]  # the next epoch begins at the beginning


def test_a_state_at_the_end_of_an_epoch_stays_at_the_end(tmp_path: Path) -> None:
    pattern = write(tmp_path, "parquet", ROWS)
    stream = stream_of(tmp_path, data_files=pattern)
    documents_of(stream)
    assert stream.next_group() == []
    restored = stream_of(tmp_path, data_files=pattern)
    restored.load_state_dict(stream.state_dict())
    assert restored.next_group() == []


def test_groups_are_bounded_by_documents_and_by_characters(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}] * 300)
    assert [len(group) for group in groups_of(stream_of(tmp_path, data_files="a.jsonl"))] == [256, 44]
    write_jsonl(tmp_path / "b.jsonl", [{"text": "x" * 100_000}] * 7)
    assert [len(group) for group in groups_of(stream_of(tmp_path, data_files="b.jsonl"))] == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("rows_at_once", "group", "characters"), [(64, 256, 2**17), (3, 10, 2**17), (3, 256, 90), (5, 4, 31)]
)
def test_documents_taken_together_make_the_groups_and_places_of_documents_looked_at_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int, group: int, characters: int
) -> None:
    monkeypatch.setattr(text_stream, "BATCH_ROWS", rows_at_once)
    monkeypatch.setattr(text_stream, "TABLE_ROWS", 2 * rows_at_once + 1)
    monkeypatch.setattr(text_stream, "GROUP_DOCUMENTS", group)
    monkeypatch.setattr(text_stream, "GROUP_CHARACTERS", characters)
    files = write(tmp_path, "jsonl", ROWS)
    together, one_by_one = stream_of(tmp_path, data_files=files), stream_of(tmp_path, data_files=files)
    assert isinstance(one_by_one, TextStream)
    one_by_one._plain = None
    ended = False
    while not ended:
        documents = together.next_group()
        assert documents == one_by_one.next_group()
        assert together.state_dict() == one_by_one.state_dict()
        ended = not len(documents)


def test_counters_tell_rows_documents_and_empty_rows(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, data_files=write(tmp_path, "jsonl", ROWS), where={"category": "a"})
    documents = documents_of(stream)
    num_a = sum(row["category"] == "a" for row in ROWS)
    assert (stream.num_rows, stream.num_documents) == (333, len(documents))
    assert stream.num_empty == num_a - len(documents) > 0


def test_files_are_read_pattern_by_pattern_and_each_by_name(tmp_path: Path) -> None:
    for name in ("b1", "a2", "a10"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name}])
    assert documents_of(stream_of(tmp_path, data_files=("b*.jsonl", "a*.jsonl"))) == ["b1", "a10", "a2"]


def test_folders_with_brackets_and_hidden_folders_are_read(tmp_path: Path) -> None:
    folder = tmp_path / ".hidden" / "odd [1] *"
    folder.mkdir(parents=True)
    write_jsonl(folder / "a.jsonl", [{"text": "found"}])
    assert documents_of(stream_of(folder, data_files="a.jsonl")) == ["found"]


def test_compressed_json_lines_are_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write('{"text": "packed"}\n')
    assert documents_of(stream_of(tmp_path, data_files="a.jsonl.gz")) == ["packed"]


def test_paragraphs_of_a_text_file_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\nmore of one\n\ntwo\n\n\n\nthree")
    assert [text.strip() for text in documents_of(stream_of(tmp_path, data_files="a.txt"))] == [
        "one\nmore of one",
        "two",
        "three",
    ]


@pytest.mark.usefixtures("collected")
def test_csv_text_that_spells_a_missing_value_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nNA\nnull\n")
    assert documents_of(stream_of(tmp_path, data_files="a.csv")) == ["NA", "null"]


def test_a_local_folder_is_a_data_set_too(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "train.jsonl", [{"text": "in a folder"}])
    assert documents_of(stream_of(tmp_path, path="./set")) == ["in a folder"]
    with pytest.raises(MissingDataError, match=r"source web: path '\./none' is no folder"):
        stream_of(tmp_path, path="./none")


# -- rendering -------------------------------------------------------------------------------------------------------


def test_another_column_is_text_when_asked(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"body": "b", "text": "t"}])
    assert documents_of(stream_of(tmp_path, data_files="a.jsonl", text="body")) == ["b"]


def test_chats_are_turns_and_keep_lines(tmp_path: Path) -> None:
    rows = [
        {"chat": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi\nthere"}]},
        {"chat": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello\nyou"}]},
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert documents_of(stream_of(tmp_path, data_files="a.jsonl", messages="chat")) == [
        "* be kind\n> hi\nthere",
        "> hi\n< hello\nyou",
    ]


def test_chats_of_from_and_value_are_read_beside_those_of_role_and_content(tmp_path: Path) -> None:
    rows = [
        {"chat": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"chat": [{"role": "user", "content": "bye"}]},
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert documents_of(stream_of(tmp_path, data_files="a.jsonl", messages="chat")) == ["> hi\n< hello", "> bye"]


def test_templates_are_filled_from_columns(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"word": "cat", "entry": {"is": "an animal"}, "n": 1}])
    template = "> define {word}\n< {word} is {entry[is]} ({n})."
    got = documents_of(stream_of(tmp_path, data_files="a.jsonl", template=template))
    assert got == ["> define cat\n< cat is an animal (1)."]


@pytest.mark.parametrize(
    ("where", "expected"),
    [({"k": "a"}, ["0"]), ({"k": None}, ["2"]), ({"flag": True}, ["0"]), ({"n": [0, 2]}, ["0", "2"]), ({"n": 7}, [])],
)
def test_where_keeps_rows_that_equal_a_value(tmp_path: Path, where: dict[str, Any], expected: list[str]) -> None:
    rows = [{"text": str(i), "k": k, "flag": flag, "n": i} for i, (k, flag) in enumerate(
        [("a", True), ("b", False), (None, None)])]  # fmt: skip
    write_jsonl(tmp_path / "a.jsonl", rows)
    stream = stream_of(tmp_path, data_files="a.jsonl", where=where)
    if expected:
        assert documents_of(stream) == expected
    else:
        with pytest.raises(EmptySourceError, match=r"none of 3 rows matches where n=7; n is one of \[0, 1, 2\]"):
            documents_of(stream)


def test_true_is_not_one(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "t", "n": 1}])
    with pytest.raises(EmptySourceError):
        documents_of(stream_of(tmp_path, data_files="a.jsonl", where={"n": True}))


# -- data sets passed as objects -------------------------------------------------------------------------------------


def numbers(start: int, end: int) -> Iterator[dict[str, Any]]:
    for i in range(start, end):
        yield {"text": f"t{i}", "category": "ab"[i % 2]}


def test_an_iterable_dataset_is_streamed_and_left_where_it_was(tmp_path: Path) -> None:
    dataset = datasets.IterableDataset.from_generator(numbers, gen_kwargs={"start": 0, "end": 600})
    dataset = dataset.map(lambda row: {"text": row["text"].upper()})
    reader = iter(dataset)
    next(reader)
    first = stream_of(tmp_path, dataset)
    second = stream_of(tmp_path, dataset, where={"category": "a"})
    assert first.next_group()[0] == "T0"
    assert second.next_group()[:2] == ["T0", "T2"]  # two streams of one object do not disturb each other
    assert first.next_group()[0] == "T256"
    assert next(reader)["text"] == "T1"
    restored = stream_of(tmp_path, dataset)
    restored.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert documents_of(restored)[0] == "T512"


def test_a_map_style_dataset_is_streamed(tmp_path: Path) -> None:
    dataset: Any = datasets.Dataset.from_list(list(numbers(0, 3)))
    assert documents_of(stream_of(tmp_path, dataset)) == ["t0", "t1", "t2"]


def test_a_formatted_dataset_is_read_as_plain_rows(tmp_path: Path) -> None:
    dataset: Any = datasets.Dataset.from_list(list(numbers(0, 3))).to_iterable_dataset().with_format("arrow")
    assert documents_of(stream_of(tmp_path, dataset)) == ["t0", "t1", "t2"]


def test_a_shuffle_buffer_is_refused(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(list(numbers(0, 3))).to_iterable_dataset()
    with pytest.raises(ConfigError, match="source web: the data set has a shuffle buffer"):
        stream_of(tmp_path, dataset.shuffle(seed=1).map(lambda row: row))


def test_something_else_than_a_dataset_is_refused(tmp_path: Path) -> None:
    dataset: Any = datasets.DatasetDict({"train": datasets.Dataset.from_list(list(numbers(0, 3)))})
    with pytest.raises(ConfigError, match="source web: streams takes a .*IterableDataset .*not DatasetDict"):
        stream_of(tmp_path, dataset)


def test_a_column_missing_from_an_untyped_dataset_is_found_when_reading(tmp_path: Path) -> None:
    dataset = datasets.IterableDataset.from_generator(numbers, gen_kwargs={"start": 0, "end": 2})
    assert dataset.column_names is None
    with pytest.raises(MissingDataError, match="source web: no column 'body'; columns: text, category"):
        stream_of(tmp_path, dataset, text="body").check()


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, ConfigError, "nothing to read; give path, data_files or local"),
        ({"path": "json"}, ConfigError, "nothing to read"),
        ({"data_files": "none*.jsonl"}, MissingDataError, r"no file matches 'none\*\.jsonl' in"),
        ({"data_files": "nodir/a.jsonl"}, MissingDataError, r"in .*nodir, which does not exist"),
        ({"data_files": "a.xyz"}, ConfigError, r"cannot tell how to read .*a\.xyz' by its extension '\.xyz'; known: \.jsonl"),
        ({"data_files": ("a.jsonl", "a.txt")}, ConfigError, r"its files mix formats \(a\.jsonl is json, a\.txt is text\)"),
        ({"data_files": "a.jsonl", "split": "validation"}, MissingDataError, "Bad split: validation.*train"),
        ({"data_files": "a.jsonl", "text": "txt"}, MissingDataError, r"no column 'txt'; did you mean 'text'\?; columns: "),
        ({"data_files": "a.jsonl", "where": {"kind": 1}}, MissingDataError, "no column 'kind'"),
        ({"data_files": "a.jsonl", "messages": "chat"}, MissingDataError, "no column 'chat'"),
        ({"data_files": "a.jsonl", "template": "{text} {word}"}, MissingDataError, "no column 'word'"),
        ({"data_files": "a.jsonl", "template": "{text"}, ConfigError, "template '{text' is not well formed"),
        ({"data_files": "a.jsonl", "template": "{}"}, ConfigError, "must name columns"),
        ({"data_files": "a.jsonl", "template": "no column"}, ConfigError, "must name columns"),
        ({"data_files": "a.jsonl", "messages": "text"}, MalformedDataError, "/(a|odd).jsonl, line 1: column 'text' holds str 't', not a"),
        ({"data_files": "a.jsonl", "template": "{text:d}"}, MalformedDataError, "/(a|odd).jsonl, line 1: the template .* cannot be filled"),
        ({"data_files": "a.jsonl", "template": "{none}"}, MalformedDataError, "/(a|odd).jsonl, line 1: column 'none' of the template is null"),
        ({"data_files": "a.jsonl", "text": "none"}, MalformedDataError, "/(a|odd).jsonl, line 1: column 'none' is null, not text"),
        ({"data_files": "a.jsonl", "text": "n"}, MalformedDataError, "/(a|odd).jsonl, line 1: column 'n' is int '1', not text"),
        ({"data_files": "empty.jsonl"}, EmptySourceError, "there are no rows at all"),
        ({"data_files": "empty.txt"}, EmptySourceError, "there are no rows at all"),
        ({"data_files": "blank.jsonl"}, EmptySourceError, r"2 rows were read and none has text \(2 are empty\)"),
        ({"data_files": "odd.jsonl", "messages": "m"}, MalformedDataError, "/(a|odd).jsonl, line 1: unknown role 'tool'; known: user,"),
        ({"data_files": "cut.parquet"}, MalformedDataError, r"/cut\.parquet, after row 0: cannot be read: ArrowInvalid: Parquet"),
        ({"data_files": "cut.arrow"}, MalformedDataError, r"/cut\.arrow, after row \d+: cannot be read"),
        ({"data_files": "latin.txt"}, MalformedDataError, r"/latin\.txt, line 1: not UTF-8"),
    ],
)  # fmt: skip
def test_what_cannot_start_says_why_and_names_the_source(
    tmp_path: Path, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "t", "n": 1, "none": None}])
    write_jsonl(tmp_path / "blank.jsonl", [{"text": ""}] * 2)
    write_jsonl(tmp_path / "odd.jsonl", [{"m": [{"role": "tool", "content": "x"}]}])
    for name in ("a.xyz", "a.txt", "empty.jsonl", "empty.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 10)
    for kind in ("parquet", "arrow"):
        (tmp_path / "whole").mkdir(exist_ok=True)
        write(tmp_path / "whole", kind, ROWS)
        data = (tmp_path / "whole" / f"part4.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(data[: len(data) // 2])
    with pytest.raises(error, match=f"source web: .*{message}"):
        documents_of(stream_of(tmp_path, **fields))  # to the end: a cut Arrow file begins well


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "cut off', "not JSON"),
        ("[1, 2]", r"not a JSON object: \[1, 2\]"),
        ("plain words", "not JSON .*: plain words"),
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["in the first file", "in the second file"])
def test_a_malformed_line_is_named_by_file_and_number(tmp_path: Path, line: str, reason: str, first: bool) -> None:
    good = [{"text": f"t{i}"} for i in range(100)]
    write_jsonl(tmp_path / "a.jsonl", good)
    write_jsonl(tmp_path / "b.jsonl", [*good[:41], line, *good])
    names = ("b.jsonl", "a.jsonl") if first else ("a.jsonl", "b.jsonl")
    with pytest.raises(MalformedDataError, match=rf"source web: .*b\.jsonl, line 42: {reason}"):
        documents_of(stream_of(tmp_path, data_files=names))


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(MalformedDataError, match=r"source web: .*a\.jsonl, line 2: not UTF-8"):
        documents_of(stream_of(tmp_path, data_files="a.jsonl"))


def test_an_error_loses_no_document_and_reading_goes_on_when_it_is_mended(tmp_path: Path) -> None:
    class Flaky:
        broken = True

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            if Flaky.broken and row["text"] == "t270":
                raise OSError("the network is gone")
            return row

    dataset = datasets.IterableDataset.from_generator(numbers, gen_kwargs={"start": 0, "end": 300})
    stream = stream_of(tmp_path, dataset.map(Flaky()))
    documents = stream.next_group()
    state = stream.state_dict()
    for _ in range(2):
        with pytest.raises(SourceError, match="source web: cannot be read: OSError: the network is gone"):
            stream.next_group()
        assert stream.state_dict() == state
    Flaky.broken = False
    assert documents + documents_of(stream) == [f"t{i}" for i in range(300)]


def test_a_wrong_record_is_named_by_its_file_and_line(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*ROWS, {"text": None}])
    stream = stream_of(tmp_path, data_files="a.jsonl")
    with pytest.raises(MalformedDataError, match=r"source web: .*/a\.jsonl, line 334: column 'text' is null"):
        documents_of(stream)


def test_a_state_of_other_files_or_another_source_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    stream = stream_of(tmp_path, data_files="a.jsonl")
    stream.next_group()
    state = stream.state_dict()
    write_jsonl(tmp_path / "a.jsonl", ROWS[1:])
    with pytest.raises(StateMismatchError, match="source web: .*its files are not those"):
        stream_of(tmp_path, data_files="a.jsonl").load_state_dict(state)
    with pytest.raises(StateMismatchError, match="source web: the saved state has source 'other', but this is 'web'"):
        stream_of(tmp_path, data_files="a.jsonl").load_state_dict({**state, "source": "other"})


def test_check_leaves_the_stream_at_its_beginning(tmp_path: Path) -> None:
    stream = stream_of(tmp_path, data_files=write(tmp_path, "jsonl", ROWS))
    before = stream.state_dict()
    stream.check()
    assert stream.state_dict() == before
    assert stream.next_group()[0] == ROWS[1]["text"]


def test_reading_says_nothing_and_leaves_the_settings_of_datasets(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    level = random.choice([logging.WARNING, logging.ERROR])
    datasets.logging.set_verbosity(level)
    bars, counts = datasets.are_progress_bars_disabled(), datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    write_jsonl(tmp_path / "a.jsonl", [{"text": "t"}, "broken"])
    with pytest.raises(MalformedDataError):
        documents_of(stream_of(tmp_path, data_files="a.jsonl"))
    assert capfd.readouterr() == ("", "")
    assert datasets.logging.get_verbosity() == level
    assert datasets.are_progress_bars_disabled() == bars
    assert counts == datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.logging.set_verbosity_warning()


def test_reading_local_files_sends_nothing_to_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a request was made")

    monkeypatch.setattr(datasets.load, "get_session", refuse)
    assert documents_of(stream_of(tmp_path, data_files=write(tmp_path, "jsonl", ROWS)))


def test_threads_open_sources_at_the_same_time(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    source = SourceConfig(name="web", data_files=str(tmp_path / "rows.jsonl"))
    with ThreadPoolExecutor(8) as threads:
        opened = list(threads.map(lambda _: open_stream(source).next_group(), range(24)))
    assert opened == [["a"]] * 24
