"""Arrays and lines as short text in saved states: exact, plain data, a third of what a list of numbers takes."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import numpy as np

from mixer.errors import StateMismatchError
from mixer.types import Array


def squeezed(data: bytes) -> bytes:
    """Return data compressed, without the 6 bytes of head and checksum of ``zlib``."""
    return zlib.compress(data, 6, wbits=-zlib.MAX_WBITS)


def unsqueezed(data: bytes) -> bytes:
    """Return what ``squeezed`` was given; raise zlib.error for data that are not of its making."""
    return zlib.decompress(data, wbits=-zlib.MAX_WBITS)


def as_text(data: bytes) -> str:
    """Return bytes as base64: base85 is 6 % shorter, but the standard library's is written in Python."""
    return base64.b64encode(data).decode()


def as_bytes(text: str) -> bytes:
    """Return what ``as_text`` was given; raise ValueError for text that is not of its making."""
    return base64.b64decode(text, validate=True)


def rounded(values: Array, bits: int) -> Array:
    """Return values with so many significant bits: digits that say nothing take no room in a state."""
    dropped = 53 - bits
    whole = np.ascontiguousarray(values).view(np.int64)
    return ((whole + (1 << (dropped - 1))) & -(1 << dropped)).view(np.float64)


def pack(values: Array) -> str:
    """Return one-dimensional float64 values as text."""
    data = values.astype("<f8", copy=False).tobytes()
    by_place = np.frombuffer(data, dtype=np.uint8).reshape(-1, 8).T.tobytes()  # signs and exponents are much alike
    return as_text(squeezed(by_place))


def unpack(text: str) -> Array:
    """Return the values that ``pack`` was given; raise StateMismatchError for text that is not of its making."""
    try:
        by_place = np.frombuffer(unsqueezed(as_bytes(text)), dtype=np.uint8).reshape(8, -1)
        return np.frombuffer(by_place.T.tobytes(), dtype="<f8").astype(np.float64)
    except (TypeError, ValueError, zlib.error) as error:
        raise StateMismatchError(
            f"the saved state holds {str(text)[:40]!r}, which are no packed arrays: it was changed"
        ) from error


def pack_lines(lines: Sequence[str]) -> str:
    """Return lines as short text."""
    return as_text(squeezed("".join(lines).encode()))


def unpack_lines(text: str) -> list[str]:
    """Return the lines that ``pack_lines`` was given; raise StateMismatchError for text that is not of its making."""
    try:
        return unsqueezed(as_bytes(text)).decode().splitlines(keepends=True)
    except (ValueError, zlib.error) as error:
        raise StateMismatchError(
            f"the saved state holds {text[:40]!r}, which is no packed text: it was changed"
        ) from error
