"""MosaicML's MDS: shards of samples, of which one column holds token ids.

A shard is the number of its samples, their offsets in 32 bits, its settings and the samples. A sample is the size of
each column that has no fixed one, then the columns' bytes. An array begins with its type and its shape where the
column's encoding does not say them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mixer.errors import ConfigError, MalformedDataError
from mixer.sources.token_files.base import (
    DTYPES,
    Pieces,
    TokenFile,
    chunks,
    first_fall,
    malformed,
    mapped,
    numbers,
    read_head,
)
from mixer.sources.token_files.listing import field, files_of
from mixer.types import BoolArray, IntArray

ARRAY = re.compile(r"ndarray(?::(?P<kind>[a-z0-9]+)(?::(?P<length>\d{1,12}))?)?$")
CODES = {8: "uint8", 16: "uint16", 32: "uint32", 33: "int32", 64: "uint64", 65: "int64"}
VERSION = 2
SAMPLES = 1 << 16  # that are looked at together

Bytes = npt.NDArray[np.uint8]


class Column(NamedTuple):
    """One column of a sample: its encoding, and its size in bytes where that is fixed."""

    name: str
    encoding: str
    size: int | None


class MdsShard(TokenFile):
    """One shard; the ids of each sample are a piece of the stream.

    Args:
        path: of the shard.
        columns: in order.
        column: the one that holds the ids.
        dtype: of ids in a column of bytes.
        num_samples: how many ``index.json`` says.
        index: that file.
    """

    def __init__(
        self,
        path: Path,
        columns: tuple[Column, ...],
        column: Column,
        *,
        dtype: np.dtype[Any] | None,
        num_samples: int,
        index: Path,
    ) -> None:
        head, self._columns, self._column = read_head(path, 4), columns, column
        self._num_samples, size = int.from_bytes(head, "little"), path.stat().st_size
        self._begin = 4 + 4 * (self._num_samples + 1)
        if len(head) < 4 or self._begin > size:
            raise malformed(path, f"it has {size:,} bytes, too few for the offsets of {self._num_samples:,} samples")
        if self._num_samples != num_samples:
            raise malformed(path, f"it has {self._num_samples:,} samples, but {index} says {num_samples:,}")
        self._array = ARRAY.match(column.encoding)
        data = mapped(path, size)
        self._check_offsets(path, size)
        found = self._stored_type(path, data, dtype) if num_samples else np.dtype("<u4")
        total = sum(int(pieces.lengths.sum()) for pieces in self._read(path, data, found))
        super().__init__(path, dtype=found, num_tokens=total, beside=[index])

    def pieces(self) -> Pieces:
        """See ``TokenFile``."""
        parts = [*self._read(self.path, mapped(self.path, self.size), self.dtype)]
        return Pieces(
            np.concatenate([part.offsets for part in parts]), np.concatenate([part.lengths for part in parts])
        )

    def _offsets(self, path: Path) -> Any:
        return numbers(path, "<u4", self._num_samples + 1, 4)

    def _check_offsets(self, path: Path, size: int) -> None:
        offsets = self._offsets(path)
        fall = first_fall(offsets)
        if fall is not None or offsets[0] < self._begin or offsets[-1] != size:
            raise malformed(
                path,
                f"its samples lie from byte {offsets[0]:,} to {offsets[-1]:,}"
                + (f" and sample {fall} before the one before it" if fall is not None else "")
                + f", but the file from {self._begin:,} to {size:,}",
            )

    def _stored_type(self, path: Path, data: Bytes, dtype: np.dtype[Any] | None) -> np.dtype[Any]:
        """Return the type of the ids: as the encoding says it, as the first sample does, or as the source does."""
        if self._array is None:
            if dtype is None:
                raise ConfigError(f"{path}: column {self._column.name!r} holds bytes; give the `dtype` of its ids")
            return dtype
        kind = self._array["kind"]
        if kind is None:
            places, _ = self._places(path, data, slice(0, 1))
            kind = CODES.get(int(data[places[0]]))
        if kind not in DTYPES:
            raise ConfigError(
                f"{path}: column {self._column.name!r} holds {self._column.encoding}, which are no token ids"
            )
        return DTYPES[kind]

    def _places(self, path: Path, data: Bytes, samples: slice) -> tuple[IntArray, IntArray]:
        """Return where the column of each of some samples begins and ends, int64 [n] both."""
        offsets = self._offsets(path)[samples.start : samples.stop + 1].astype(np.int64)
        begins, ends = offsets[:-1], offsets[1:]
        at = begins + 4 * sum(column.size is None for column in self._columns)
        self._check(path, samples, at <= ends)
        found, number = (at, at), 0
        for column in self._columns:
            sizes: Any = column.size
            if column.size is None:
                sizes = _read_numbers(data, begins + 4 * number, 4)
                number += 1
            if column == self._column:
                found = (at, at + sizes)
            at = at + sizes
        self._check(path, samples, at == ends)
        if self._array is not None or self._column.size is None:
            self._check(path, samples, found[1] > found[0])  # an array has a byte at least; empty ones are not written
        return found

    def _read(self, path: Path, data: Bytes, dtype: np.dtype[Any]) -> Iterator[Pieces]:
        """Yield where the ids of samples lie, some samples at a time."""
        for samples in chunks(self._num_samples, SAMPLES):
            at, ends = self._places(path, data, samples)
            if self._array is not None and self._array["kind"] is None:
                is_alike = np.array([DTYPES.get(CODES.get(code, "")) == dtype for code in range(256)])
                self._check(path, samples, is_alike[data[at]])
                at = at + 1
            counts = (ends - at) // dtype.itemsize
            if self._array is not None and self._array["length"] is None:
                at, counts = self._after_shape(path, data, samples, at, ends)
            self._check(path, samples, at + counts * dtype.itemsize == ends)
            if self._array is not None and self._array["length"] is not None:
                self._check(path, samples, counts == int(self._array["length"]))
            yield Pieces(at, counts)

    def _after_shape(
        self, path: Path, data: Bytes, samples: slice, at: IntArray, ends: IntArray
    ) -> tuple[IntArray, IntArray]:
        """Return where the ids begin after the shape of each array, and how many it says they are."""
        self._check(path, samples, at < ends)
        first = data[at]
        widths = (1 << (first & 3)).astype(np.int64)
        self._check(path, samples, (first >> 2 == 1) & (at + 1 + widths <= ends))  # one axis
        counts = np.zeros_like(at)
        for width in (1, 2, 4, 8):
            is_so = widths == width
            counts[is_so] = _read_numbers(data, at[is_so] + 1, width)
        self._check(path, samples, (counts >= 0) & (counts <= ends - at))
        return at + 1 + widths, counts

    def _check(self, path: Path, samples: slice, is_sound: BoolArray) -> None:
        if not is_sound.all():
            number = samples.start + int((~is_sound).argmax())
            raise self._malformed(path, number)

    def _malformed(self, path: Path, number: int) -> MalformedDataError:
        begin, end = self._offsets(path)[number : number + 2].tolist()
        listing = ", ".join(f"{column.name}: {column.encoding}" for column in self._columns)
        return malformed(
            path, f"sample {number:,}, bytes {begin:,} to {end:,}, does not hold one axis of ids as ({listing}) says"
        )


def open_mds(index: Path, listing: Mapping[str, Any], *, name: str, dtype: np.dtype[Any] | None) -> list[MdsShard]:
    """Return the shards of a folder in order.

    Args:
        index: ``index.json``.
        listing: what it says.
        name: the column that holds the ids.
        dtype: of ids in a column of bytes.

    Raises:
        MalformedDataError, ConfigError: shards of another kind, or compressed, or without such a column.
    """
    if listing.get("version") != VERSION:
        raise malformed(index, f"it is of version {listing.get('version')!r}, and version {VERSION} is known")
    shards = []
    entries = field(index, listing, "shards", list)
    for entry in entries:
        if field(index, entry, "format", str) != "mds":
            raise ConfigError(f"{index}: a shard of format {entry['format']!r}; MDS is read")
        columns = _columns(index, entry)
        column = next((column for column in columns if column.name == name), None)
        if column is None:
            raise ConfigError(
                f"{index}: no column {name!r}; there are {', '.join(column.name for column in columns)}: name one as "
                "`column`"
            )
        if column.encoding != "bytes" and ARRAY.match(column.encoding) is None:
            raise ConfigError(f"{index}: column {name!r} holds {column.encoding}, not arrays or bytes of token ids")
        raw = field(index, entry, "raw_data", dict)
        [(path, _)] = files_of(index, [raw], "basename")
        if entry.get("compression") and not path.is_file():
            raise ConfigError(
                f"{index}: {path.name} is compressed ({entry['compression']}), and cannot be mapped; unpack it"
            )
        num_samples = field(index, entry, "samples", int)
        shards.append(MdsShard(path, columns, column, dtype=dtype, num_samples=num_samples, index=index))
    return shards


def _columns(index: Path, entry: Mapping[str, Any]) -> tuple[Column, ...]:
    names, encodings, sizes = (field(index, entry, f"column_{what}", list) for what in ("names", "encodings", "sizes"))
    is_sound = (
        len(names) == len(encodings) == len(sizes)
        and all(isinstance(text, str) for text in (*names, *encodings))
        and all(size is None or (isinstance(size, int) and 0 < size < 2**32) for size in sizes)
    )
    if not is_sound:
        raise malformed(index, f"its columns {names} of {encodings} with sizes {sizes} do not fit together")
    return tuple(Column(*each) for each in zip(names, encodings, sizes, strict=True))


def _read_numbers(data: Bytes, places: IntArray, width: int) -> IntArray:
    """Return the little-endian numbers of so many bytes at some places of a file, int64 [n]."""
    found: IntArray = data[places[:, None] + np.arange(width)].view(f"<u{width}").reshape(-1).astype(np.int64)
    return found
