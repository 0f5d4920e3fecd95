"""LitData's chunks as ``TokensLoader`` reads them: the ids of a chunk's items one after the other, behind their places.

A chunk is the number of its items, their offsets in 32 bits, and the ids. ``index.json`` lists the chunks, how many ids
each has (``dim``) and their type.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixer.errors import ConfigError
from mixer.sources.token_files.base import DTYPES, Contiguous, first_fall, malformed, numbers, read_head
from mixer.sources.token_files.listing import field, files_of
from mixer.types import IntArray

TENSORS = {11: "uint8", 15: "int32", 16: "int32", 17: "int64", 18: "int64", 20: "uint16"}
ARRAYS = {2: "int32", 3: "int64", 4: "uint8", 5: "uint16", 6: "uint32", 7: "uint64"}
SERIALIZERS = {"no_header_tensor": TENSORS, "no_header_numpy": ARRAYS}


class LitDataChunk(Contiguous):
    """One chunk.

    Args:
        path: of the chunk.
        dtype: of the ids.
        dim: how many the index says it has; None if it does not.
        index: ``index.json``.
    """

    def __init__(self, path: Path, *, dtype: np.dtype[Any], dim: int | None, index: Path) -> None:
        head = read_head(path, 4)
        self._num_items = int.from_bytes(head, "little")
        begin, size = 4 + 4 * (self._num_items + 1), path.stat().st_size
        if len(head) < 4 or begin > size:
            raise malformed(path, f"it has {size:,} bytes, too few for the offsets of {self._num_items:,} items")
        offsets = self._offsets(path)
        fall = first_fall(offsets)
        if fall is not None or offsets[0] != begin or offsets[-1] != size:
            raise malformed(
                path,
                f"its items lie from byte {offsets[0]:,} to {offsets[-1]:,}"
                + (f" and item {fall} before the one before it" if fall is not None else "")
                + f", but the ids from {begin:,} to {size:,}",
            )
        if (size - begin) % dtype.itemsize:
            raise malformed(path, f"its {size - begin:,} bytes of ids are no whole number of {dtype.itemsize} bytes")
        num_tokens = (size - begin) // dtype.itemsize
        if dim is not None and dim != num_tokens:
            raise malformed(path, f"it has {num_tokens:,} ids, but {index} says {dim:,}")
        super().__init__(path, dtype=dtype, num_tokens=num_tokens, offset=begin, beside=[index])

    @property
    def num_documents(self) -> int:
        """See ``TokenFile``."""
        return self._num_items

    def borders(self) -> IntArray:
        """See ``Contiguous``; an item counts as a document."""
        places = self._offsets(self.path).astype(np.int64) - self._offset
        if (places % self.dtype.itemsize).any():
            raise malformed(self.path, f"an item of it ends within an id of {self.dtype.itemsize} bytes")
        return np.asarray(places // self.dtype.itemsize)

    def _offsets(self, path: Path) -> Any:
        return numbers(path, "<u4", self._num_items + 1, 4)


def open_litdata(index: Path, listing: Mapping[str, Any]) -> list[LitDataChunk]:
    """Return the chunks of a folder in order.

    Args:
        index: ``index.json``.
        listing: what it says.

    Raises:
        MalformedDataError, ConfigError: items that are not token ids, or chunks that are compressed or encrypted.
    """
    config = field(index, listing, "config", dict)
    for key in ("compression", "encryption"):
        if config.get(key):
            raise ConfigError(
                f"{index}: its chunks have {key} {config[key]!r}, and cannot be mapped; write them without"
            )
    formats = field(index, config, "data_format", list)
    name, _, number = str(formats[0]).partition(":") if len(formats) == 1 else ("", "", "")
    if name not in SERIALIZERS or not number.isdecimal():
        raise ConfigError(f"{index}: its items are {formats}, not one flat tensor or array of ids, as for TokensLoader")
    kind = SERIALIZERS[name].get(int(number))
    if kind is None:
        raise ConfigError(f"{index}: its ids are of type {number} of {name}, which is none that ids are stored in")
    chunks = field(index, listing, "chunks", list)
    return [
        LitDataChunk(path, dtype=DTYPES[kind], dim=chunk.get("dim"), index=index)
        for path, chunk in files_of(index, chunks, "filename")
    ]
