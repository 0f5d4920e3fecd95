"""Batches in memory stay within the bytes that they may take."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.delivery.batch import RowBatches
from service.runs.cache import BatchCache, BuiltBatches
from service.wire.batches import encode

RANKS = 64


def batches(steps: range) -> RowBatches:
    numbers = np.tile(np.arange(RANKS, dtype=np.int64), (len(steps), 1))
    rows = np.tile(np.array(steps, dtype=np.uint16)[:, None, None], (1, RANKS, 17))
    return RowBatches(steps, 0, rows, numbers % 4, numbers)


@pytest.mark.parametrize("together", [1, 7])
def test_short_rows_for_many_ranks_take_no_more_memory_than_the_window_has(together: int) -> None:
    window = BatchCache(4 << 20)
    BuiltBatches(batches(range(together))).encoded(
        0, RANKS
    )  # what Arrow loads when it is first used is not the window's
    tracemalloc.start()
    try:
        for step in range(0, 200, together):
            built = BuiltBatches(batches(range(step, step + together)))
            for rank in range(RANKS):
                for each in built.steps:
                    _ = built.encoded(rank, RANKS).body(each).headers
            assert window.make_room(built.num_bytes, below=step)
            window.add(built)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(window) > 10
    assert used < 1.1 * window.max_bytes


DIVISORS = [n for n in range(1, RANKS + 1) if RANKS % n == 0]


@pytest.mark.parametrize("together", [1, 7])
def test_whoever_asks_with_whatever_number_of_ranks_the_memory_stays_within_the_window(together: int) -> None:
    window = BatchCache(2 << 20)
    BuiltBatches(batches(range(together))).encoded(
        0, RANKS
    )  # what Arrow loads when it is first used is not the window's
    most = 0
    tracemalloc.start()
    try:
        for step in range(0, 84, together):
            built = BuiltBatches(batches(range(step, step + together)))
            assert window.make_room(built.num_bytes, below=step)
            window.add(built)
            for world_size in DIVISORS:
                for rank in range(world_size):
                    for each in built.steps:
                        _ = built.encoded(rank, world_size).body(each).headers
            most = max(most, tracemalloc.get_traced_memory()[0])
            assert window.num_bytes <= window.max_bytes
    finally:
        tracemalloc.stop()
    assert len(window) > 10
    assert most < 1.1 * window.max_bytes


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(DIVISORS), st.integers(0, 63), st.booleans()), max_size=60),
    st.sampled_from([1 << 14, 1 << 16, 1 << 20]),
)
def test_what_a_window_counts_is_what_its_batches_take(asked: list[tuple[int, int, int, bool]], room: int) -> None:
    window, widest = BatchCache(room), 0
    for step, world_size, rank, is_cut in asked:
        built = window.get(step)
        if built is None:
            window.add(built := BuiltBatches(batches(range(step, step + 1))))
        encoded = built.encoded(rank % world_size, world_size)
        assert bytes(encoded.body(step).data) == bytes(
            encode(batches(range(step, step + 1)), rank % world_size, world_size).body(step).data
        )
        if is_cut:
            window.drop_from(step + 1)
        widest = max(widest, built.num_bytes)
        held = {id(each): each for each in map(window.get, range(10)) if each is not None}
        assert window.num_bytes == sum(each.num_bytes for each in held.values())
        assert window.num_bytes <= max(room, sum(2 * each.batches.rows.nbytes for each in held.values()) + widest)


def test_what_is_dropped_gives_back_what_it_was_taken_for() -> None:
    window = BatchCache(1 << 20)
    for step in range(5):
        window.add(built := BuiltBatches(batches(range(step, step + 1))))
        built.encoded(0, RANKS)  # once it is held
    window.add(BuiltBatches(batches(range(4, 5))))
    window.drop_from(3)
    assert len(window) == 3
    assert not window.make_room(1 << 20, below=2)
    assert window.make_room(1 << 20, below=3)
    assert window.num_bytes == 0


def test_a_cut_leaves_the_batches_before_it_and_their_bytes_as_they_were() -> None:
    window, whole = BatchCache(1 << 20), BuiltBatches(batches(range(3, 9)))
    expected = [bytes(whole.encoded(1, 2).body(step).data) for step in range(3, 9)]
    window.add(whole)
    window.drop_from(6)
    left = window.get(5)
    assert left is not None
    assert (left.steps, len(window), window.get(6)) == (range(3, 6), 3, None)
    for encoded in (left.held(1, 2), BuiltBatches(left.batches).encoded(1, 2)):
        assert encoded is not None
        assert [bytes(encoded.body(step).data) for step in left.steps] == expected[:3]
    window.add(BuiltBatches(batches(range(6, 9))))
    assert len(window) == 6
    assert window.make_room(1 << 20, below=9)
    assert (len(window), window.num_bytes) == (0, 0)


def test_batches_that_are_built_again_take_the_place_of_those_they_overlap() -> None:
    window = BatchCache(1 << 20)
    for steps in (range(3), range(3, 6), range(6, 9)):
        window.add(BuiltBatches(batches(steps)))
    window.add(again := BuiltBatches(batches(range(2, 5))))
    assert [step for step in range(9) if window.get(step) is not None] == [2, 3, 4, 6, 7, 8]
    assert window.get(3) is again
    window.drop_from(0)
    assert (len(window), window.num_bytes) == (0, 0)
