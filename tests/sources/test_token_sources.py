"""Sources that hold token ids already: rows as they are, documents packed, exact at every row, bad ids named."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.config.curriculum import Curriculum
from mixer.errors import ConfigError, EmptySourceError, MalformedDataError, MissingDataError, TokenizerError
from mixer.sources import tokens
from mixer.sources.base import RowSource
from mixer.sources.batches import BadRecord
from mixer.sources.opening import check_sources, open_sources
from mixer.sources.prepared.prepare import prepare
from mixer.sources.tokenizer import TextTokenizer
from mixer.sources.tokenizer_training import sample_texts, train
from mixer.testing import assert_source_is_exact

SEPARATOR = "<|endoftext|>"
TOKENIZER = TextTokenizer(train(["some text"], 290, SEPARATOR), SEPARATOR)
VOCAB = TOKENIZER.vocab_size
T = 7
RNG = np.random.default_rng(0)
ROWS = RNG.integers(0, VOCAB, (90, T + 1))
DOCUMENTS = [RNG.integers(0, VOCAB, i * 7 % 23).tolist() for i in range(90)]
PACKED = np.concatenate([[*ids, TOKENIZER.separator_id] for ids in DOCUMENTS if ids])
TYPES = {
    "int32": pa.list_(pa.int32()),
    "uint16": pa.list_(pa.uint16()),
    "int64": pa.large_list(pa.int64()),
    "fixed": pa.list_(pa.uint32(), T + 1),
}


def write(path: Path, lists: Any, kind: pa.DataType, **columns: list[Any]) -> Path:
    table = pa.table({"ids": pa.array([*map(list, lists)], type=kind), **columns})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=40)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            for batch in table.to_batches(max_chunksize=40):
                writer.write_batch(batch)
    return path


def source_of(
    file: Path | None, dataset: Any = None, *, curriculum: dict[str, Any] | None = None, **fields: Any
) -> RowSource:
    source = {"name": "web", **({"data_files": str(file)} if file else {}), **fields}
    run = Curriculum(total_steps=9, batch_rows=2, sequence_length=T, sources=[source], **(curriculum or {}))
    [opened] = open_sources(run, TOKENIZER, None if dataset is None else {"web": dataset})
    return opened


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_rows_are_given_as_they_are_over_epochs(tmp_path: Path, kind: str, suffix: str) -> None:
    file = write(tmp_path / f"a.{suffix}", ROWS, TYPES[kind])
    rows = source_of(file, rows="ids").take(200)
    np.testing.assert_array_equal(rows, np.tile(ROWS, (3, 1))[:200])
    assert rows.dtype == np.uint32
    assert rows.flags.writeable


@pytest.mark.parametrize("kind", ["int32", "uint16", "int64"])
def test_documents_are_packed_with_a_separator_after_each(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path / "a.parquet", DOCUMENTS, TYPES[kind])
    num_rows = 3 * len(PACKED) // (T + 1)
    rows = source_of(file, token_ids="ids").take(num_rows)
    np.testing.assert_array_equal(rows.ravel(), np.tile(PACKED, 4)[: num_rows * (T + 1)])


@pytest.mark.parametrize("fields", [{"rows": "ids"}, {"token_ids": "ids"}, {"rows": "ids", "where": {"k": "a"}}])
def test_token_sources_pass_the_check_that_users_run_over_an_epochs_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    monkeypatch.setattr(tokens, "BATCH_ROWS", 4)  # 16 rows, or 4 documents: borders that are not those of the file
    monkeypatch.setattr(tokens, "GROUP_TOKENS", 100)
    file = write(tmp_path / "a.parquet", ROWS, TYPES["int32"], k=["a", "b", "a"] * 30)
    num_rows = {"rows": 60 if "where" in fields else 90}.get(next(iter(fields)), 100)
    assert_source_is_exact(lambda: source_of(file, **fields), num_rows + 7)


def test_a_mapped_data_set_of_tokens_is_exact_too(tmp_path: Path) -> None:
    def doubled(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"ids": [ids for ids in batch["ids"] for _ in range(2)]}

    plain = datasets.Dataset.from_dict({"ids": ROWS.tolist()}).to_iterable_dataset(num_shards=3)
    dataset = plain.map(doubled, batched=True, batch_size=7)
    np.testing.assert_array_equal(source_of(None, dataset, rows="ids").take(180), np.repeat(ROWS, 2, axis=0))
    assert_source_is_exact(lambda: source_of(None, dataset, rows="ids"), 190)


@pytest.mark.parametrize(
    ("lists", "fields", "message"),
    [
        (
            [*ROWS[:50], ROWS[0, 1:]],
            {"rows": "ids"},
            r"row group 1, row 11: column 'ids' has 7 ids, but a row has sequence_length \+ 1 = 8",
        ),
        (
            [[1] * 8, [1, 2, -3] + [1] * 5],
            {"rows": "ids"},
            "row 2: column 'ids' holds the id -3, outside the vocabulary of",
        ),
        (
            [[1], [], [2, VOCAB]],
            {"token_ids": "ids"},
            f"row 3: column 'ids' holds the id {VOCAB}, outside the vocabulary",
        ),
        ([[1], [2, None]], {"token_ids": "ids"}, "row 2: column 'ids' holds a null among its ids"),
    ],
)
def test_what_is_no_token_is_named_by_source_row_and_value(
    tmp_path: Path, lists: list[Any], fields: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / "a.parquet", lists, TYPES["int32"])
    with pytest.raises(MalformedDataError, match=f"source web: .*{message}"):
        source_of(file, **fields).take(100)


KINDS = {
    "list": lambda values: pa.list_(values),
    "large list": lambda values: pa.large_list(values),
    "fixed": lambda values: pa.list_(values, 3),
}
WIDTHS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@given(
    st.data(), st.sampled_from(WIDTHS), st.sampled_from([*KINDS, "Python"]), st.sampled_from([100, 300, 70000, None])
)
def test_columns_of_every_width_and_kind_give_their_ids_or_name_the_first_row_that_has_none(
    data: st.DataObject, width: str, kind: str, vocab_size: int | None
) -> None:
    limits = np.iinfo(width)
    size = {"min_size": 3, "max_size": 3} if kind == "fixed" else {"max_size": 3}
    end = min(vocab_size or 2**32, limits.max + 1)
    good = st.lists(st.integers(0, end - 1), **size)  # type: ignore[arg-type]
    strange = st.sampled_from([limits.min, -1, limits.max, end, limits.max + 1, *([None] if kind != "Python" else [])])
    fits = strange.filter(lambda value: value is None or limits.min <= value <= limits.max or kind == "Python")
    ids = st.integers(0, end - 1) | fits
    lists = data.draw(st.lists(good | st.lists(ids, **size), max_size=6), label="lists")  # type: ignore[arg-type]
    is_good = [all(each is not None and 0 <= each < (vocab_size or 2**32) for each in row) for row in lists]
    column: Any = lists
    if kind != "Python":
        padding = data.draw(st.integers(0, 2), label="rows of the array before these")
        column = pa.array([[0, 0, 0]] * padding + lists, type=KINDS[kind](pa.type_for_alias(width)))[padding:]
        column = pa.chunked_array([column[:1], column[1:]]) if data.draw(st.booleans(), label="chunks") else column
    reader = tokens.TokenColumn("ids", vocab_size=vocab_size, row_length=None)
    if all(is_good):
        read, borders = reader.read(column)
        assert [read[a:b].tolist() for a, b in itertools.pairwise(borders)] == lists
        assert read.dtype == np.uint32
        return
    with pytest.raises(BadRecord, match="column 'ids' holds"):
        reader.read(column)
    for i, row_is_good in enumerate(is_good):
        if row_is_good:
            assert reader.read(column[i : i + 1])[0].tolist() == lists[i]
        else:
            with pytest.raises(BadRecord, match="column 'ids' holds"):
                reader.read(column[i : i + 1])


def written(folder: Path, route: str, width: str, rows: Any) -> tuple[Path | None, Any]:
    """Return a file, or a data set, that holds the same ids as every route of a program brings them."""
    if route in ("parquet", "arrow"):
        return write(folder / f"a.{route}", rows, pa.list_(pa.type_for_alias(width))), None
    if route == "jsonl":
        (folder / "a.jsonl").write_text("".join(f'{{"ids": {list(map(int, row))}}}\n' for row in rows))
        return folder / "a.jsonl", None
    features = datasets.Features({"ids": datasets.List(datasets.Value(width))})
    mapped = datasets.Dataset.from_dict({"ids": [*map(list, rows)]}, features=features).to_iterable_dataset()
    if route == "data set":
        return None, mapped
    as_arrays = mapped.map(lambda row: {"ids": np.array(row["ids"], dtype=width)})
    as_lists = datasets.IterableDataset.from_generator(lambda: ({"ids": [*map(int, row)]} for row in rows))
    return None, as_arrays if route == "NumPy arrays" else as_lists


@pytest.mark.parametrize("width", ["int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("route", ["parquet", "arrow", "jsonl", "data set", "Python lists", "NumPy arrays"])
def test_a_negative_id_is_refused_with_its_row_on_every_route(tmp_path: Path, route: str, width: str) -> None:
    rows = ROWS[:9] % 100
    rows[5, 3] = -1
    file, dataset = written(tmp_path, route, width, rows)
    for fields in ({"rows": "ids"}, {"token_ids": "ids"}):
        source = source_of(file, dataset, **fields)  # type: ignore[arg-type]  # of fields, none is a curriculum
        with pytest.raises(
            MalformedDataError, match="source web: .*(row|line) 6: column 'ids' holds the id -1, outside"
        ):
            source.take(9)
    if file is not None:
        curriculum = Curriculum(
            total_steps=9,
            batch_rows=2,
            sequence_length=T,
            tokenizer={"train_vocab_size": 300},
            sources=[{"name": "web", "data_files": str(file), "rows": "ids"}, {"name": "text", "local": "glossary"}],
        )
        with pytest.raises(
            MalformedDataError, match="source web: .*(row|line) 6: column 'ids' holds the id -1, outside"
        ):
            prepare(curriculum, tmp_path / "prepared")


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([[1], [2, 2.5]], "row 2: column 'ids' holds float '2.5' among its ids"),
        ([[1], [True]], "row 2: column 'ids' holds bool 'True' among its ids, which are whole numbers"),
        ([[1], ["7"]], "row 2: column 'ids' holds str '7' among its ids"),
        ([[1], "7"], "row 2: column 'ids' is str '7', not a list of token ids"),
        ([[1], 7], "row 2: column 'ids' is int '7', not a list of token ids"),
        ([[1], None], "row 2: column 'ids' is null, not a list of token ids"),
        ([[], [None]], "row 2: column 'ids' holds a null among its ids"),
        ([[1], [2**64]], "row 2: column 'ids' holds the id 18446744073709551616, outside the vocabulary"),
        ([[1], [-1, 2**63]], "row 2: column 'ids' holds the id -1, outside the vocabulary"),
        ([[1], [-(2**70)]], "row 2: column 'ids' holds the id -1180591620717411303424, outside the vocabulary"),
    ],
)
def test_lists_of_a_program_that_hold_no_token_ids_are_refused_with_their_row(lists: Any, message: str) -> None:
    dataset = datasets.IterableDataset.from_generator(lambda: ({"ids": ids} for ids in lists))
    with pytest.raises(MalformedDataError, match=f"source web: ({message})"):
        source_of(None, dataset, token_ids="ids").take(1)


def test_lists_that_are_all_empty_are_empty_documents() -> None:
    dataset = datasets.IterableDataset.from_generator(lambda: ({"ids": ids} for ids in [[], [], [5] * (T + 1)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "BATCH_ROWS", 2)
        assert source_of(None, dataset, token_ids="ids").take(1).tolist() == [[5] * (T + 1)]


def test_a_null_row_and_a_column_of_text_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"ids": pa.array([[1], None], type=TYPES["int32"])}), tmp_path / "a.parquet")
    with pytest.raises(MalformedDataError, match="source web: .*row 2: column 'ids' is null, not a list"):
        source_of(tmp_path / "a.parquet", token_ids="ids").take(1)
    pq.write_table(pa.table({"ids": ["text"]}), tmp_path / "b.parquet")
    with pytest.raises(
        MalformedDataError, match="source web: .*row 1: column 'ids' holds string, not lists of whole numbers"
    ):
        source_of(tmp_path / "b.parquet", rows="ids").take(1)
    with pytest.raises(MissingDataError, match="source web: no column 'id'; did you mean 'ids'"):
        source_of(tmp_path / "b.parquet", rows="id")
    empty = write(tmp_path / "c.parquet", [[], []], TYPES["int32"])
    with pytest.raises(EmptySourceError, match="2 rows were read and none has text"):
        source_of(empty, token_ids="ids").take(1)


def test_check_covers_columns_of_tokens(tmp_path: Path) -> None:
    file = str(write(tmp_path / "a.parquet", ROWS, TYPES["int32"]))
    sources = [{"name": "good", "data_files": file, "rows": "ids"}, {"name": "bad", "data_files": file, "rows": "text"}]
    run = Curriculum(total_steps=9, batch_rows=2, sequence_length=T, vocab_size=VOCAB, sources=sources)
    [problem] = check_sources(run)
    assert problem.startswith(
        "source bad: no column 'text'; columns: ids; set text, messages, template, token_ids, rows"
    )
    [problem] = check_sources(Curriculum(total_steps=9, batch_rows=2, sequence_length=T + 1, sources=sources[:1]))
    assert "row 1: column 'ids' has 8 ids, but a row has sequence_length + 1 = 9" in problem
    with pytest.raises(TokenizerError, match="every source holds token ids already"):
        sample_texts(run.model_copy(update={"sources": run.sources[:1]}))
    with pytest.raises(
        ConfigError, match="source a: give one of text, messages, template, token_ids and rows, not text and rows"
    ):
        Curriculum(total_steps=9, batch_rows=2, sequence_length=T, sources=[{"name": "a", "text": "t", "rows": "r"}])


# -- shares: readers and the held-out split ---------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"rows": "ids"}, {"rows": "ids", "where": {"k": "a"}}], ids=["all", "where"])
@pytest.mark.parametrize(("num_readers", "holdout"), [(2, 0.0), (3, 0.2), (3, 0.0), (5, 0.5)])
@pytest.mark.parametrize("num_files", [1, 3])
def test_readers_and_the_split_divide_a_source(
    tmp_path: Path, fields: dict[str, Any], num_readers: int, holdout: float, num_files: int
) -> None:
    for i, part in enumerate(np.array_split(ROWS, num_files)):
        write(tmp_path / f"{i}.parquet", part, TYPES["int32"], k=["a", "b", "a"] * (len(part) // 3))
    source = {"name": "web", "data_files": str(tmp_path / "*.parquet"), "on_exhausted": "stop", **fields}
    run = Curriculum(total_steps=9, batch_rows=2, sequence_length=T, sources=[source], holdout=holdout)
    shares = [
        everything(open_sources(run, TOKENIZER, reader=reader, num_readers=num_readers)[0])
        for reader in range(num_readers)
    ]
    if holdout:
        shares.append(everything(open_sources(run, TOKENIZER, held_out=True)[0]))
    given = [row for share in shares for row in share]
    expected = ROWS if "where" not in fields else np.delete(ROWS, np.s_[1::3], axis=0)
    assert sorted(given) == sorted(map(tuple, expected.tolist()))
    if holdout:
        assert 0 < len(shares[-1]) < len(given)


def everything(source: RowSource) -> list[tuple[int, ...]]:
    from mixer.sources.base import EndOfSource

    rows: list[Any] = []
    for _ in itertools.count():
        try:
            rows.append(tuple(source.take(1)[0].tolist()))
        except EndOfSource:
            return rows
    raise AssertionError
