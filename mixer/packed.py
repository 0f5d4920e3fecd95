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

_DIGITS = np.frombuffer(base64.b85encode(b"".join(struct.pack(">I", i) for i in range(85)))[4::5], dtype=np.uint8)
_VALUES = np.full(256, -1)
_VALUES[_DIGITS] = np.arange(85)
_POWERS = 85 ** np.arange(4, -1, -1)


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


def pack(values: npt.NDArray[Any]) -> str:
    """Return a one-dimensional array of float64 or int64 as text: its kind, how it is packed, base85."""
    data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    by_place = np.frombuffer(data, dtype=np.uint8).reshape(-1, 8).T.tobytes()  # signs and exponents are much alike
    squeezed = zlib.compress(by_place, 6)
    how, data = ("z", squeezed) if len(squeezed) < len(data) else ("b", data)
    return f"{values.dtype.kind}{how}{as_text(data)}"


def unpack(text: str) -> npt.NDArray[Any]:
    """Return the array that ``pack`` was given; raise StateMismatchError for text that is not of its making."""
    try:
        dtype = {"f": np.dtype("<f8"), "i": np.dtype("<i8")}[text[0]]
        data = as_bytes(text[2:])
        if text[1] == "z":
            data = np.frombuffer(zlib.decompress(data), dtype=np.uint8).reshape(8, -1).T.tobytes()
        return np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="))
    except (KeyError, IndexError, ValueError, zlib.error) as error:
        raise StateMismatchError(
            f"the saved state holds {text[:40]!r}, which is no packed array: it was changed"
        ) from error


def pack_lines(lines: Sequence[str]) -> str:
    """Return lines as short text."""
    return as_text(zlib.compress("".join(lines).encode(), 6))


def unpack_lines(text: str) -> list[str]:
    """Return the lines that ``pack_lines`` was given; raise StateMismatchError for text that is not of its making."""
    try:
        return zlib.decompress(as_bytes(text)).decode().splitlines(keepends=True)
    except (ValueError, zlib.error) as error:
        raise StateMismatchError(
            f"the saved state holds {text[:40]!r}, which is no packed text: it was changed"
        ) from error
