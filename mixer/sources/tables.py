"""Parquet and Arrow files as tables of a few hundred rows, in the thread that asks.

`datasets` reads Parquet through Python file objects in Arrow's own threads, whole row groups ahead: 1.5 times as slow
for files of this machine. To resume, row groups and record batches before the place are skipped, those of Parquet
unread.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mixer.sources.batches import Batch, Position, UnreadableFile

BUFFER_BYTES = 1 << 20  # read from disk at once for each column; larger is not faster, smaller is slower on a cold disk
ARROW_FILE = b"ARROW1"  # what a file of Arrow begins with; a stream has no such mark


@dataclass(frozen=True)
class TableFile:
    """One file to be read, and what of it.

    Args:
        name: for messages.
        source: its path on this machine, or an open stream that can seek.
        columns: the needed ones.
        num_rows: in a batch, at most.
    """

    name: str
    source: Any
    columns: Sequence[str]
    num_rows: int


def read_parquet(file: TableFile, position: Position) -> Iterator[tuple[Batch, Position]]:
    """Yield the rows of a Parquet file; which go together does not depend on where it began."""
    row = position.get("row", 0)
    is_here = isinstance(file.source, str)
    try:
        with pq.ParquetFile(file.source, buffer_size=BUFFER_BYTES if is_here else 0, pre_buffer=False) as parquet:
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
            borders = np.cumsum([0, *sizes])
            names = parquet.schema_arrow.names
            columns = [name for name in file.columns if name in names] or names[:1]
            for groups, start, end in _runs(sizes, file.num_rows):
                if end <= row:
                    continue
                first = start
                for batch in parquet.iter_batches(file.num_rows, row_groups=groups, columns=columns, use_threads=False):
                    first, begin = first + len(batch), first
                    if first > row:
                        table = pa.Table.from_batches([batch.slice(row - begin)]).select(columns)
                        yield _batch(file, table, row, names, borders), {"row": first}
                        row = first
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error, f"after row {row}") from error


def read_arrow(file: TableFile, position: Position) -> Iterator[tuple[Batch, Position]]:
    """Yield the rows of an Arrow file or stream."""
    row = position.get("row", 0)
    try:
        with pa.OSFile(file.source) if isinstance(file.source, str) else pa.PythonFile(file.source, mode="r") as source:
            if not source.size():
                return
            is_file = source.read(len(ARROW_FILE)) == ARROW_FILE
            source.seek(0)
            open_source = pa.ipc.open_file if is_file else pa.ipc.open_stream
            names = open_source(source).schema.names
            fields = [names.index(name) for name in file.columns if name in names]
            source.seek(0)
            reader = open_source(source, options=pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False))
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
            end = 0
            for batch in batches:
                start, end = end, end + len(batch)
                while row < end:
                    part = batch.slice(row - start, file.num_rows)
                    table = pa.Table.from_batches([part])
                    yield _batch(file, table, row, names), {"row": row + len(part)}
                    row += len(part)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error, f"after row {row}") from error


def _batch(file: TableFile, table: pa.Table, first: int, names: list[str], borders: Any = None) -> Batch:
    def place(i: int) -> str:
        row = first + i
        if borders is None:
            return f"{file.name}, row {row + 1}"
        group = int(np.searchsorted(borders, row, side="right")) - 1
        return f"{file.name}, row group {group}, row {row - int(borders[group]) + 1}"

    return Batch(table, table.num_rows, place, file.name, names=names)


def _unreadable(file: TableFile, error: Exception, where: str) -> Exception:
    """Return what is wrong with a file; faults of a network stay what they are."""
    is_of_file = isinstance(file.source, str) or isinstance(error, pa.ArrowException)
    if isinstance(error, FileNotFoundError) or not is_of_file:
        return error
    return UnreadableFile(f"{file.name}, {where}: cannot be read: {type(error).__name__}: {error}")


def _runs(sizes: Sequence[int], num_rows: int) -> Iterator[tuple[list[int], int, int]]:
    """Yield row groups that are decoded together, ``num_rows`` rows or more, with the rows where they begin and end."""
    groups: list[int] = []
    start = 0
    for i, end in enumerate(itertools.accumulate(sizes)):
        groups.append(i)
        if end - start >= num_rows or i + 1 == len(sizes):
            yield groups, start, end
            groups, start = [], end
