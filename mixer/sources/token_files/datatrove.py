"""datatrove's ``.ds``: bare token ids, beside them where documents end, what they are, and which count in the loss.

``.ds.index`` has the end of each document in ids, 64 bits each; ``.ds.metadata`` a line with the tokenizer and the
bytes of an id, and one with their number; ``.ds.loss`` a byte for each id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mixer.errors import ConfigError
from mixer.sources.token_files.base import DTYPES, Contiguous, first_fall, malformed, numbers, read_head
from mixer.types import IntArray

SIZES = {2: "uint16", 4: "uint32"}
METADATA_BYTES = 1 << 16


class DatatroveFile(Contiguous):
    """A ``.ds`` and what lies beside it.

    Args:
        path: of the ``.ds``.
        dtype: of the ids, if neither metadata nor index says it.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any] | None) -> None:
        read_head(path, 1)
        names = (path.with_name(f"{path.name}.{what}") for what in ("index", "metadata", "loss"))
        index, metadata, loss = (name if name.is_file() else None for name in names)
        size = path.stat().st_size
        said, count = _described(metadata) if metadata is not None else (None, None)
        self._ends = _Ends(index) if index is not None else None
        total = count if self._ends is None else self._ends.total
        if said is None and total:
            said = SIZES.get(size // total) if size % total == 0 else None
        if said is not None and dtype is not None and DTYPES[said] != dtype:
            raise ConfigError(f"{path}: its ids are {said}, but `dtype` is {dtype.name}; leave `dtype` out")
        found = dtype if said is None else DTYPES[said]
        if found is None:
            raise ConfigError(
                f"{path}: neither {path.name}.metadata nor .index says how its ids are stored; give `dtype`"
            )
        if total is None:
            total = size // found.itemsize
        beside = [file for file in (index, metadata) if file is not None]
        super().__init__(path, dtype=found, num_tokens=total, beside=beside)
        if metadata is not None and count != total:
            raise malformed(metadata, f"it counts {count:,} ids, but {path.name}.index ends at {total:,}")
        if loss is not None:
            if loss.stat().st_size != total:
                raise malformed(loss, f"it has {loss.stat().st_size:,} bytes for {total:,} ids")
            self.mask = loss

    @property
    def num_documents(self) -> int | None:
        """See ``TokenFile``."""
        return None if self._ends is None else self._ends.count

    def borders(self) -> IntArray | None:
        """See ``Contiguous``."""
        return None if self._ends is None else np.concatenate([[0], self._ends.read()])


class _Ends:
    """An index whose numbers rise; raises MalformedDataError for another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        size = path.stat().st_size
        if size % 8:
            raise malformed(path, f"its {size:,} bytes are no whole number of ends of 8 bytes")
        self.count = size // 8
        ends = numbers(path, "<i8", self.count, 0)
        fall = first_fall(ends)
        if fall is not None:
            raise malformed(path, f"document {fall:,} ends at {ends[fall]}, before the one before it")
        self.total = int(ends[-1]) if self.count else 0

    def read(self) -> IntArray:
        """Return all of them, int64 [documents]."""
        return numbers(self._path, "<i8", self.count, 0).astype(np.int64)


def _described(path: Path) -> tuple[str, int]:
    """Return the type and the number of ids that a metadata file says."""
    lines = read_head(path, METADATA_BYTES).decode("utf-8", errors="replace").splitlines()
    size = lines[0].rpartition("|")[2] if lines else ""
    if len(lines) < 2 or not size.isdecimal() or int(size) not in SIZES or not lines[1].strip().isdecimal():
        raise malformed(
            path, f"its first lines are {lines[:2]}, not TOKENIZER|BYTES with 2 or 4 bytes, and the number of ids"
        )
    return SIZES[int(size)], int(lines[1])
