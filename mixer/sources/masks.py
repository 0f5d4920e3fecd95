"""Tokens whose loss does not count, marked in the token ids themselves: by the highest bit of their type.

So a mark goes wherever its token goes: through packing, prepared rows, a gather and the wire. It takes one bit of the
smallest type that holds the vocabulary, and the next larger type only where that bit is needed, as with 40,000 tokens.
Only runs that have such tokens have marks; ``split`` turns them into labels of -100.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixer.errors import ConfigError
from mixer.sources.packing import WIDE, smallest_dtype, split
from mixer.types import AnyTokens, RowArray, TokenArray

IGNORED_LABEL = -100  # what trainers write over the labels of tokens that are not to be learned
MARK = 1 << 31  # of ids of 32 bits, in which documents are packed


def masked_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest of uint8, uint16 and uint32 that holds every id below ``vocab_size`` and a mark."""
    return smallest_dtype(2 * vocab_size)


def mark_of(dtype: np.dtype[Any]) -> int:
    """Return the mark in ids of an unsigned type: its highest bit."""
    return 1 << (8 * dtype.itemsize - 1)


def check_wide(dtype: np.dtype[Any]) -> None:
    """Raise ConfigError unless labels of a type can be -100."""
    if dtype != WIDE:
        raise ConfigError(f"compact: labels of {dtype} cannot be -100, as they are in conversations; leave out compact")


def narrowed(rows: RowArray, dtype: np.dtype[Any]) -> RowArray:
    """Return marked rows in another unsigned type that holds them."""
    if rows.dtype == dtype:
        return rows
    mark = mark_of(rows.dtype)
    ids: RowArray = (rows & rows.dtype.type(mark - 1)).astype(dtype)
    ids[(rows & rows.dtype.type(mark)) != 0] |= dtype.type(mark_of(dtype))
    return ids


def marked(ids: TokenArray, counts: np.ndarray[Any, np.dtype[np.bool_]]) -> TokenArray:
    """Return token ids, uint32 [n], with a mark on those that do not count, as ``counts``, [n], says."""
    return np.where(counts, ids, ids | np.uint32(MARK)).astype(np.uint32)


def split_marked(rows: RowArray, dtype: np.dtype[Any] = WIDE) -> tuple[AnyTokens, AnyTokens]:
    """Return what marked rows, [n, T + 1], are trained on: inputs and labels, int64 [n, T]; -100 where marked.

    Raises:
        ConfigError: another type is asked for.
    """
    check_wide(dtype)
    mark = mark_of(rows.dtype)
    inputs, labels = split(rows & rows.dtype.type(mark - 1))
    labels[(rows[:, 1:] & rows.dtype.type(mark)) != 0] = IGNORED_LABEL
    return inputs, labels
