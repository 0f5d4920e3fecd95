"""Files of CSV and TSV record by record; values are those that Python's own `csv` gives."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from typing import Any, BinaryIO

from mixer.sources import blocks
from mixer.sources.batches import Batch, Position, UnreadableFile
from mixer.sources.blocks import Mark, Read, TextFile, batch_of, skip
from mixer.sources.values import Cell

FIELD_BYTES = 1 << 30
UNTERMINATED = "a quote that is opened here is never closed"

csv.field_size_limit(max(csv.field_size_limit(), FIELD_BYTES))  # documents are longer than Python's 128 KiB


def read_csv(file: TextFile, position: Position, *, delimiter: str = ",") -> Iterator[Read]:
    """Yield the records of a file of CSV, whose first one names the columns; a value is text, as it is spelled."""
    lines = _CsvLines(file.stream)
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        header = next((row for row in reader if row), None)
    except csv.Error as error:
        raise UnreadableFile(f"{file.name}, line 1: not CSV: {error}") from error
    if header is None:
        return
    if lines.has_ended:
        raise UnreadableFile(f"{file.name}, line 1: {UNTERMINATED}")
    _check_header(file, header)
    mark = Mark.of(position)
    if position:
        lines.skip_to(mark.byte)
    else:
        mark = mark.after(lines.taken())
    while (read := _csv_batch(file, header, lines, reader, mark)) is not None:
        batch, mark = read
        yield batch, mark.position()


def read_tsv(file: TextFile, position: Position) -> Iterator[Read]:
    """Yield the records of a file of CSV with tabs."""
    return read_csv(file, position, delimiter="\t")


class _CsvLines(Iterator[str]):
    """The lines of a stream for ``csv.reader``, which takes no more of them than a record needs."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lines: Iterator[bytes] = iter(())
        self._rest = b""  # the beginning of a line
        self._taken: list[bytes] = []
        self._is_first = True
        self.has_ended = False  # whether a line was asked for after the last one
        self.num_bytes = 0  # of the lines that were taken

    def __next__(self) -> str:
        while (line := next(self._lines, None)) is None:
            data = self._stream.read(max(blocks.BLOCK_BYTES, len(self._rest)))
            lines = (self._rest + data).splitlines(keepends=True)
            if not lines:
                self.has_ended = True
                raise StopIteration
            is_whole = not data or lines[-1].endswith(b"\n")
            self._rest = b"" if is_whole else lines.pop()
            self._lines = iter(lines)
        self._taken.append(line)
        self.num_bytes += len(line)
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(codecs.BOM_UTF8)
        return line.decode(errors="surrogateescape")  # so that the bytes are found in the values that they are in

    def taken(self) -> bytes:
        """Return what was taken since this was called last."""
        taken = b"".join(self._taken)
        self._taken.clear()
        return taken

    def skip_to(self, byte: int) -> None:
        """Let the next line begin at a byte that is not before what was taken."""
        left = byte - self.num_bytes
        while left > 0:
            line = next(self._lines, None)
            if line is None:
                rest, self._rest = self._rest, b""
                skip(self._stream, left - len(rest))
                break
            left -= len(line)
        self.num_bytes = byte
        self.taken()


def _csv_batch(
    file: TextFile, header: list[str], lines: _CsvLines, reader: Any, mark: Mark
) -> tuple[Batch, Mark] | None:
    """Return the next records and where those after them begin; None at the end."""
    index = [header.index(name) if name in header else None for name in file.columns]
    starts, rows, bad = list[int](), list[list[str]](), dict[int, str]()
    while lines.num_bytes - mark.byte < blocks.BLOCK_BYTES:
        start = lines.num_bytes
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            row, bad[len(rows)] = [""] * len(header), f"not CSV: {error}"
        if not row:
            continue  # a blank line
        if lines.has_ended:
            bad[len(rows)] = UNTERMINATED
        elif len(row) != len(header):
            bad[len(rows)] = f"has {len(row)} values, but the header names {len(header)} columns"
        starts.append(start - mark.byte)
        rows.append(row)
    block = lines.taken()
    if not block:
        return None
    for i in bad:
        rows[i] = [""] * len(header)
    columns: dict[str, list[Any]] = {}
    for name, k in zip(file.columns, index, strict=True):
        if k is not None:
            values = [row[k] for row in rows]
            _find_bytes(values, bad)
            columns[name] = [Cell(value) for value in values] if file.keeps_spelling else values
    return batch_of(file, mark, block, starts, columns, bad=bad, names=header), mark.after(block)


def _check_header(file: TextFile, header: list[str]) -> None:
    twice = [name for name in file.columns if header.count(name) > 1]
    if twice:
        raise UnreadableFile(f"{file.name}, line 1: the header names {twice[0]!r} {header.count(twice[0])} times")


def _find_bytes(values: list[str], bad: dict[int, str]) -> None:
    """Mark the records whose value has bytes that are no text."""
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        for i, value in enumerate(values):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                bad.setdefault(i, f"not UTF-8 (byte 0x{ord(value[error.start]) - 0xDC00:02x})")
                values[i] = ""
