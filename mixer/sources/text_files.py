"""Files of text record by record: JSON lines and other JSON, CSV, and plain text by paragraphs.

A file is read in blocks of whole records. Where a block ends depends only on where it begins, so that a reader that
goes on at the beginning of a block gives the batches that one from the beginning of the file gives. Values are those
that Python's own `json` and `csv` give of one record at a time; of JSON only numbers that are looked at (in templates
and ``where``) are decoded by the slower of two decoders, which keeps them as they are spelled.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, BinaryIO

import orjson
import xxhash

from mixer.sources.batches import Batch, Position, UnreadableFile
from mixer.sources.values import DECODER, Cell

BLOCK_BYTES = 64 << 10
FIELD_BYTES = 1 << 30
SPACE = re.compile(r"[ \t\n\r]*")
PARAGRAPH_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
EXCERPT = 60
UNTERMINATED = "a quote that is opened here is never closed"

csv.field_size_limit(max(csv.field_size_limit(), FIELD_BYTES))  # documents are longer than Python's 128 KiB


@dataclass(frozen=True)
class TextFile:
    """One file to be read, and what of it.

    Args:
        name: for messages.
        stream: its text, from the beginning.
        columns: the needed ones.
        keeps_spelling: whether numbers are looked at, so that they must be as the file has them.
    """

    name: str
    stream: BinaryIO
    columns: Sequence[str]
    keeps_spelling: bool = True


@dataclass(frozen=True)
class _Mark:
    """Where a block begins: its byte, its line, from 1, and the digest of all before it."""

    byte: int = 0
    line: int = 1
    digest: int = 0
    form: str = ""

    @classmethod
    def of(cls, position: Position) -> _Mark:
        if not position:
            return cls()
        return cls(position["byte"], position["line"], int(position["digest"], 16), position["form"])

    def position(self) -> Position:
        return {"byte": self.byte, "line": self.line, "digest": f"{self.digest:016x}", "form": self.form}

    def after(self, block: bytes) -> _Mark:
        """Return where the next block begins."""
        line = self.line + _num_lines(block)
        return _Mark(self.byte + len(block), line, xxhash.xxh3_64_intdigest(block, seed=self.digest), self.form)


Read = tuple[Batch, Position]  # records, and where the next begin


def read_json(file: TextFile, position: Position) -> Iterator[Read]:
    """Yield the records of a file of JSON lines, of one array, or of objects that go over several lines each."""
    mark, head = _Mark.of(position), b""
    if position:
        _skip(file.stream, mark.byte)
    else:
        head = file.stream.read(BLOCK_BYTES)
        form = _form(head)
        if form is None:
            rest = file.stream.read()
            form = "objects" if _begins_with_object(head + rest) else "lines"
            file = replace(file, stream=io.BytesIO(rest))
        mark = _Mark(form=form)
    if mark.form == "lines":
        yield from _json_lines(file, mark, head)
    else:
        yield from _json_values(file, mark, head + file.stream.read())


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
    mark = _Mark.of(position)
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


def read_text(file: TextFile, position: Position) -> Iterator[Read]:
    """Yield the paragraphs of a file of plain text, the pieces between blank lines, as records of one column."""
    mark = _Mark.of(position)
    _skip(file.stream, mark.byte)
    for block in _blocks(file.stream, _end_of_paragraphs):
        starts, pieces, start = [], [], len(codecs.BOM_UTF8) if not mark.byte and _has_mark(block) else 0
        for end in [*PARAGRAPH_END.finditer(block), None]:
            piece = block[start : end.start() if end else len(block)]
            if b"\r" in piece:
                piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if piece.strip(b"\n"):
                starts.append(start)
                pieces.append(piece)
            start = end.end() if end else len(block)
        bad: dict[int, str] = {}
        texts = [_decoded(piece, i, bad) for i, piece in enumerate(pieces)]
        columns = {"text": texts} if "text" in file.columns else {}
        yield (
            _batch(file, mark, block, starts, columns, bad=bad, names=["text"]),
            (mark := mark.after(block)).position(),
        )


# -- JSON ------------------------------------------------------------------------------------------------------------


def _json_lines(file: TextFile, mark: _Mark, head: bytes) -> Iterator[Read]:
    load: Callable[[bytes], Any] = _spelled if file.keeps_spelling else orjson.loads
    for block in _blocks(file.stream, lambda data: data.rfind(b"\n") + 1, head):
        lines = block.split(b"\n")
        starts = [0, *accumulate(len(line) + 1 for line in lines)]
        if not mark.byte and _has_mark(block):
            lines[0] = lines[0][len(codecs.BOM_UTF8) :]
        if not lines[-1]:
            del lines[-1]
        del starts[len(lines) :]
        try:
            records = list(map(load, lines))
            columns = {name: [record[name] for record in records] for name in file.columns}
            batch = _batch(file, mark, block, starts, columns)
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            batch = _json_batch(file, mark, block, *_one_by_one(lines, starts, load))
        yield batch, (mark := mark.after(block)).position()


def _one_by_one(
    lines: list[bytes], starts: list[int], load: Callable[[bytes], Any]
) -> tuple[list[int], list[Any], dict[int, str]]:
    """Return where records begin, the records, and why some cannot be read."""
    kept, records, bad = [], [], dict[int, str]()
    for start, line in zip(starts, lines, strict=True):
        if not line.strip():
            continue
        kept.append(start)
        try:
            try:
                records.append(load(line))
            except ValueError:
                records.append(_spelled(line))  # which reads what Python's own reads, and says why not
        except (ValueError, RecursionError) as error:
            bad[len(records)] = _reason(error, line.decode(errors="replace"))
            records.append(None)
    return kept, records, bad


def _spelled(line: bytes) -> Any:
    return DECODER.decode(line.decode())


def _json_batch(
    file: TextFile, mark: _Mark, block: bytes, starts: list[int], records: list[Any], bad: dict[int, str]
) -> Batch:
    """Return records that need not be objects, nor have every column; a column that is missing is null."""
    names: dict[str, None] = {}
    for i, record in enumerate(records):
        if isinstance(record, dict):
            names.update(dict.fromkeys(record))
        else:
            bad.setdefault(i, f"not a JSON object: {_excerpt(json.dumps(record, ensure_ascii=False))}")
            records[i] = {}
    columns = {name: [record.get(name) for record in records] for name in file.columns}
    return _batch(file, mark, block, starts, columns, bad=bad, names=[*names] if names else None, is_open=True)


def _form(head: bytes) -> str | None:
    """Return whether a file is an ``array`` or ``lines``, or None if its first line alone does not say."""
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if text.startswith(b"["):
        return "array"
    first, _, rest = text.partition(b"\n")
    if not text.startswith(b"{") or not rest.strip():
        return "lines"
    try:
        _spelled(first)
    except (ValueError, RecursionError):
        return None
    return "lines"


def _begins_with_object(data: bytes) -> bool:
    text = data.removeprefix(codecs.BOM_UTF8).decode(errors="replace").lstrip()
    try:
        DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json_values(file: TextFile, mark: _Mark, data: bytes) -> Iterator[Read]:
    """Yield the values of an array, or one object after the other, from where the next value begins to the end."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = mark.line + _num_lines(data[: error.start])
        raise UnreadableFile(f"{file.name}, line {line}: not UTF-8 ({error.reason} at byte {error.start})") from error
    start = 0
    at = 1 if not mark.byte and text.startswith("\ufeff") else 0
    values = _values(text, at, is_array=mark.form == "array", is_begun=mark.byte > 0)
    is_at_end = False
    while not is_at_end:
        starts, records, byte, end = list[int](), list[Any](), 0, start
        failure: tuple[str, int] | None = None
        while end - start < BLOCK_BYTES:
            try:
                found, value, following = next(values)
            except StopIteration:
                is_at_end, following = True, len(text)
                break
            except json.JSONDecodeError as error:
                failure, following = (f"not JSON ({error.msg} at column {error.colno})", error.pos), end
                break
            except RecursionError:
                failure, following = ("nested too deeply", end), end
                break
            byte += len(text[end:found].encode())
            starts.append(byte)
            byte += len(text[found:following].encode())
            records.append({"text": value} if isinstance(value, str) and mark.form == "array" else value)
            end = following
        block = text[start:end].encode()
        if records:
            batch = _json_batch(file, mark, block, starts, records, {})
            yield batch, (mark := mark.after(block)).position()
        if failure is not None:
            reason, where = failure
            line = mark.line + _num_lines(text[end:where].encode())
            raise UnreadableFile(f"{file.name}, line {line}: {reason}: {_excerpt(text[where:].partition(chr(10))[0])}")
        start = end


def _values(text: str, at: int, *, is_array: bool, is_begun: bool) -> Iterator[tuple[int, Any, int]]:
    """Yield each value with where it begins and where what follows it begins.

    Raises:
        json.JSONDecodeError: text that is not JSON.
    """
    if is_begun and at == len(text):
        return
    if is_array and not is_begun:
        at = text.index("[") + 1
        is_empty = text[_after_space(text, at) :].startswith("]")
        if is_empty:
            _check_end(text, text.index("]") + 1)
            return
    while True:
        at = _after_space(text, at)
        if not is_array and at == len(text):
            return
        value, end = DECODER.raw_decode(text, at)
        end = _after_space(text, end)
        if is_array:
            mark = text[end : end + 1]
            if mark not in (",", "]") or not mark:
                raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
            end += 1
            if mark == "]":
                _check_end(text, end)
                yield at, value, len(text)
                return
        yield at, value, end
        at = end


def _after_space(text: str, at: int) -> int:
    match = SPACE.match(text, at)
    assert match is not None
    return match.end()


def _check_end(text: str, at: int) -> None:
    at = _after_space(text, at)
    if at < len(text):
        raise json.JSONDecodeError("Extra data", text, at)


# -- CSV -------------------------------------------------------------------------------------------------------------


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
            data = self._stream.read(max(BLOCK_BYTES, len(self._rest)))
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
                _skip(self._stream, left - len(rest))
                break
            left -= len(line)
        self.num_bytes = byte
        self.taken()


def _csv_batch(
    file: TextFile, header: list[str], lines: _CsvLines, reader: Any, mark: _Mark
) -> tuple[Batch, _Mark] | None:
    """Return the next records and where those after them begin; None at the end."""
    index = [header.index(name) if name in header else None for name in file.columns]
    starts, rows, bad = list[int](), list[list[str]](), dict[int, str]()
    while lines.num_bytes - mark.byte < BLOCK_BYTES:
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
    return _batch(file, mark, block, starts, columns, bad=bad, names=header), mark.after(block)


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


# -- blocks ----------------------------------------------------------------------------------------------------------


def _blocks(stream: BinaryIO, cut: Callable[[bytes], int], data: bytes = b"") -> Iterator[bytes]:
    """Yield what a stream has in pieces of whole records.

    Args:
        stream: where it is read on.
        cut: returns how many bytes of some data are whole records.
        data: read already.
    """
    size = BLOCK_BYTES
    while True:
        if len(data) < size:
            data += stream.read(size - len(data))
        is_end = len(data) < size
        end = len(data) if is_end else cut(data[:size])
        if end:
            yield data[:end]
            data, size = data[end:], BLOCK_BYTES
        elif not is_end:
            size *= 2
        if is_end:
            return


def _end_of_paragraphs(data: bytes) -> int:
    """Return where the last paragraph that has surely ended ends: a line break may be the first half of one."""
    ends = [match.end() for match in PARAGRAPH_END.finditer(data) if match.end() < len(data)]
    return ends[-1] if ends else 0


def _batch(
    file: TextFile, mark: _Mark, block: bytes, starts: Sequence[int], columns: dict[str, list[Any]], **options: Any
) -> Batch:
    def place(row: int) -> str:
        return f"{file.name}, line {mark.line + _num_lines(block[: starts[row]])}"

    def digest(row: int) -> str:
        read = block[: starts[row]] if row < len(starts) else block
        return f"{xxhash.xxh3_64_intdigest(read, seed=mark.digest):016x}" if read else f"{mark.digest:016x}"

    return Batch(columns, len(starts), place, file.name, digest=digest, **options)


def _skip(stream: BinaryIO, num_bytes: int) -> None:
    if stream.seekable():
        stream.seek(num_bytes, 1)
        return
    while num_bytes > 0 and (data := stream.read(min(num_bytes, 1 << 20))):
        num_bytes -= len(data)


def _num_lines(data: bytes) -> int:
    return data.count(b"\n") + data.replace(b"\r\n", b"").count(b"\r") if b"\r" in data else data.count(b"\n")


def _has_mark(block: bytes) -> bool:
    return block.startswith(codecs.BOM_UTF8)


def _decoded(piece: bytes, i: int, bad: dict[int, str]) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError as error:
        bad[i] = f"not UTF-8 ({error.reason} at byte {error.start} of the paragraph)"
        return ""


def _reason(error: Exception, line: str) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason} at byte {error.start})"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno}): {_excerpt(line)}"
    return f"not JSON ({error}): {_excerpt(line)}"


def _excerpt(text: str) -> str:
    text = text.strip()
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"
