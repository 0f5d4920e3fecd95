"""OLMo's and dolma's ``.npy``: bare token ids, no NumPy file, and a ``.csv.gz`` with the documents' places in them.

A line of the table is start, end, id, source and place of a document. Label masks are files of a byte for each id.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixer.errors import ConfigError
from mixer.sources.token_files.base import DTYPES, Contiguous, malformed, read_head
from mixer.types import IntArray

NUMPY_MAGIC = b"\x93NUMPY"
SIZES = {2: "uint16", 4: "uint32"}
LINE_CHARACTERS = 1 << 17


class OlmoFile(Contiguous):
    """A ``.npy`` without a header, and its ``.csv.gz`` if there is one.

    Args:
        path: of the ``.npy``.
        dtype: of the ids; by default what the table's last end and the file's size say.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any] | None) -> None:
        if read_head(path, len(NUMPY_MAGIC)) == NUMPY_MAGIC:
            raise ConfigError(
                f"{path}: a file that numpy.save wrote, with a header; write bare ids with ndarray.tofile"
            )
        table = path.with_suffix(".csv.gz")
        self._table = table if table.is_file() else None
        size = path.stat().st_size
        if dtype is None:
            if self._table is None:
                raise ConfigError(
                    f"{path}: no {table.name} says how its ids are stored; give `dtype: uint16` or uint32"
                )
            total = int(self._ends[-1])
            kind = SIZES.get(size // total) if total and size % total == 0 else None
            if kind is None:
                raise malformed(self._table, f"its documents end at id {total:,}, but {path.name} has {size:,} bytes")
            dtype = DTYPES[kind]
        if size % dtype.itemsize:
            raise malformed(path, f"its {size:,} bytes are no whole number of ids of {dtype.itemsize} bytes")
        beside = [] if self._table is None else [self._table]
        super().__init__(path, dtype=dtype, num_tokens=size // dtype.itemsize, beside=beside)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_ends"}

    @property
    def num_documents(self) -> int | None:
        """See ``TokenFile``."""
        return None if self._table is None else len(self._ends) - 1

    def borders(self) -> IntArray | None:
        """See ``Contiguous``."""
        if self._table is None:
            return None
        if self._ends[-1] != self.num_tokens:
            raise malformed(
                self._table, f"its documents end at id {self._ends[-1]:,}, but {self.path.name} has {self.num_tokens:,}"
            )
        return self._ends

    @cached_property
    def _ends(self) -> IntArray:
        """The end of each document, 0 before the first, int64 [documents + 1]."""
        assert self._table is not None
        ends = [0]
        try:
            with gzip.open(self._table, "rt", encoding="utf-8", newline="") as file:
                for number, row in enumerate(csv.reader(_lines(file, self._table))):
                    if len(row) < 2 or not (row[0].isdecimal() and row[1].isdecimal()):
                        raise malformed(self._table, f"document {number:,} is {row[:2]}, not its start and end")
                    start, end = int(row[0]), int(row[1])
                    if start != ends[-1] or end < start or end > 2**62:
                        raise malformed(
                            self._table,
                            f"document {number:,} lies from {start} to {end}, but the one before it ends at {ends[-1]}",
                        )
                    if end > start:
                        ends.append(end)
        except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
            raise malformed(self._table, f"it cannot be read after document {len(ends) - 2:,}: {error}") from error
        return np.array(ends, dtype=np.int64)


def _lines(file: Any, path: Path) -> Iterator[str]:
    while line := file.readline(LINE_CHARACTERS):
        if len(line) == LINE_CHARACTERS:
            raise malformed(path, f"a line of it has more than {LINE_CHARACTERS:,} characters")
        yield line
