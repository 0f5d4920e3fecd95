"""The rows of one source of token files: windows of T + 1 ids over its stream, cut when they are read.

The stream is that of all files in order, with a separator after each document where the source says so. Like prepared
rows, consecutive rows share no id, a row may lie over the border of documents or files, and what does not fill a row at
the end is in none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mixer.errors import EmptySourceError, MalformedDataError
from mixer.sources.token_files.base import TokenFile, chunks, mapped
from mixer.types import AnyTokens, IntArray

NO_SEPARATOR = -1
SCANNED = 1 << 22  # ids that are looked at together


@dataclass(frozen=True, eq=False)
class MappedStream:
    """Where the ids of a stream lie in this process's memory.

    Attributes:
        starts: position in the stream at which each piece begins, and its length, int64 [P + 1].
        addresses: where the ids of each piece begin, int64 [P].
        masks: where their loss mask begins, a byte for each; 0 where all count, int64 [P].
        separator: the id that follows each piece and is not stored, or -1.
        itemsize: bytes of a stored id.
        limit: what ids must be below.
        held: the mapped files.
    """

    starts: IntArray
    addresses: IntArray
    masks: IntArray
    separator: int
    itemsize: int
    limit: int
    held: tuple[npt.NDArray[Any], ...]


class TokenFileRows:
    """The rows of one source, numbered in the order of its files.

    Pickles as names and sizes: another process maps the files itself.

    Args:
        name: of the source.
        files: in order.
        row_length: T + 1.
        vocab_size: ids must be below.
        separator_id: put in after each document; None if the documents are taken as they are.
        ended_by: the id that the files hold between documents, if they hold one.

    Raises:
        EmptySourceError: fewer ids than a row.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[TokenFile],
        *,
        row_length: int,
        vocab_size: int,
        separator_id: int | None,
        ended_by: int | None = None,
    ) -> None:
        self.name = name
        self.files = tuple(files)
        self.row_length = row_length
        self._vocab_size = vocab_size
        self._separator_id = separator_id
        self._ended_by = ended_by
        counts = [file.num_documents for file in files]
        self.num_documents = sum(count or 0 for count in counts)
        self.stream_length = sum(file.num_tokens for file in files)  # ids, with the separators put in
        if separator_id is not None:
            self.stream_length += sum(len(self._own_pieces(file)[0]) for file in files)
        self.num_rows = self.stream_length // row_length
        self.num_tokens = self.num_rows * row_length
        if not self.num_rows:
            raise EmptySourceError(
                f"source {name}: its {self.stream_length:,} token ids do not fill one row of {row_length}; lower "
                "sequence_length, or give it more files"
            )

    def __repr__(self) -> str:
        return f"TokenFileRows({self.name!r}, {self.num_rows} rows of {self.row_length} in {len(self.files)} files)"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "stream"}

    @property
    def has_mask(self) -> bool:
        """Whether the loss of some ids is not to count."""
        return any(file.mask is not None for file in self.files)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of how the files are read, of their sizes and of samples of them, hex [32]."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.row_length} {self._vocab_size} {self._separator_id}".encode())
        for file in self.files:
            digest.update(f" {file.dtype.str} {file.num_tokens} {file.digest()}".encode())
        return digest.hexdigest()

    @cached_property
    def stream(self) -> MappedStream:
        """The files, mapped.

        Raises:
            MissingDataError, MalformedDataError: a file that is gone, or has another size than when it was opened.
        """
        held = []
        lengths, addresses, masks = [], [], []
        [itemsize] = {file.dtype.itemsize for file in self.files}
        for file in self.files:
            data = mapped(file.path, file.size)
            offsets, counts = self._own_pieces(file)
            held.append(data)
            addresses.append(_address(data) + offsets)
            lengths.append(counts)
            masks.append(np.zeros_like(offsets))
            if file.mask is not None:
                mask = mapped(file.mask, file.num_tokens)
                held.append(mask)
                masks[-1] = _address(mask) + np.cumsum(counts) - counts
        has_separator = self._separator_id is not None
        starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths) + has_separator, dtype=np.int64)])
        return MappedStream(
            starts=starts,
            addresses=np.concatenate(addresses),
            masks=np.concatenate(masks),
            separator=NO_SEPARATOR if self._separator_id is None else self._separator_id,
            itemsize=itemsize,
            limit=self._vocab_size,
            held=tuple(held),
        )

    def document_starts(self) -> IntArray | None:
        """Return where each document begins in the stream of which row r is ids r (T + 1) to (r + 1)(T + 1) - 1.

        Stored borders are read; where there are none, all ids are, for the separator that is present.

        Returns:
            int64 [documents + 1], the last the stream's length; empty documents are left out. None if the files do
            not say where documents end.
        """
        starts, begin = [np.zeros(1, dtype=np.int64)], 0
        for file in self.files:
            documents = file.documents()
            if documents is not None:
                ends = np.cumsum(documents.lengths + (self._separator_id is not None), dtype=np.int64)
                starts.append(begin + np.concatenate([[0], ends]))
                begin += int(ends[-1])
            elif self._ended_by is not None:
                starts.append(begin + self._starts_by(file, self._ended_by))  # one may run over the border of files
                begin += file.num_tokens
            else:
                return None
        return np.union1d(np.concatenate(starts), [begin])

    def _starts_by(self, file: TokenFile, separator_id: int) -> IntArray:
        """Return where documents begin in a file by its separators, int64 [documents]."""
        found, position = [], 0
        data = mapped(file.path, file.size)
        for offset, length in zip(*(column.tolist() for column in file.pieces()), strict=True):
            for part in chunks(length, SCANNED):
                place, count = offset + part.start * file.dtype.itemsize, part.stop - part.start
                ids = np.frombuffer(data[place : place + count * file.dtype.itemsize].data, dtype=file.dtype)
                found.append(position + np.flatnonzero(ids == separator_id) + (not file.separator_leads))
                position += count
        return np.concatenate(found)

    def verify(self) -> None:
        """Read every id; raise MalformedDataError for the first that is outside the vocabulary."""
        for file in self.files:
            data = mapped(file.path, file.size)
            for offset, length in zip(*(column.tolist() for column in file.pieces()), strict=True):
                for part in chunks(length, SCANNED):
                    place = offset + part.start * file.dtype.itemsize
                    found = self._first_outside(file, data, place, part.stop - part.start)
                    if found is not None:
                        raise found

    def error_of(self, row: int) -> MalformedDataError:
        """Return the error for a row that has an id outside the vocabulary; it names the first in its files."""
        left, right = row * self.row_length, (row + 1) * self.row_length
        begin = 0  # of a piece in the stream
        for file in self.files:
            data = mapped(file.path, file.size)
            for offset, length in zip(*(column.tolist() for column in self._own_pieces(file)), strict=True):
                here = range(max(left - begin, 0), min(right - begin, length))
                if here:
                    place = offset + here.start * file.dtype.itemsize
                    found = self._first_outside(file, data, place, len(here))
                    if found is not None:
                        return found
                begin += length + (self._separator_id is not None)
        raise AssertionError(f"row {row} of {self.name} has no id outside the vocabulary")

    def _first_outside(
        self, file: TokenFile, data: npt.NDArray[np.uint8], place: int, count: int
    ) -> MalformedDataError | None:
        """Return the error for the first of so many ids that is outside the vocabulary; None if all are inside."""
        itemsize = file.dtype.itemsize
        ids: AnyTokens = np.frombuffer(data[place : place + count * itemsize].data, dtype=file.dtype)
        if ids.max() < self._vocab_size:
            return None
        at = int((ids >= self._vocab_size).argmax())
        return MalformedDataError(
            f"source {self.name}: {file.path}: the id {ids[at]} at byte {place + at * itemsize:,} is outside the "
            f"vocabulary of {self._vocab_size:,}; give the tokenizer that the file was written with, and the `dtype` "
            "of its ids"
        )

    def _own_pieces(self, file: TokenFile) -> tuple[IntArray, IntArray]:
        """Return offsets and lengths of the pieces of a file: its documents, if a separator follows each."""
        found = file.pieces() if self._separator_id is None else file.documents()
        assert found is not None  # what opens the files has seen to it
        return found


def _address(data: npt.NDArray[Any]) -> int:
    address: int = data.__array_interface__["data"][0]
    return address
