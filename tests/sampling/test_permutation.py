"""The order of an epoch: a bijection for every size and key, the same for ever."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixer.sampling.permutation import order_key, permuted, sides
from mixer.types import IntArray


def in_order_of(positions: IntArray, size: int, key: int) -> IntArray:
    sizes = np.full(len(positions), size)
    return permuted(positions, sizes, np.full(len(positions), key, dtype=np.uint64), sides(sizes))


@given(st.integers(1, 500), st.integers(0, 2**64 - 1))
def test_every_row_stands_once_in_an_order(size: int, key: int) -> None:
    assert sorted(in_order_of(np.arange(size), size, key).tolist()) == list(range(size))


@given(st.lists(st.tuples(st.integers(1, 2**51), st.integers(0, 2**64 - 1), st.floats(0, 1, exclude_max=True))))
def test_rows_of_many_orders_are_found_together_as_alone(rows: list[tuple[int, int, float]]) -> None:
    sizes = np.array([size for size, _, _ in rows], dtype=np.int64)
    keys = np.array([key for _, key, _ in rows], dtype=np.uint64)
    positions = np.array([int(size * share) for size, _, share in rows], dtype=np.int64)
    together = permuted(positions, sizes, keys, sides(sizes))
    assert ((together >= 0) & (together < sizes)).all()
    for row, position, (size, key, _) in zip(together, positions, rows, strict=True):
        assert in_order_of(np.array([position]), size, key) == [row]


def test_orders_never_change_for_runs_are_resumed_by_later_versions() -> None:
    """The digest is of the code that prepared the first runs (commit f11d732)."""
    digest = hashlib.blake2b(digest_size=8)
    for size in (1, 2, 10, 8000, 10**12):
        for epoch in range(3):
            positions = np.arange(0, size, max(1, size // 100))
            digest.update(in_order_of(positions, size, order_key(3, "web", epoch)).tobytes())
    assert digest.hexdigest() == "8a940855e00730f3"
