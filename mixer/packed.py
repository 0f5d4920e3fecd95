"""Arrays and lines as short text in saved states: exact, plain data, a third of what a list of numbers takes."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mixer.errors import StateMismatchError


def pack(values: npt.NDArray[Any]) -> str:
    """Return a one-dimensional array of float64 or int64 as text: its kind, how it is packed, base85."""
    data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    by_place = np.frombuffer(data, dtype=np.uint8).reshape(-1, 8).T.tobytes()  # signs and exponents are much alike
    squeezed = zlib.compress(by_place, 6)
    how, data = ("z", squeezed) if len(squeezed) < len(data) else ("b", data)
    return f"{values.dtype.kind}{how}{base64.b85encode(data).decode('ascii')}"


def unpack(text: str) -> npt.NDArray[Any]:
    """Return the array that ``pack`` was given; raise StateMismatchError for text that is not of its making."""
    try:
        dtype = {"f": np.dtype("<f8"), "i": np.dtype("<i8")}[text[0]]
        data = base64.b85decode(text[2:])
        if text[1] == "z":
            data = np.frombuffer(zlib.decompress(data), dtype=np.uint8).reshape(8, -1).T.tobytes()
        return np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("="))
    except (KeyError, IndexError, ValueError, zlib.error) as error:
        raise StateMismatchError(
            f"the saved state holds {text[:40]!r}, which is no packed array: it was changed"
        ) from error


def pack_lines(lines: Sequence[str]) -> str:
    """Return lines as short text."""
    return base64.b85encode(zlib.compress("".join(lines).encode(), 6)).decode("ascii")


def unpack_lines(text: str) -> list[str]:
    """Return the lines that ``pack_lines`` was given; raise StateMismatchError for text that is not of its making."""
    try:
        return zlib.decompress(base64.b85decode(text)).decode().splitlines(keepends=True)
    except (ValueError, zlib.error) as error:
        raise StateMismatchError(
            f"the saved state holds {text[:40]!r}, which is no packed text: it was changed"
        ) from error
