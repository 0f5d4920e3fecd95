"""Pages of mapped files, given back to the page cache, so that a reader's memory does not grow to the size of its data.

The resident set of a process counts every page of a mapped file that it ever touched. Giving them back empties the
process's page tables and nothing else: what the pages hold stays in the page cache, where the next touch finds it
without the disk. It needs Linux; elsewhere nothing is given back.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

KEPT_BYTES = 32 << 20  # files that take less stay in memory


def _find() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    # held on to the interpreter: letting go of it once per file would wait for busy threads each time
    found = ctypes.PyDLL(None).madvise
    found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return found


_madvise = _find()


class MappedPages:
    """The pages that some arrays lie on; none are given back if all of them take less than ``KEPT_BYTES``.

    Args:
        arrays: contiguous, each in a read-only mapping of a file. Of other memory the contents would be lost.
    """

    def __init__(self, arrays: Sequence[npt.NDArray[Any]]) -> None:
        self._spans: list[tuple[int, int]] = []  # address and bytes of each
        for array in arrays if sum(array.nbytes for array in arrays) >= KEPT_BYTES else ():
            if array.flags.writeable or not array.flags.c_contiguous:
                raise ValueError("pages of an array that is writeable or not contiguous cannot be given back")
            begin = array.__array_interface__["data"][0]
            first = begin // mmap.PAGESIZE * mmap.PAGESIZE  # a mapping is whole pages: both ends belong to it
            if array.nbytes:
                self._spans.append((first, begin + array.nbytes - first))

    def give_back(self) -> bool:
        """Give them back to the page cache; other threads may read them meanwhile. Return whether that can be done.

        It takes 10 us for 16 files, and for what was touched 1 us per MiB or, in pages of 4 KiB, 40.
        """
        if _madvise is None or not self._spans:
            return False
        # refused only for memory that this process has locked: it wants to keep it
        return all(_madvise(address, num_bytes, mmap.MADV_DONTNEED) == 0 for address, num_bytes in self._spans)
