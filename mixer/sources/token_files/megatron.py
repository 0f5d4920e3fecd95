"""Megatron's indexed data sets: ``NAME.bin`` holds bare token ids, ``NAME.idx`` the length and place of each sequence.

Layout of the index (Megatron-LM, core/datasets/indexed_dataset.py): 9 bytes of magic, version, type of the ids, number
of sequences, number of documents plus 1; then lengths, byte offsets, and borders of documents counted in sequences.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from mixer.sources.token_files.base import DTYPES, Contiguous, chunks, first_fall, malformed, numbers, read_head
from mixer.types import IntArray

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
CODES = {1: "uint8", 4: "int32", 5: "int64", 8: "uint16"}
OTHER_CODES = {2: "int8", 3: "int16", 6: "float64", 7: "float32"}  # in which nobody's vocabulary is stored
SUFFIXES = (".bin", ".idx")


def pair(path: Path) -> tuple[Path, Path]:
    """Return the index and the ids of a pair, of which either is given, or what both names begin with."""
    prefix = path.with_suffix("") if path.suffix in SUFFIXES else path
    return prefix.with_name(f"{prefix.name}.idx"), prefix.with_name(f"{prefix.name}.bin")


class MegatronFile(Contiguous):
    """A pair of ``.bin`` and ``.idx``.

    Args:
        path: either of them, or what both begin with.

    Raises:
        MissingDataError: one of the two is not there.
        MalformedDataError: an index that is torn or of another kind, or that does not fit the ids.
    """

    def __init__(self, path: Path) -> None:
        self._index, ids = pair(path)
        head = read_head(self._index, HEADER.size)
        read_head(ids, 1)
        if len(head) < HEADER.size or not head.startswith(MAGIC):
            raise malformed(
                self._index, f"it begins with {head[:9]!r}, not with {MAGIC!r} as an index of Megatron does"
            )
        _, version, code, self._num_sequences, num_borders = HEADER.unpack(head)
        if version != 1:
            raise malformed(self._index, f"it is of version {version}, and version 1 is known")
        if code not in CODES:
            kind = OTHER_CODES.get(code, "unknown")
            raise malformed(self._index, f"its ids are of type {code} ({kind}); known: {CODES}")
        self._num_borders = num_borders
        dtype = DTYPES[CODES[code]]
        self._lengths_at = HEADER.size
        self._offsets_at = self._lengths_at + 4 * self._num_sequences
        self._borders_at = self._offsets_at + 8 * self._num_sequences
        end, size = self._borders_at + 8 * num_borders, self._index.stat().st_size
        if size not in (end, end + self._num_sequences):  # a byte of mode for each sequence may follow
            raise malformed(
                self._index,
                f"it has {size:,} bytes, but an index of {self._num_sequences:,} sequences and {num_borders - 1:,} "
                f"documents has {end:,}",
            )
        num_tokens = self._checked_tokens(dtype.itemsize)
        self._check_borders()
        super().__init__(ids, dtype=dtype, num_tokens=num_tokens, beside=[self._index])

    @property
    def num_documents(self) -> int:
        """See ``TokenFile``."""
        return max(0, int(self._num_borders) - 1)

    def borders(self) -> IntArray:
        """See ``Contiguous``."""
        ends = np.concatenate([[0], np.cumsum(self._lengths(), dtype=np.int64)])
        return np.asarray(ends[numbers(self._index, "<i8", self._num_borders, self._borders_at)])

    def _lengths(self) -> IntArray:
        return numbers(self._index, "<i4", self._num_sequences, self._lengths_at).astype(np.int64)

    def _checked_tokens(self, itemsize: int) -> int:
        """Return the sum of all lengths, having compared each sequence's place with the end of the one before."""
        lengths = numbers(self._index, "<i4", self._num_sequences, self._lengths_at)
        offsets = numbers(self._index, "<i8", self._num_sequences, self._offsets_at)
        total = 0
        for part in chunks(self._num_sequences):
            ends = total + np.cumsum(lengths[part], dtype=np.int64)
            begins = np.concatenate([[total], ends[:-1]])
            is_wrong = (lengths[part] < 0) | (offsets[part] != begins * itemsize)
            if is_wrong.any():
                at = int(is_wrong.argmax())
                number = part.start + at
                raise malformed(
                    self._index,
                    f"sequence {number:,} has {lengths[number]} ids at byte {offsets[number]:,}, but the one before "
                    f"ends at byte {begins[at] * itemsize:,}",
                )
            total = int(ends[-1])
        return total

    def _check_borders(self) -> None:
        borders = numbers(self._index, "<i8", self._num_borders, self._borders_at)
        fall = first_fall(borders)
        if fall is not None:
            raise malformed(self._index, f"border {fall:,} of its documents, {borders[fall]}, is below the one before")
        if not len(borders) or borders[0] != 0 or borders[-1] != self._num_sequences:
            ends = f"{borders[0]} to {borders[-1]}" if len(borders) else "none"
            raise malformed(
                self._index, f"its borders of documents are {ends}, but it has sequences 0 to {self._num_sequences:,}"
            )
