"""The server keeps what it frees (``mixer.system.memory`` says why), and never collects what it started with."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Have this process keep the memory it frees, for the next body; for servers, which own their process."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        for setting, value in ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20)):
            mallopt(setting, value)


def put_off_collections() -> None:
    """Have no garbage searched for while a server starts, which takes 0.1 s; ``settle`` goes back to it."""
    gc.disable()


def settle() -> None:
    """Search for garbage again, but never among what is there now: it stays, and a search of it holds up requests."""
    gc.freeze()
    gc.enable()
