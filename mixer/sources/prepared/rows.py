"""Token rows prepared once by ``mixer prepare``: memory-mapped, opened in milliseconds, gathered by row number.

The values of a shard are one buffer [rows, T + 1] of an Arrow file, so that taking rows costs what it costs from a bare
memory map. Size and header of every file are compared with the manifest before anything is read; reading all of them
to compare their contents is for ``verify``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.lib.stride_tricks import as_strided

from mixer.config.curriculum import Curriculum
from mixer.config.problems import suggestion
from mixer.errors import MalformedDataError, MissingDataError, UnknownSourceError
from mixer.sources.masks import split_marked
from mixer.sources.packing import WIDE, split
from mixer.sources.prepared.manifest import (
    SOURCES,
    TOKENIZER,
    Manifest,
    Shard,
    Split,
    SplitManifest,
    check_against,
    digest_of,
    read_manifest,
)
from mixer.system.kernels import compiled
from mixer.system.memory import new_tokens
from mixer.system.pages import MappedPages
from mixer.types import AnyTokens, IntArray

if TYPE_CHECKING:
    from mixer.sources.tokenizer import TextTokenizer

DIGEST_BLOCK = 1 << 22
PAGE_BYTES = 4096  # a smaller one than the system's only costs a few reads more

Rows = npt.NDArray[np.unsignedinteger[Any]]


class PreparedRows:
    """The rows of one source in one split, [num_rows, T + 1], numbered in file order.

    Pickles as names and sizes: another process maps the files itself.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        split: SplitManifest,
        *,
        dtype: np.dtype[Any],
        row_length: int,
        is_masked: bool = False,
    ) -> None:
        """Describe the shards that lie in ``folder``; they are opened when they are first needed."""
        self.is_masked = is_masked
        self.name = name
        self.dtype = dtype
        self.row_length = row_length
        self.num_rows = split.rows
        self.num_documents = split.documents
        self.num_tokens = split.rows * row_length  # of one epoch; what does not fill a row is not delivered
        self.first_rows: IntArray = np.cumsum([0, *(shard.rows for shard in split.shards)], dtype=np.int64)[:-1]
        self._folder = folder
        self._split = split

    def __repr__(self) -> str:
        return f"PreparedRows({self.name!r}, {self.num_rows} rows of {self.row_length} {self.dtype})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "shards"}

    @property
    def fingerprint(self) -> str:
        """Digest of the rows, hex [32]."""
        return digest_of([self.dtype.name, self.row_length, [shard.digest for shard in self._split.shards]])

    @cached_property
    def shards(self) -> list[Rows]:
        """The files as read-only arrays, [rows of the shard, T + 1] each.

        Raises:
            MissingDataError: a file that is not there.
            MalformedDataError: a file whose size or header is not what the manifest says.
        """
        return [self._mapped(shard) for shard in self._split.shards]

    def gather(self, positions: IntArray, out: Rows | None = None) -> Rows:
        """Return the rows with these numbers, [n, T + 1] in the stored dtype.

        Args:
            positions: row numbers, int64 [n].
            out: where to put them, [n, T + 1] of the stored dtype; a new array by default.

        Raises:
            IndexError: a row number that does not exist.
        """
        # a negative number is a huge unsigned one, so that one comparison sees both ends
        if positions.size and positions.view(np.uint64).max() >= self.num_rows:
            raise IndexError(
                f"source {self.name}: rows {positions.min()} to {positions.max()} were asked for, "
                f"but it has rows 0 to {self.num_rows - 1}"
            )
        if len(self.shards) == 1:
            return self.shards[0].take(positions, axis=0, mode="clip", out=out)  # checked: clip only skips a copy
        gathered = np.empty((len(positions), self.row_length), dtype=self.dtype) if out is None else out
        shard_of = np.searchsorted(self.first_rows, positions, side="right") - 1
        for number in np.unique(shard_of):
            chosen = np.flatnonzero(shard_of == number)
            gathered[chosen] = self.shards[number].take(positions[chosen] - self.first_rows[number], axis=0)
        return gathered

    def verify(self) -> None:
        """Read every file and compare its digest; raise MalformedDataError for the first that differs."""
        _ = self.shards
        for shard in self._split.shards:
            found = file_digest(self._folder / shard.file)
            if found != shard.digest:
                raise self._malformed(shard, f"its digest is {found}, not {shard.digest}: it has been changed")

    def _mapped(self, shard: Shard) -> Rows:
        path = self._folder / shard.file
        try:
            size = path.stat().st_size
            if size != shard.size:
                raise self._malformed(shard, f"it has {size} bytes, not {shard.size}")
            with path.open("rb", buffering=0) as file:  # not through the mapping, where it might bring 2 MiB with it
                header = file.read(shard.offset)
            with pa.memory_map(str(path)) as file:  # closed at once: the mapping stays, the descriptor does not
                buffer = file.read_buffer()
        except FileNotFoundError as error:
            raise MissingDataError(
                f"source {self.name}: prepared rows: no file {path}; copy it again, or run `mixer prepare` again"
            ) from error
        if hashlib.blake2b(header, digest_size=16).hexdigest() != shard.header_digest:
            raise self._malformed(shard, "it does not begin as it was written")
        count = shard.rows * self.row_length
        rows = np.frombuffer(buffer, dtype=self.dtype, count=count, offset=shard.offset)
        return rows.reshape(shard.rows, self.row_length)

    def _malformed(self, shard: Shard, reason: str) -> MalformedDataError:
        return MalformedDataError(
            f"source {self.name}: prepared rows: {self._folder / shard.file}: {reason}; "
            "copy it again, or run `mixer prepare` again"
        )


class JointRows:
    """The rows of several sources as if they lay in one array, so that any rows of any of them are one gather.

    Every file is mapped somewhere into this process's memory. One array spans them all, from the lowest to the highest
    address: a row is the window that begins at its address, counted in token ids from the lowest. What lies between
    the files is in no window, since row numbers are checked.
    """

    def __init__(self, sources: Sequence[PreparedRows]) -> None:
        """Take sources whose rows are of one length and type."""
        self._names = [source.name for source in sources]
        self.is_masked = any(source.is_masked for source in sources)
        self._shards = [shard for source in sources for shard in source.shards]  # keeps them mapped
        lowest = min(self._shards, key=_address)
        row_length, itemsize = lowest.shape[1], lowest.itemsize
        span = (max(map(_address, self._shards)) - _address(lowest)) // itemsize + max(s.size for s in self._shards)
        self._lowest = _address(lowest)
        self.row_length, self.dtype, self.row_bytes = row_length, lowest.dtype, row_length * itemsize
        self._flat = as_strided(lowest.reshape(-1), (span,), (itemsize,), writeable=False)
        self._windows = as_strided(lowest, (span - row_length + 1, row_length), (itemsize, itemsize), writeable=False)
        self._sizes = np.array([source.num_rows for source in sources], dtype=np.int64)
        self.first_rows = np.cumsum(self._sizes) - self._sizes  # of each source, numbered through
        lengths = np.array([len(shard) for shard in self._shards], dtype=np.int64)
        self.shard_rows = np.cumsum(lengths) - lengths  # the first row of each shard, numbered through
        begins = np.array([_address(shard) - _address(lowest) for shard in self._shards]) // itemsize
        self.origins = begins - self.shard_rows * row_length  # where the first row of all would be, were it here
        in_page = np.arange(0, row_length, PAGE_BYTES // itemsize)
        self._touched = np.append(in_page, row_length - 1)  # a token id of every page of a row
        self._pages = MappedPages(self._shards)

    def addresses(self, source_ids: IntArray, positions: IntArray) -> IntArray:
        """Return where rows begin, int64 [n]; they are those at ``positions``, [n], of ``source_ids``, [n].

        Raises:
            IndexError: a row number that does not exist.
        """
        # a negative number is a huge unsigned one, so that one comparison sees both ends
        is_absent = positions.view(np.uint64) >= self._sizes[source_ids].view(np.uint64)
        if is_absent.any():
            i = int(is_absent.argmax())
            raise IndexError(
                f"source {self._names[source_ids[i]]}: row {positions[i]} was asked for, "
                f"but it has rows 0 to {self._sizes[source_ids[i]] - 1}"
            )
        rows = self.first_rows[source_ids] + positions
        shards = self.shard_rows.searchsorted(rows, side="right") - 1
        return np.asarray(self.origins[shards] + rows * self.row_length)

    @property
    def places(self) -> tuple[IntArray, IntArray, IntArray, int]:
        """What ``Locator`` finds addresses by."""
        return self.first_rows, self.shard_rows, self.origins, self.row_length

    def at(self, addresses: IntArray) -> RowsAt:
        """Return the rows that begin at ``addresses``, int64 [n], to be read when they are needed."""
        return RowsAt(self, addresses)

    def gather(self, addresses: IntArray) -> Rows:
        """Return the rows that begin at ``addresses``, any shape: a new array, [..., T + 1] in the stored dtype."""
        return self._windows[addresses]

    def compiled_windows(self, addresses: IntArray) -> Any:
        """Return the compiled reader of the rows at ``addresses``, None without compiled loops."""
        if compiled is None:
            return None
        itemsize = self.dtype.itemsize
        return compiled.Windows(self._lowest + itemsize * addresses, self.row_length, itemsize)

    def touch(self, addresses: IntArray) -> None:
        """Read a little of every page of such rows, so that they are in memory; other threads may run meanwhile."""
        self._flat.take(addresses[:, None] + self._touched)

    def give_back_pages(self) -> bool:
        """Take all rows out of this process's memory, not out of the page cache; return whether that can be done."""
        return self._pages.give_back()


class RowsAt:
    """Rows of any sources, one after the other, whose places are known.

    Attributes:
        addresses: where they begin, as ``JointRows.addresses`` says it, int64 [n].
    """

    def __init__(self, joint: JointRows, addresses: IntArray) -> None:
        self.addresses = addresses
        self._joint = joint
        self._windows = joint.compiled_windows(addresses)

    def gather(self, out: Rows, first: int) -> None:
        """Copy rows from the first on to ``out``, [n, b, T + 1] in the stored dtype, each of the n contiguous."""
        num_rows = out.shape[0] * out.shape[1]
        if self._windows is None:
            out[:] = self._joint.gather(self.addresses[first : first + num_rows]).reshape(out.shape)
        else:
            self._windows.gather(first, num_rows, out)

    def split(self, first: int, num_rows: int, dtype: np.dtype[Any] = WIDE) -> tuple[AnyTokens, AnyTokens]:
        """Return what so many rows are trained on: inputs and labels as new memory, [num_rows, T] both.

        Args:
            first: where they begin among these.
            num_rows: how many.
            dtype: int64, or the type in which they are stored.
        """
        if self._joint.is_masked:
            return split_marked(self._joint.gather(self.addresses[first : first + num_rows]), dtype)
        if self._windows is None:
            return split(self._joint.gather(self.addresses[first : first + num_rows]), dtype)
        length = self._joint.row_length - 1
        inputs, labels = new_tokens(num_rows, length, dtype), new_tokens(num_rows, length, dtype)
        self._windows.split(first, num_rows, inputs, labels)
        return inputs, labels


def _address(rows: Rows) -> int:
    address: int = rows.__array_interface__["data"][0]
    return address


class Prepared:
    """A folder that ``mixer prepare`` made; ``Prepared.open(folder)`` reads and checks it."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Take a manifest for what the folder holds."""
        self.folder = folder
        self.manifest = manifest
        self.sources: dict[str, PreparedRows] = {
            name: self._rows(name, "train") for name, source in manifest.sources.items() if source.train.rows
        }  # without targets, all of whose rows are held out

    @classmethod
    def open(cls, folder: str | Path) -> Prepared:
        """Read the manifest and compare the size and header of every file of training rows.

        Raises:
            MissingDataError: no such folder, one that is not finished, or one of whose files is gone.
            MalformedDataError: a manifest or file that is not as it was written.
        """
        folder = Path(folder)
        prepared = cls(folder, read_manifest(folder))
        for rows in prepared.sources.values():
            _ = rows.shards
        return prepared

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the token ids: the smallest that holds the vocabulary."""
        return np.dtype(self.manifest.dtype)

    @property
    def row_length(self) -> int:
        """Tokens of a row: T + 1."""
        return self.manifest.sequence_length + 1

    @property
    def fingerprint(self) -> str:
        """Digest of the rows of all sources, hex [32]; wherever the folder lies."""
        return self.manifest.fingerprint

    def held_out(self, name: str) -> PreparedRows:
        """Return the rows of the documents of a source that are never trained on; possibly none."""
        if name not in self.manifest.sources:
            known = suggestion(name, self.manifest.sources)
            raise UnknownSourceError(f"prepared rows: unknown source {name!r}{known}")
        return self._rows(name, "held_out")

    def tokenizer(self) -> TextTokenizer:
        """Return the tokenizer that made the rows, from its copy in the folder; the sources are not needed."""
        from mixer.sources.tokenizer import read_tokenizer  # imported late: rows alone need no tokenizer

        return read_tokenizer(self.folder / TOKENIZER, self.manifest.tokenizer.separator)

    def check_against(self, curriculum: Curriculum, tokenizer_fingerprint: str | None = None) -> None:
        """Raise PreparedMismatchError if these are not the rows that the config, as it is now, asks for.

        Everything that differs is named: length of rows, hold-out, tokenizer, definitions of the sources, and names and
        sizes of local files that are still there. Sources that the config does not name are ignored, so that one
        folder serves many configs.

        Args:
            curriculum: the run.
            tokenizer_fingerprint: of a tokenizer that has been loaded for it; None compares its settings alone.
        """
        check_against(self.manifest, curriculum, tokenizer_fingerprint, self.folder)

    def verify(self) -> None:
        """Read all files and compare their digests; raise MalformedDataError for the first that differs."""
        for rows in self.sources.values():
            rows.verify()
        for name in self.manifest.sources:
            self.held_out(name).verify()

    def _rows(self, name: str, split: Split) -> PreparedRows:
        source = self.manifest.sources[name]
        return PreparedRows(
            name,
            self.folder / SOURCES / name / split,
            getattr(source, split),
            dtype=self.dtype,
            row_length=self.row_length,
            is_masked=self.manifest.masked,
        )


def file_digest(path: Path) -> str:
    """Return the digest of a file's bytes, hex [32], as ``b2sum -l 128`` prints it."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(DIGEST_BLOCK):
            digest.update(block)
    return digest.hexdigest()
