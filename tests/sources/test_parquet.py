"""Parquet as tables: the same rows and borders from every place, and nothing read that lies before it or far behind."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixer.sources.batches import Batch, UnreadableFile
from mixer.sources.records import DataFile, FileRecords

WIDTH = 5
shapes = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=3)  # row groups of files
tmp_path_serves_all = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(folder: Path, shape: list[list[int]]) -> list[Path]:
    """Write files of row groups of these sizes; rows are numbered through all files."""
    numbers = itertools.count()
    paths = []
    kind = pa.list_(pa.int32())
    for i, sizes in enumerate(shape):
        paths.append(folder / f"{i}.parquet")
        with pq.ParquetWriter(paths[-1], pa.schema([("ids", kind)]), compression="none") as writer:
            for size in sizes:
                rows = [[next(numbers)] * WIDTH for _ in range(size)]
                writer.write_table(pa.table({"ids": pa.array(rows, type=kind)}), row_group_size=size)
    return paths


def records(paths: list[Path]) -> FileRecords:
    """Return the rows of Parquet files."""
    return FileRecords([DataFile(str(path), "parquet") for path in paths], ["ids"])


def rows_of(batch: Batch) -> list[int]:
    """Return the numbers of the rows of a batch."""
    return [row[0] for row in batch.part(0, batch.num_rows)["ids"]]


def scrawl(path: Path, groups: list[int]) -> None:
    """Overwrite the data of row groups, so that decoding them fails or gives other numbers."""
    metadata = pq.read_metadata(path)
    with path.open("r+b") as file:
        for group in groups:
            column = metadata.row_group(group).column(0)
            start = column.data_page_offset
            if column.dictionary_page_offset is not None:
                start = min(start, column.dictionary_page_offset)
            file.seek(start)
            file.write(b"\xff" * column.total_compressed_size)


def needed(sizes: list[int], row: int, batch_size: int) -> set[int]:
    """Return the row groups that are decoded together with the one that holds a row: enough for one batch."""
    group, start = 0, 0
    while True:
        together = [group]
        while sum(sizes[i] for i in together) < batch_size and together[-1] + 1 < len(sizes):
            together.append(together[-1] + 1)
        end = start + sum(sizes[i] for i in together)
        if row < end:
            return set(together)
        group, start = together[-1] + 1, end


@given(shapes, st.integers(1, 40), st.data())
@tmp_path_serves_all
def test_from_every_place_come_the_rest_of_the_rows_in_the_same_batches(
    tmp_path: Path, shape: list[list[int]], batch_size: int, data: st.DataObject
) -> None:
    paths = write(tmp_path, shape)
    whole = records(paths)
    batches, places = [], [whole.state_dict()]
    for table in whole.iter(batch_size):
        batches.append(rows_of(table))
        places.append(whole.state_dict())
    assert [row for batch in batches for row in batch] == list(range(sum(map(sum, shape))))
    assert max(map(len, batches)) <= batch_size
    index = data.draw(st.integers(0, len(batches)))
    resumed = records(paths)
    resumed.load_state_dict(dict(places[index]))
    assert [rows_of(table) for table in resumed.iter(batch_size)] == batches[index:]


@given(st.lists(st.integers(1, 30), min_size=2, max_size=8), st.integers(1, 40), st.data())
@tmp_path_serves_all
def test_a_resume_reads_the_row_groups_of_its_batch_and_no_other(
    tmp_path: Path, sizes: list[int], batch_size: int, data: st.DataObject
) -> None:
    [path] = write(tmp_path, [sizes])
    whole = records([path])
    places = {}
    for table in whole.iter(batch_size):
        places[rows_of(table)[0]] = rows_of(table)
    first = data.draw(st.sampled_from(sorted(places)))
    keep = needed(sizes, first, batch_size)
    scrawl(path, [i for i in range(len(sizes)) if i not in keep])
    resumed = records([path])
    resumed.load_state_dict({"file": 0, "row": first})
    assert rows_of(next(resumed.iter(batch_size))) == places[first]


def test_scrawled_row_groups_cannot_pass_for_read_ones(tmp_path: Path) -> None:
    [path] = write(tmp_path, [[10, 10, 10]])
    scrawl(path, [0])
    with pytest.raises(UnreadableFile, match=r"0\.parquet, after row 0: cannot be read: OSError: ."):
        rows_of(next(records([path]).iter(10)))
    resumed = records([path])
    resumed.load_state_dict({"file": 0, "row": 10})
    assert np.concatenate([rows_of(table) for table in resumed.iter(10)]).tolist() == list(range(10, 30))


def test_a_file_is_opened_when_its_rows_are_needed_and_not_before(tmp_path: Path) -> None:
    paths = write(tmp_path, [[4], [4], [4]])
    paths[0].write_bytes(b"")  # read already
    paths[2].write_bytes(b"")  # not reached yet
    tables = records(paths)
    tables.load_state_dict({"file": 1, "row": 2})
    assert rows_of(next(tables.iter(4))) == [6, 7]
