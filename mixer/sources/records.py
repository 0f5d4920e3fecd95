"""The records of some files in order, read by readers of our own; what ``Stream`` reads where `datasets` is not needed.

Only the needed columns are read. A file's other columns, their types and their order never matter, nor do files without
records.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self

from mixer.config.sources import SampleBy
from mixer.sources.batches import Batch, Position, UnreadableFile
from mixer.sources.blocks import TextFile
from mixer.sources.compression import CompressionError, compression_of, decompressed
from mixer.sources.csv_files import read_csv, read_tsv
from mixer.sources.json_files import read_json
from mixer.sources.tables import TableFile, read_arrow, read_parquet
from mixer.sources.text_files import read_text

TEXT_READERS = {"json": read_json, "csv": read_csv, "tsv": read_tsv, "text": read_text}
TABLE_READERS = {"parquet": read_parquet, "arrow": read_arrow}


@dataclass(frozen=True)
class DataFile:
    """One file of a source.

    Args:
        name: its path or address.
        kind: how it is read, a key of the readers.
        remote: opens it if it is not of this machine.
        sample_by: of plain text: what a record is.
        field: of JSON: the key under which the records are.
    """

    name: str
    kind: str
    remote: Callable[[str], BinaryIO] | None = None
    sample_by: SampleBy = "paragraph"
    field: str | None = None

    def open(self) -> BinaryIO:
        """Return what is in it, decompressed."""
        raw = Path(self.name).open("rb") if self.remote is None else self.remote(self.name)  # noqa: SIM115
        suffix = compression_of(self.name.partition("?")[0] if self.remote else self.name)
        try:
            return raw if suffix is None else decompressed(raw, suffix)
        except BaseException:
            raw.close()
            raise

    @property
    def size(self) -> int | None:
        """Its bytes as they are stored; None if it is not of this machine."""
        return None if self.remote is not None else Path(self.name).stat().st_size


class FileRecords:
    """The records of some files in order.

    Args:
        files: at least one.
        columns: those that are needed.
        keeps_spelling: whether numbers are looked at, so that they must be as the files have them.
    """

    def __init__(self, files: Sequence[DataFile], columns: Sequence[str] = (), *, keeps_spelling: bool = True) -> None:
        self._files = tuple(files)
        self._columns = tuple(columns)
        self._keeps_spelling = keeps_spelling
        self._position: Position = {}

    @property
    def num_shards(self) -> int:
        """How many files there are."""
        return len(self._files)

    @property
    def kinds(self) -> set[str]:
        """How the files are read."""
        return {file.kind for file in self._files}

    @property
    def column_names(self) -> None:
        """Not known: each file has its own, which every batch tells."""
        return

    def shard(self, num_shards: int, index: int, *, contiguous: bool) -> Self:
        """Return one reader's files: every ``num_shards``-th."""
        assert not contiguous
        return type(self)(self._files[index::num_shards], self._columns, keeps_spelling=self._keeps_spelling)

    def narrowed(self, columns: Sequence[str], *, keeps_spelling: bool) -> Self:
        """Return the same records with these columns alone."""
        return type(self)(self._files, columns, keeps_spelling=keeps_spelling)

    def state_dict(self) -> Position:
        """Return the place after the newest batch."""
        return self._position

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin the next iteration at a place; an empty one is the beginning."""
        self._position = dict(state)

    def iter(self, batch_size: int) -> Iterator[Batch]:
        """Yield batches, those of tables of up to ``batch_size`` rows; they do not depend on where it began."""
        first = self._position.get("file", 0)
        at = {key: value for key, value in self._position.items() if key not in ("file", "before")}
        for number in range(first, len(self._files)):
            before = self._before[number]
            for batch, after in self._read(self._files[number], at, batch_size):
                batch.start = {"file": number, "before": before, **at}
                at = after
                self._position = {"file": number, "before": before, **after}
                if batch.num_rows:
                    yield batch
            at = {}

    def has_read(self, position: Mapping[str, Any], offset: int, digest: str | None) -> bool:
        """Return whether all that was read up to a place is unchanged, which is known of files of text alone.

        Args:
            position: where a batch begins.
            offset: records of that batch that were read.
            digest: of the file up to them, if there are any.
        """
        number = position.get("file", 0)
        if not position or number >= len(self._files) or position.get("before") != self._before[number]:
            return not position and not offset
        wanted = {key: value for key, value in position.items() if key not in ("file", "before")}
        at: Position = {}
        if wanted or offset:
            for batch, after in self._read(self._files[number], at, 1):
                if at == wanted and offset:
                    return digest is not None and batch.digest(offset) == digest
                if at == wanted:
                    break
                at = after
        return at == wanted and not offset and self._files[number].kind in TEXT_READERS

    @cached_property
    def _before(self) -> list[str]:
        """For each file, the digest of the names of all and of the sizes of those before it, hex [16]."""
        digest = hashlib.blake2b(json.dumps([Path(file.name).name for file in self._files]).encode(), digest_size=8)
        found = []
        for file in self._files:
            found.append(digest.hexdigest())
            digest.update(f"{file.size} ".encode())
        return found

    def _read(self, file: DataFile, at: Position, batch_size: int) -> Iterator[tuple[Batch, Position]]:
        try:
            if file.kind in TEXT_READERS:
                with file.open() as stream:
                    text = TextFile(file.name, stream, self._columns, self._keeps_spelling, file.sample_by, file.field)
                    for batch, at in TEXT_READERS[file.kind](text, at):  # noqa: B020  # where it got to
                        yield batch, at
                return
            source: Any = file.name
            if compression_of(file.name):
                with file.open() as stream:
                    source = io.BytesIO(stream.read())  # it must seek
            elif file.remote is not None:
                source = file.open()
            yield from TABLE_READERS[file.kind](TableFile(file.name, source, self._columns, batch_size), at)
        except CompressionError as error:
            line = f", after line {at['line'] - 1}" if at.get("line", 1) > 1 else ""
            raise UnreadableFile(f"{file.name}{line}: {error}") from error
        except OSError as error:
            if file.remote is not None or isinstance(error, FileNotFoundError):
                raise
            raise UnreadableFile(f"{file.name}: cannot be read: {error.strerror or error}") from error
