"""Arrays and lines as short text in saved states: exact, plain data, a third of what a list of numbers takes."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mixer.errors import StateMismatchError
from mixer.types import Array

_DIGITS = np.frombuffer(base64.b85encode(b"".join(struct.pack(">I", i) for i in range(85)))[4::5], dtype=np.uint8)
_VALUES = np.full(256, -1)
_VALUES[_DIGITS] = np.arange(85)
_POWERS = 85 ** np.arange(4, -1, -1)


def squeezed(data: bytes) -> bytes:
    """Return data compressed, without the 6 bytes of head and checksum of ``zlib``: many texts are but a few bytes."""
    return zlib.compress(data, 6, wbits=-zlib.MAX_WBITS)


def unsqueezed(data: bytes) -> bytes:
    """Return what ``squeezed`` was given; raise zlib.error for data that are not of its making."""
    return zlib.decompress(data, wbits=-zlib.MAX_WBITS)


def as_text(data: bytes) -> str:
    """Return what ``base64.b85encode`` does, which is written in Python and takes 10 times as long."""
    spare = -len(data) % 4
    words = np.frombuffer(data + bytes(spare), dtype=">u4").astype(np.int64)
    text = str(_DIGITS[words[:, None] // _POWERS % 85].tobytes(), "ascii")
    return text[: len(text) - spare]


def as_bytes(text: str) -> bytes:
    """Return what ``as_text`` was given; raise ValueError for text that is not of its making."""
    spare = -len(text) % 5
    digits = _VALUES[np.frombuffer(text.encode("ascii") + b"~" * spare, dtype=np.uint8)].reshape(-1, 5)
    words = digits @ _POWERS
    if (digits < 0).any() or (words >= 2**32).any():
        raise ValueError("no base85")
    data = words.astype(">u4").tobytes()
    return data[: len(data) - spare]


def rounded(values: Array, bits: int) -> Array:
    """Return values with so many significant bits: digits that say nothing take no room in a state."""
    dropped = 53 - bits
    whole = np.ascontiguousarray(values).view(np.int64)
    return ((whole + (1 << (dropped - 1))) & -(1 << dropped)).view(np.float64)


def pack(values: npt.NDArray[Any]) -> str:
    """Return a one-dimensional array of float64 or int64 as text: its kind, how it is packed, base85."""
    data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    by_place = np.frombuffer(data, dtype=np.uint8).reshape(-1, 8).T.tobytes()  # signs and exponents are much alike
    small = squeezed(by_place)
    how, data = ("z", small) if len(small) < len(data) else ("b", data)
    return f"{values.dtype.kind}{how}{as_text(data)}"


def unpack(text: str) -> npt.NDArray[Any]:
    """Return the array that ``pack`` was given; raise StateMismatchError for text that is not of its making."""
    try:
        dtype = {"f": np.dtype("<f8"), "i": np.dtype("<i8")}[text[0]]
        data = as_bytes(text[2:])
        if text[1] == "z":
            data = np.frombuffer(unsqueezed(data), dtype=np.uint8).reshape(8, -1).T.tobytes()
        return np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="))
    except (KeyError, IndexError, ValueError, zlib.error) as error:
        raise StateMismatchError(
            f"the saved state holds {text[:40]!r}, which is no packed array: it was changed"
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
