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

from mixer.config import Curriculum
from mixer.errors import ConfigError, EmptySourceError, MalformedDataError, MissingDataError, TokenizerError
from mixer.sources import RowSource, check_sources, open_sources, tokens
from mixer.testing import assert_source_is_exact
from mixer.tokenizer import TextTokenizer, sample_texts, train

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
            r"row 51: column 'ids' has 7 ids, but a row has sequence_length \+ 1 = 8",
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
    with pytest.raises(MalformedDataError, match=f"source web: {message}"):
        source_of(file, **fields).take(100)


def test_a_null_row_and_a_column_of_text_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"ids": pa.array([[1], None], type=TYPES["int32"])}), tmp_path / "a.parquet")
    with pytest.raises(MalformedDataError, match="source web: row 2: column 'ids' is null, not a list of token ids"):
        source_of(tmp_path / "a.parquet", token_ids="ids").take(1)
    pq.write_table(pa.table({"ids": ["text"]}), tmp_path / "b.parquet")
    with pytest.raises(MalformedDataError, match="source web: column 'ids' holds string, not lists of whole numbers"):
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
    from mixer.sources import EndOfSource

    rows: list[Any] = []
    for _ in itertools.count():
        try:
            rows.append(tuple(source.take(1)[0].tolist()))
        except EndOfSource:
            return rows
    raise AssertionError
