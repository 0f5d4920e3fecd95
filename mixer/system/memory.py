"""Memory that is used again: the first touch of a fresh page costs more than copying into an old one.

Large arrays are more than the C library keeps for itself, so that each would come from the system and go back to it.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from mixer.types import AnyTokens

Bytes = npt.NDArray[np.uint8]

POOLED_BYTES = 256 << 10  # of an array; a smaller one lies where others lay before anyhow


class BufferPool:
    """Memory for one large thing after another; a piece goes back once no view of it is left.

    Args:
        num_pieces: kept at most while nobody uses them.
    """

    def __init__(self, num_pieces: int = 8) -> None:
        self._free: deque[Bytes] = deque(maxlen=num_pieces)

    def take(self, num_bytes: int) -> memoryview:
        """Return room for so many bytes, what is in it undefined.

        A memoryview, not an array: views of an array keep alive what it is itself a view of, and not the array.
        """
        try:
            piece = self._free.popleft()
        except IndexError:
            piece = np.empty(0, dtype=np.uint8)
        if len(piece) < num_bytes:
            piece = np.empty(num_bytes + num_bytes // 8, dtype=np.uint8)
        view = piece[:num_bytes]
        weakref.finalize(view, self._free.append, piece).atexit = False
        return memoryview(view)  # type: ignore[arg-type]


_pool = BufferPool(4)


def new_tokens(num_rows: int, length: int, dtype: np.dtype[Any]) -> AnyTokens:
    """Return a new array, [num_rows, length], undefined; a large one lies in memory that is used again."""
    num_bytes = dtype.itemsize * num_rows * length
    if num_bytes < POOLED_BYTES:
        return np.empty((num_rows, length), dtype=dtype)
    return np.frombuffer(_pool.take(num_bytes), dtype=dtype).reshape(num_rows, length)
