"""Blocks of whole records of a file of text: where they begin and end, and what a batch of them says of its place.

Where a block ends depends only on where it begins, so that a reader that goes on at the beginning of a block gives the
batches that one from the beginning of the file gives.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import xxhash

from mixer.config.sources import SampleBy
from mixer.sources.batches import Batch, Position

BLOCK_BYTES = 64 << 10


@dataclass(frozen=True)
class TextFile:
    """One file to be read, and what of it.

    Args:
        name: for messages.
        stream: its text, from the beginning.
        columns: the needed ones.
        keeps_spelling: whether numbers are looked at, so that they must be as the file has them.
        sample_by: of plain text: what a record is.
        field: of JSON: the key of one object under which the records are; None where the file has nothing else.
    """

    name: str
    stream: BinaryIO
    columns: Sequence[str]
    keeps_spelling: bool = True
    sample_by: SampleBy = "paragraph"
    field: str | None = None


@dataclass(frozen=True)
class Mark:
    """Where a block begins: its byte, its line, from 1, and the digest of all before it."""

    byte: int = 0
    line: int = 1
    digest: int = 0
    form: str = ""

    @classmethod
    def of(cls, position: Position) -> Mark:
        """Return the mark that a position names; an empty one is the beginning."""
        if not position:
            return cls()
        return cls(position["byte"], position["line"], int(position["digest"], 16), position["form"])

    def position(self) -> Position:
        """Return the mark as plain data."""
        return {"byte": self.byte, "line": self.line, "digest": f"{self.digest:016x}", "form": self.form}

    def after(self, block: bytes) -> Mark:
        """Return where the next block begins."""
        line = self.line + num_lines(block)
        return Mark(self.byte + len(block), line, xxhash.xxh3_64_intdigest(block, seed=self.digest), self.form)


Read = tuple[Batch, Position]  # records, and where the next begin


def whole_records(stream: BinaryIO, cut: Callable[[bytes], int], data: bytes = b"") -> Iterator[bytes]:
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


def batch_of(
    file: TextFile, mark: Mark, block: bytes, starts: Sequence[int], columns: dict[str, list[Any]], **options: Any
) -> Batch:
    """Return the records of a block as a batch that knows the line and the digest of each."""

    def place(row: int) -> str:
        return f"{file.name}, line {mark.line + num_lines(block[: starts[row]])}"

    def digest(row: int) -> str:
        read = block[: starts[row]] if row < len(starts) else block
        return f"{xxhash.xxh3_64_intdigest(read, seed=mark.digest):016x}" if read else f"{mark.digest:016x}"

    return Batch(columns, len(starts), place, file.name, digest=digest, **options)


def skip(stream: BinaryIO, num_bytes: int) -> None:
    """Go so many bytes on, reading them where the stream cannot seek."""
    if stream.seekable():
        stream.seek(num_bytes, 1)
        return
    while num_bytes > 0 and (data := stream.read(min(num_bytes, 1 << 20))):
        num_bytes -= len(data)


def num_lines(data: bytes) -> int:
    """Return how many line breaks there are, of any of the three forms."""
    return data.count(b"\n") + data.replace(b"\r\n", b"").count(b"\r") if b"\r" in data else data.count(b"\n")


def has_mark(block: bytes) -> bool:
    """Whether a block begins with a byte order mark."""
    return block.startswith(codecs.BOM_UTF8)
