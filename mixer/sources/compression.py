"""Compressed files as plain streams, each verified to its end: what was cut or damaged is an error, never a short file.

The standard library's own files ignore what follows a member if it does not begin like one, and take an empty file for
an empty text; here a file is one member (or frame) after the other until its last byte.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, BinaryIO

import pyarrow as pa

from mixer.errors import MissingDependencyError

NAMES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard", ".lz4": "lz4"}
CODECS = {".zst": "zstd", ".lz4": "lz4"}  # of pyarrow: neither is in Python before 3.14
DECODERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}
CHUNK_BYTES = 64 << 10


class CompressionError(Exception):
    """A stream that is not what its name says, or is damaged or cut; the message says which, not where."""


def compression_of(name: str) -> str | None:
    """Return the ending of a file's name that says how it is compressed, or None."""
    suffix = PurePath(name).suffix.lower()
    return suffix if suffix in NAMES else None


def decompressed(raw: BinaryIO, suffix: str) -> BinaryIO:
    """Return the plain text of a compressed stream of one or several members, read as it is needed.

    Args:
        raw: the stream at its beginning; closed with what is returned.
        suffix: how it is compressed, a key of ``NAMES``.

    Raises:
        MissingDependencyError: a pyarrow that was built without this codec.
        CompressionError: here or while it is read.
    """
    if suffix in DECODERS:
        decode: _Members | _Frames = _Members(raw, suffix)
    else:
        decode = _Frames(raw, suffix)
    return io.BufferedReader(decode, CHUNK_BYTES)


class _Members(io.RawIOBase):
    """Streams for which Python has a decoder of one member."""

    def __init__(self, raw: BinaryIO, suffix: str) -> None:
        self._raw = raw
        self._suffix = suffix
        self._decoder: Any = None  # of the member under way
        self._num_members = 0
        self._pending = b""  # compressed
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as there is text; 0 at the end."""
        if not self._plain:
            self._plain = memoryview(self._next())
        num = min(len(buffer), len(self._plain))
        buffer[:num] = self._plain[:num]
        self._plain = self._plain[num:]
        return num

    def close(self) -> None:
        self._raw.close()
        super().close()

    def _next(self) -> bytes:
        """Return some more text, b"" at the end."""
        while True:
            data, self._pending = self._pending or self._raw.read(CHUNK_BYTES), b""
            if not data:
                if self._decoder is None and self._num_members:
                    return b""
                raise CompressionError(_cut(self._suffix))
            if self._decoder is None and self._num_members:
                data = data.lstrip(b"\0")  # tapes and xz pad with zeros
                if not data:
                    continue
            if self._decoder is None:
                self._decoder = DECODERS[self._suffix]()
                self._num_members += 1
            try:
                text: bytes = self._decoder.decompress(data)
            except (zlib.error, lzma.LZMAError, OSError) as error:
                raise CompressionError(f"not a sound {NAMES[self._suffix]} stream: {error}") from error
            self._pending = self._decoder.unused_data
            if self._decoder.eof:
                self._decoder = None
            if text:
                return text


class _Frames(io.RawIOBase):
    """Streams that pyarrow decompresses, frame after frame, and refuses where they are cut."""

    def __init__(self, raw: BinaryIO, suffix: str) -> None:
        if not pa.Codec.is_available(CODECS[suffix]):
            raise MissingDependencyError(
                f"{suffix} files need a pyarrow with {NAMES[suffix]}; install one: pip install --upgrade pyarrow"
            )
        self._raw = raw
        self._suffix = suffix
        self._stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), CODECS[suffix])
        self._is_empty = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as there is text; 0 at the end."""
        try:
            num = int(self._stream.readinto(buffer))
        except (pa.ArrowException, OSError) as error:
            if not isinstance(error, pa.ArrowException) and (type(error) is not OSError or error.errno is not None):
                raise  # of the file or a network, not of what is in it
            reason = _cut(self._suffix) if "runcated" in str(error) else f"not a sound {NAMES[self._suffix]} stream"
            raise CompressionError(f"{reason}: {error}") from error
        if not num and not self._raw.tell():
            raise CompressionError(_cut(self._suffix))
        return num

    def close(self) -> None:
        self._raw.close()
        super().close()


def _cut(suffix: str) -> str:
    return f"cut off: the {NAMES[suffix]} stream has no end; copy or download the file again"
