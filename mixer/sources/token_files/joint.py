"""Rows of token files and prepared rows of any types, read as if they lay in one array.

``JointRows`` is faster by what finding a row's piece costs, and reads prepared rows of one type alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixer.errors import ConfigError, MalformedDataError
from mixer.sources.packing import WIDE
from mixer.sources.prepared.rows import PreparedRows
from mixer.sources.token_files.rows import NO_SEPARATOR, MappedStream, TokenFileRows
from mixer.system.kernels import compiled
from mixer.system.memory import new_tokens
from mixer.system.pages import MappedPages
from mixer.types import AnyTokens, BoolArray, IntArray, RowArray

NO_LOSS = -100  # of a label, as torch's cross entropy ignores it
NO_LIMIT = 2**31  # of ids that were checked when they were written: no vocabulary is larger


class JointStreams:
    """The rows of several sources, numbered through all of them.

    Args:
        sources: in declared order.
        dtype: of the rows that are given: unsigned, and holds the vocabulary of all.

    Raises:
        ConfigError: prepared rows with marks of tokens whose loss does not count.
    """

    is_masked = False  # marks in the ids, as ``mixer.sources.masks`` has them; masks of token files lie beside the ids

    def __init__(self, sources: Sequence[PreparedRows | TokenFileRows], dtype: np.dtype[Any]) -> None:
        marked = [source.name for source in sources if isinstance(source, PreparedRows) and source.is_masked]
        if marked:
            raise ConfigError(
                [
                    f"prepared rows of {marked[0]} mark tokens whose loss does not count, as conversations do; they "
                    "are not read beside token files: train on the two in runs of their own, or leave `chat:` out"
                ]
            )
        self._sources = sources
        self._streams = [_stream_of(source) for source in sources]
        self.dtype, self.row_length = dtype, sources[0].row_length
        self.row_bytes = self.row_length * max(stream.itemsize for stream in self._streams)
        self._sizes = np.array([source.num_rows for source in sources], dtype=np.int64)
        self._ends = np.cumsum(self._sizes)
        self.first_rows = self._ends - self._sizes  # of each source, numbered through
        self._compiled = self._compiled_streams()
        self._pages = MappedPages([array for stream in self._streams for array in stream.held])

    @property
    def places(self) -> tuple[IntArray, IntArray, IntArray, int]:
        """What ``Locator`` finds rows by, so that it gives their numbers through all sources."""
        return self.first_rows, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), 1

    def addresses(self, source_ids: IntArray, positions: IntArray) -> IntArray:
        """Return the numbers through all sources of the rows at ``positions``, [n], of ``source_ids``, [n].

        Raises:
            IndexError: a row number that does not exist.
        """
        is_absent = positions.view(np.uint64) >= self._sizes[source_ids].view(np.uint64)
        if is_absent.any():
            i = int(is_absent.argmax())
            raise IndexError(
                f"source {self._sources[source_ids[i]].name}: row {positions[i]} was asked for, "
                f"but it has rows 0 to {self._sizes[source_ids[i]] - 1}"
            )
        return np.asarray(self.first_rows[source_ids] + positions)

    def at(self, addresses: IntArray) -> StreamRowsAt:
        """Return the rows of these numbers, int64 [n], to be read when they are needed."""
        return StreamRowsAt(self, addresses)

    def gather(self, addresses: IntArray, out: RowArray) -> None:
        """Copy rows to ``out``, [n, b, T + 1] in ``dtype``, each of the n contiguous.

        Raises:
            MalformedDataError: an id that is outside the vocabulary.
        """
        if self._compiled is not None:
            found = self._compiled.gather(addresses, out)
            if found >= 0:
                raise self._error_of(int(addresses[found]))
            return
        for place, row in zip(np.ndindex(out.shape[:2]), addresses.tolist(), strict=True):
            out[place] = self._row(row)[0]

    def split(self, addresses: IntArray, first: int, inputs: AnyTokens, labels: AnyTokens) -> None:
        """Write what rows from ``first`` on are trained on to inputs and labels, [n, T]; raise as ``gather``."""
        num_rows = len(inputs)
        if self._compiled is not None:
            found = self._compiled.split(addresses, first, num_rows, inputs, labels)
            if found >= 0:
                raise self._error_of(int(addresses[first + found]))
            return
        for i, row in enumerate(addresses[first : first + num_rows].tolist()):
            ids, counts = self._row(row)
            inputs[i], labels[i] = ids[:-1], ids[1:]
            if not counts.all():
                labels[i, ~counts[1:]] = NO_LOSS

    def touch(self, addresses: IntArray) -> None:
        """Read such rows, so that they are in memory; other threads may run meanwhile."""
        if self._compiled is not None:
            self._compiled.gather(addresses, np.empty((1, len(addresses), self.row_length), dtype=self.dtype))

    def give_back_pages(self) -> bool:
        """Take all rows out of this process's memory, not out of the page cache; return whether that can be done."""
        return self._pages.give_back()

    def _compiled_streams(self) -> Any:
        """Return what reads rows in compiled code, None without it."""
        if compiled is None:
            return None
        streams = self._streams
        end = np.zeros(1, dtype=np.int64)  # beside the entry that ends a stream
        return compiled.Streams(
            np.append(self.first_rows, self._ends[-1]),
            np.cumsum([0, *(len(stream.starts) for stream in streams)], dtype=np.int64),
            np.concatenate([stream.starts for stream in streams]),
            np.concatenate([np.append(stream.addresses, end) for stream in streams]),
            np.concatenate([np.append(stream.masks, end) for stream in streams]),
            np.array([stream.itemsize for stream in streams], dtype=np.int64),
            np.array([stream.limit for stream in streams], dtype=np.int64),
            np.array([stream.separator for stream in streams], dtype=np.int64),
            self.row_length,
        )

    def _row(self, number: int) -> tuple[IntArray, BoolArray]:
        """Return the ids of a row and whether each counts, as the compiled loop reads them."""
        i = int(np.searchsorted(self._ends, number, side="right"))
        stream, position = self._streams[i], (number - int(self.first_rows[i])) * self.row_length
        ids, counts = np.empty(self.row_length, dtype=np.int64), np.ones(self.row_length, dtype=bool)
        j, at = int(np.searchsorted(stream.starts, position, side="right")) - 1, 0
        while at < self.row_length:
            skipped = position - int(stream.starts[j])
            stored = int(stream.starts[j + 1]) - position - (stream.separator >= 0)
            n = min(stored, self.row_length - at)
            found = _memory(int(stream.addresses[j]) + skipped * stream.itemsize, n, stream.itemsize)
            if n and found.max() >= stream.limit:
                raise self._error_of(number)
            ids[at : at + n] = found
            if stream.masks[j]:
                counts[at : at + n] = _memory(int(stream.masks[j]) + skipped, n, 1) != 0
            at += n
            if stream.separator >= 0 and n == stored and at < self.row_length:
                ids[at] = stream.separator
                at += 1
            j += 1
            position = int(stream.starts[j])
        return ids, counts

    def _error_of(self, number: int) -> MalformedDataError:
        i = int(np.searchsorted(self._ends, number, side="right"))
        source = self._sources[i]
        assert isinstance(source, TokenFileRows)  # prepared rows have no limit
        return source.error_of(number - int(self.first_rows[i]))


class StreamRowsAt:
    """Rows of any sources, one after the other, whose numbers are known.

    Attributes:
        addresses: their numbers through all sources, int64 [n].
    """

    def __init__(self, joint: JointStreams, addresses: IntArray) -> None:
        self.addresses = addresses
        self._joint = joint

    def gather(self, out: RowArray, first: int) -> None:
        """Copy rows from the first on to ``out``, [n, b, T + 1] in the type of rows, each of the n contiguous."""
        self._joint.gather(self.addresses[first : first + out.shape[0] * out.shape[1]], out)

    def split(self, first: int, num_rows: int, dtype: np.dtype[Any] = WIDE) -> tuple[AnyTokens, AnyTokens]:
        """Return what so many rows are trained on: inputs and labels as new memory, [num_rows, T] both."""
        length = self._joint.row_length - 1
        inputs, labels = new_tokens(num_rows, length, dtype), new_tokens(num_rows, length, dtype)
        self._joint.split(self.addresses, first, inputs, labels)
        return inputs, labels


def _stream_of(source: PreparedRows | TokenFileRows) -> MappedStream:
    """Return where the rows of a source lie, those of prepared rows as one piece for each shard."""
    if isinstance(source, TokenFileRows):
        return source.stream
    shards = source.shards
    return MappedStream(
        starts=np.cumsum([0, *(shard.size for shard in shards)], dtype=np.int64),
        addresses=np.array([shard.__array_interface__["data"][0] for shard in shards], dtype=np.int64),
        masks=np.zeros(len(shards), dtype=np.int64),
        separator=NO_SEPARATOR,
        itemsize=source.dtype.itemsize,
        limit=NO_LIMIT,
        held=tuple(shards),
    )


def _memory(address: int, count: int, itemsize: int) -> AnyTokens:
    """Return so many unsigned integers at an address, which need not be aligned."""
    data = (ctypes.c_char * (count * itemsize)).from_address(address)
    found: AnyTokens = np.frombuffer(memoryview(data).cast("B"), dtype=f"<u{itemsize}")
    return found
