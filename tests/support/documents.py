"""The documents that the files of ``tests/written`` hold, made from a seed, so that every id and border is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer.types import BoolArray, IntArray

VOCAB, SEPARATOR = 50_257, 50_256  # GPT-2's


def documents(num: int = 12, *, seed: int = 0, ends: bool = True, vocab: int = SEPARATOR) -> list[IntArray]:
    """Return documents of 1 to 40 ids below ``vocab``, each ended by the separator if ``ends``."""
    rng = np.random.default_rng(seed)
    found = [rng.integers(0, vocab, rng.integers(1, 40)) for _ in range(num)]
    return [np.append(ids, SEPARATOR) for ids in found] if ends else found


def stream(parts: Sequence[IntArray]) -> IntArray:
    """Return documents one after the other."""
    return np.concatenate(parts)


def starts(parts: Sequence[IntArray]) -> IntArray:
    """Return where each document begins in their stream, and its length, int64 [documents + 1]."""
    return np.cumsum([0, *map(len, parts)])


def leading(seed: int) -> list[IntArray]:
    """Return documents that the separator begins, as speedruns and NeMo write them."""
    return [np.concatenate([[SEPARATOR], ids]) for ids in documents(seed=seed, ends=False)]


def masks(seed: int) -> list[BoolArray]:
    """Return which ids of ``documents(seed=seed)`` count."""
    rng = np.random.default_rng(1000 + seed)
    return [rng.random(len(ids)) < 0.7 for ids in documents(seed=seed)]


def samples(name: str, seed: int) -> list[IntArray]:
    """Return the samples of a folder of MDS: documents, or pieces of 16 ids of their stream."""
    parts = documents(seed=seed)
    if name != "fixed":
        return parts
    ids = stream(parts)
    return [*ids[: len(ids) // 16 * 16].reshape(-1, 16)]
