"""What one file of token ids is: where the ids lie in it, where its documents end, and what tells it from others."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mixer.errors import EmptySourceError, MalformedDataError, MissingDataError, SourceError
from mixer.types import AnyTokens, IntArray

SAMPLED_BLOCKS, BLOCK_BYTES = 16, 16 << 10  # of a file's digest: 256 KiB spread over it, and all of a smaller one
CHUNK = 1 << 20  # numbers of an index that are looked at together

DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "uint16", "uint32", "uint64")} | {
    # an id below 2**31 has the same bits in both; a negative one is above every vocabulary
    "int32": np.dtype("<u4"),
    "int64": np.dtype("<u8"),
}


class Pieces(NamedTuple):
    """Contiguous pieces of a file, in the order of the stream.

    Attributes:
        offsets: byte at which each begins, int64 [P].
        lengths: token ids of each, int64 [P].
    """

    offsets: IntArray
    lengths: IntArray


class TokenFile(ABC):
    """One file of token ids.

    Attributes:
        mask: a file of a byte for each id, 0 where its loss does not count.
        separator_leads: whether a separator that the file holds is before each document, not after it.

    Pickles, and holds nothing open; whatever it reads of the file is as large as the documents' index at most.

    Args:
        path: the file with the ids.
        dtype: unsigned, as they are stored.
        num_tokens: how many.
        beside: other files that say something of them.
    """

    mask: Path | None = None
    separator_leads = False

    def __init__(self, path: Path, *, dtype: np.dtype[Any], num_tokens: int, beside: Sequence[Path] = ()) -> None:
        if not num_tokens:
            raise EmptySourceError(f"{path}: no token id is in it; remove the file, or leave it out of `tokens.path`")
        self.path = path
        self.dtype = dtype
        self.num_tokens = num_tokens
        self.size = path.stat().st_size
        self.beside = tuple(beside)

    @property
    def num_documents(self) -> int | None:
        """How many documents it holds; None if it does not say."""
        return None

    @abstractmethod
    def pieces(self) -> Pieces:
        """Return where the ids lie."""

    def documents(self) -> Pieces | None:
        """Return where each document lies, none of them empty; None if the file does not say."""
        return None

    def digest(self) -> str:
        """Return a digest of the sizes and of blocks all over the file and those beside it, hex [32].

        A change that keeps the size and lies between the blocks is not noticed.
        """
        digest = hashlib.blake2b(digest_size=16)
        mask = () if self.mask is None else (self.mask,)
        for path in (self.path, *self.beside, *mask):
            size = path.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            whole = size <= SAMPLED_BLOCKS * BLOCK_BYTES
            places = [0] if whole else np.linspace(0, size - BLOCK_BYTES, SAMPLED_BLOCKS).astype(int).tolist()
            with path.open("rb", buffering=0) as file:
                for place in places:
                    file.seek(place)
                    digest.update(file.read(size if whole else BLOCK_BYTES))
        return digest.hexdigest()


class Contiguous(TokenFile):
    """A file whose ids lie in it without a gap, up to its end.

    Args:
        path, dtype, num_tokens, beside: as for ``TokenFile``.
        offset: byte at which they begin.
    """

    def __init__(
        self, path: Path, *, dtype: np.dtype[Any], num_tokens: int, offset: int = 0, beside: Sequence[Path] = ()
    ) -> None:
        super().__init__(path, dtype=dtype, num_tokens=num_tokens, beside=beside)
        self._offset = offset
        end = offset + num_tokens * dtype.itemsize
        if end != self.size:
            raise malformed(
                path, f"its {num_tokens:,} ids of {dtype.itemsize} bytes end at byte {end:,}, but it has {self.size:,}"
            )

    def pieces(self) -> Pieces:
        """See ``TokenFile``."""
        return Pieces(np.array([self._offset], dtype=np.int64), np.array([self.num_tokens], dtype=np.int64))

    def borders(self) -> IntArray | None:
        """Return the ids before each document, and all of them at the end, int64 [documents + 1]; None if unknown."""
        return None

    def documents(self) -> Pieces | None:
        """See ``TokenFile``."""
        borders = self.borders()
        if borders is None:
            return None
        lengths = np.diff(borders)
        has_ids = lengths > 0
        return Pieces(self._offset + borders[:-1][has_ids] * self.dtype.itemsize, lengths[has_ids])


def malformed(path: Path, reason: str) -> MalformedDataError:
    """Return the error for a file that is not what it should be."""
    return MalformedDataError(f"{path}: {reason}; copy or write the file again")


def read_head(path: Path, num_bytes: int) -> bytes:
    """Return the first bytes of a file, fewer if it is shorter; raise MissingDataError if it is not there."""
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(num_bytes)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> SourceError:
    """Return the error for a file that the system does not give."""
    return MissingDataError(
        f"{path}: {error.strerror or error}; mend the source's `tokens.path`, or copy the file there"
    )


def mapped(path: Path, size: int) -> npt.NDArray[np.uint8]:
    """Return a file as a read-only array of its bytes; raise MalformedDataError if its size is not ``size``."""
    try:
        with pa.memory_map(str(path)) as file:  # closed at once: the mapping stays, the descriptor does not
            found: npt.NDArray[np.uint8] = np.frombuffer(file.read_buffer(), dtype=np.uint8)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(found) != size:
        raise malformed(path, f"it has {len(found):,} bytes, and had {size:,} when it was opened")
    return found


def numbers(path: Path, dtype: str, count: int, offset: int) -> AnyTokens:
    """Return numbers of an index as a memory map; the caller has compared their end with the file's size."""
    if not count:
        return np.empty(0, dtype=dtype)
    found: AnyTokens = np.memmap(path, dtype, "r", offset, (int(count),))
    return found


def chunks(length: int, size: int = CHUNK) -> Iterator[slice]:
    """Yield slices that cover so many numbers, in order."""
    for begin in range(0, length, size):
        yield slice(begin, min(begin + size, length))


def first_fall(borders: AnyTokens, begin: int = 0) -> int | None:
    """Return the first place at which borders, any integers [n], are below the one before; None if there is none."""
    before = begin
    for part in chunks(len(borders)):
        values = np.concatenate([[before], borders[part].astype(np.int64)])
        falls = np.flatnonzero(np.diff(values) < 0)
        if falls.size:
            return int(part.start) + int(falls[0])
        before = int(values[-1])
    return None
