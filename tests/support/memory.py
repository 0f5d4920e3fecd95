"""How much memory a call takes."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

NUM_LOOKS = 2


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the most memory that a call holds at any moment, in bytes.

    The least of several looks: threads that other tests left only ever add to it, and so does garbage.
    """
    peaks = []
    for _ in range(NUM_LOOKS):
        gc.collect()
        tracemalloc.start()
        try:
            call()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(peaks)
