"""Memory of the server process: freed memory is kept (``mixer.system.memory`` says why), and collections are cheap."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Let malloc keep freed memory for the next body; only for servers, which own their process."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries than glibc
    if mallopt is not None:
        for setting, value in ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20)):
            mallopt(setting, value)


def disable_collections() -> None:
    """Disable garbage collection while the server starts, which saves 0.1 s, until ``enable_collections``."""
    gc.disable()


def enable_collections() -> None:
    """Enable garbage collection, without the objects that exist now: they stay, and scanning them delays requests."""
    gc.freeze()
    gc.enable()
