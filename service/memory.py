"""Memory that is used again: the first touch of a fresh page costs more than copying into an old one.

Bodies are larger than what the C library keeps for itself, so that each would come from the system and go back to it.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections import deque

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Have this process keep the memory it frees, for the next body; for servers, which own their process."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        for setting, value in ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20)):
            mallopt(setting, value)


class Pool:
    """Memory for what is received; a piece goes back once no view of it is left.

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
