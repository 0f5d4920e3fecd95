"""Sources that are tokenised already: columns of token ids, checked and as arrays, without Python lists on the way.

Arrow keeps a column of lists as one flat array of values and the offsets of the lists in it; both become numpy arrays
without a copy, and ids of 32 bits stay where Arrow read them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mixer.config.sources import SourceConfig
from mixer.sources.batches import BadRecord, Batch
from mixer.sources.holdout import token_bytes
from mixer.sources.records import FileRecords
from mixer.sources.rendering import Row
from mixer.sources.streams import Stream
from mixer.types import BoolArray, IntArray, TokenArray

if TYPE_CHECKING:
    import datasets

GROUP_TOKENS = 256 * 1024  # about a MB
BATCH_ROWS = 256


class TokenColumn:
    """Reads one column; ``row_length`` makes every list a row as it is.

    Args:
        column: its name.
        vocab_size: ids must be below; None accepts all that 32 bits hold.
        row_length: the length that every list must have, T + 1; None accepts any.
    """

    def __init__(self, column: str, *, vocab_size: int | None, row_length: int | None) -> None:
        self.column = column
        self._limit = 2**32 if vocab_size is None else vocab_size
        self._row_length = row_length

    def read(self, column: pa.Array | pa.ChunkedArray | Sequence[Any]) -> tuple[TokenArray, IntArray]:
        """Return all ids, uint32 [N], and the borders of the lists in them, int64 [lists + 1].

        Args:
            column: the column of some rows, from Arrow or as Python lists.

        Raises:
            BadRecord: a row that is null, has another length than a row, or holds a null, a negative id, one
                outside the vocabulary or what is no whole number; it names the value.
        """
        array: Any = column
        if not isinstance(column, pa.Array | pa.ChunkedArray):
            array = self._from_python(column)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
        if not _is_list_of_integers(array.type):
            raise self._malformed(f"holds {array.type}, not lists of whole numbers")
        if array.null_count:
            raise self._malformed("is null, not a list of token ids")
        values, borders = _flattened(array)
        lengths = np.diff(borders)
        if self._row_length is not None and (lengths != self._row_length).any():
            row = int(np.flatnonzero(lengths != self._row_length)[0])
            raise self._malformed(
                f"has {lengths[row]} ids, but a row has sequence_length + 1 = {self._row_length}; "
                "pack documents of any length with token_ids instead of rows, or change sequence_length",
            )
        if values.null_count:
            raise self._malformed("holds a null among its ids")
        if pa.types.is_null(values.type):  # every list is empty
            return np.empty(0, dtype=np.uint32), borders
        ids = values.to_numpy(zero_copy_only=True)
        self._check_range(ids)
        return ids.view(np.uint32) if ids.dtype.itemsize == 4 else ids.astype(np.uint32), borders

    def _check_range(self, ids: IntArray) -> None:
        if not len(ids):
            return
        unsigned = ids.view(f"u{ids.dtype.itemsize}")  # the bits of a negative id are above all that its type holds
        limit = min(self._limit, np.iinfo(ids.dtype).max + 1)
        if unsigned.max() < limit:
            return
        raise self._outside(ids[int(np.argmax(unsigned >= limit))])

    def _from_python(self, lists: Sequence[Any]) -> pa.Array:
        """Return Python lists as a column, for data sets that are not Arrow underneath."""
        with contextlib.suppress(pa.ArrowException, OverflowError):
            array = pa.array(lists)
            if pa.types.is_null(array.type) or _is_list_of_integers(array.type):
                return array.cast(pa.list_(pa.int64())) if pa.types.is_null(array.type) else array
        for ids in lists:
            if ids is None:
                raise self._malformed("is null, not a list of token ids")
            if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
                raise self._malformed(f"is {_shown(ids)}, not a list of token ids")
            for each in ids:
                if each is None:
                    raise self._malformed("holds a null among its ids")
                if isinstance(each, bool) or not isinstance(each, int | np.integer):
                    raise self._malformed(f"holds {_shown(each)} among its ids, which are whole numbers")
                if not 0 <= each < self._limit:
                    raise self._outside(each)
        return pa.array([np.fromiter(ids, np.int64) for ids in lists])

    def _outside(self, token: Any) -> BadRecord:
        return self._malformed(
            f"holds the id {token}, outside the vocabulary of {self._limit}; "
            "read it with the tokenizer that it was made with",
        )

    def _malformed(self, reason: str) -> BadRecord:
        return BadRecord(f"column {self.column!r} {reason}")


@dataclass(frozen=True)
class _Tokens:
    """The token ids of one batch: those of document i are ``ids[borders[i] : borders[i + 1]]``."""

    ids: TokenArray
    borders: IntArray
    wanted: BoolArray | None  # the rows that match `where`; None if there is none
    bad: dict[int, str]  # why a row cannot be read


class TokenStream(Stream[list[TokenArray] | TokenArray]):
    """Documents that are lists of token ids, or whole rows of them, straight from Arrow.

    A group is what is left of one batch of `datasets`, of about 256 Ki tokens: uint32 [n, T + 1] for rows, else a list
    of arrays.
    """

    def __init__(
        self,
        source: SourceConfig,
        dataset: datasets.IterableDataset | FileRecords,
        *,
        vocab_size: int | None,
        row_length: int,
        is_table: bool,
        **options: Any,
    ) -> None:
        """Stream token ids below ``vocab_size``; the other arguments are those of ``Stream``.

        Args:
            source: with ``rows`` or ``token_ids``.
            dataset: the rows.
            vocab_size: ids must be below; None accepts all.
            row_length: T + 1, the length that every list of ``rows`` must have.
            is_table: whether the data set can be read as Arrow tables and resume exactly.
            options: see ``Stream``.
        """
        assert source.token_column is not None
        self._row_length = row_length if source.rows is not None else None
        self._batch_size = BATCH_ROWS
        if self._row_length is not None:
            self._batch_size = max(1, min(4 * BATCH_ROWS, GROUP_TOKENS // self._row_length))
        self._is_table = is_table
        self._column = TokenColumn(source.token_column, vocab_size=vocab_size, row_length=self._row_length)
        super().__init__(source, dataset, **options)

    @property
    def identity(self) -> str | None:
        """See ``Stream``; the length of rows is checked, too."""
        identity = super().identity
        return None if identity is None else f"{identity} {self._row_length}"

    def _hold(self, batch: Batch) -> None:
        wanted, bad = None, dict(batch.bad)
        if self._source.where:
            rows = [dict(zip(self._source.where, row, strict=True)) for row in self._where_rows(batch)]
            wanted = np.array([self._is_wanted(i, row, bad) for i, row in enumerate(rows)], dtype=bool)
            for row in rows:
                self._remember(row)
        column = batch.columns[self._column.column]
        try:
            ids, borders = self._column.read(column)
        except BadRecord:
            ids, borders = self._one_by_one(column, bad)
        self._batch = _Tokens(ids, borders, wanted, bad)

    def _is_wanted(self, i: int, row: Row, bad: dict[int, str]) -> bool:
        """Whether a row matches ``where``; one of which nobody knows is, and is bad."""
        try:
            return i in bad or self._renderer.matches(row)
        except BadRecord as error:
            bad[i] = str(error)
            return True

    def _one_by_one(self, column: Any, bad: dict[int, str]) -> tuple[TokenArray, IntArray]:
        """Read each row by itself and remember which are bad; they are empty, or rows of zeros."""
        found = []
        for i in range(len(column)):
            try:
                found.append(self._column.read(column[i : i + 1])[0])
            except BadRecord as error:
                bad.setdefault(i, str(error))
                found.append(np.zeros(self._row_length or 0, dtype=np.uint32))
        return np.concatenate(found), np.cumsum([0, *map(len, found)], dtype=np.int64)

    def _where_rows(self, batch: Batch) -> Iterator[tuple[Any, ...]]:
        columns: list[Any] = [batch.columns[name] for name in self._source.where]
        return zip(*[column.to_pylist() if batch.is_table else column for column in columns], strict=True)

    def _read_group(self) -> list[TokenArray] | TokenArray:
        while self._offset < self._batch_rows or self._read_batch():
            start, borders = self._offset, self._batch.borders
            stop = int(np.searchsorted(borders, borders[start] + GROUP_TOKENS, side="left"))
            stop = min(max(stop, start + 1), self._batch_rows)
            chosen = self._chosen(start, stop)
            self._offset = stop
            self.num_rows += stop - start
            if len(chosen):
                return self._documents(chosen)
        return []

    def _chosen(self, start: int, stop: int) -> IntArray:
        """Return the documents of ``start:stop`` that are this stream's."""
        tokens: _Tokens = self._batch
        chosen = np.arange(start, stop)
        if tokens.wanted is not None:
            chosen = chosen[tokens.wanted[start:stop]]
        if tokens.bad:
            for i in chosen[np.isin(chosen, [*tokens.bad])].tolist():
                self._refuse(i, tokens.bad[i])
            chosen = chosen[~np.isin(chosen, [*tokens.bad])]
        if self._row_length is None:
            is_empty = tokens.borders[chosen] == tokens.borders[chosen + 1]
            self.num_empty += int(is_empty.sum())
            chosen = chosen[~is_empty]
        if self._share.holdout:
            is_in = [self._share.has(token_bytes(document)) for document in self._documents(chosen)]
            self.num_other_split += len(is_in) - sum(is_in)
            chosen = chosen[np.array(is_in, dtype=bool)]
        if self._stride > 1:
            first = self.num_documents + self.num_other_readers
            is_mine = np.arange(first, first + len(chosen)) % self._stride == self._share.reader
            self.num_other_readers += len(chosen) - int(is_mine.sum())
            chosen = chosen[is_mine]
        self.num_documents += len(chosen)
        return chosen

    def _documents(self, chosen: IntArray) -> list[TokenArray] | TokenArray:
        tokens: _Tokens = self._batch
        if self._row_length is None:
            return [tokens.ids[tokens.borders[i] : tokens.borders[i + 1]] for i in chosen]
        rows = tokens.ids.reshape(-1, self._row_length)
        return rows[chosen[0] : chosen[-1] + 1] if _is_run(chosen) else rows[chosen]


def _is_list_of_integers(kind: pa.DataType) -> bool:
    """Whether a column can hold lists of token ids; lists that are all empty have no type of values."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and (pa.types.is_integer(kind.value_type) or pa.types.is_null(kind.value_type)))


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def _flattened(array: pa.Array) -> tuple[pa.Array, IntArray]:
    """Return the values of lists none of which is null, and their borders in them, from 0."""
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        return array.flatten(), np.arange(len(array) + 1, dtype=np.int64) * width
    offsets = array.offsets.to_numpy(zero_copy_only=True).astype(np.int64)
    start, end = int(offsets[0]), int(offsets[-1])
    return array.values.slice(start, end - start), offsets - start


def _is_run(chosen: IntArray) -> bool:
    return len(chosen) > 0 and int(chosen[-1] - chosen[0]) + 1 == len(chosen)
