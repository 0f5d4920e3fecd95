"""Batches in memory stay within the bytes that they may take."""

from __future__ import annotations

import tracemalloc

import numpy as np

from mixer.batches import RowBatch
from service.window import Built, Window

RANKS = 64


def batch(step: int) -> RowBatch:
    numbers = np.arange(RANKS, dtype=np.int64)
    rows = np.full((RANKS, 17), step, dtype=np.uint16)
    return RowBatch(step=step, phase=0, rows=rows, source_ids=numbers % 4, row_numbers=numbers)


def test_short_rows_for_many_ranks_take_no_more_memory_than_the_window_has() -> None:
    window = Window(4 << 20)
    tracemalloc.start()
    try:
        for step in range(200):
            built = Built(batch(step))
            for rank in range(RANKS):
                _ = built.body(rank, RANKS).headers
            assert window.make_room(built.num_bytes, below=step)
            window.add(built)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(window) > 10
    assert used < 1.1 * window.max_bytes


def test_what_is_dropped_gives_back_what_it_was_taken_for() -> None:
    window = Window(1 << 20)
    for step in range(5):
        window.add(built := Built(batch(step)))
        built.body(0, RANKS)  # encoded once it is held
    window.add(Built(batch(4)))
    window.drop_from(3)
    assert len(window) == 3
    assert not window.make_room(1 << 20, below=2)
    assert window.make_room(1 << 20, below=3)
    assert window.num_bytes == 0
