"""Token files as tests see them: their stream read by NumPy, and their rows as the delivery reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixer.sources.token_files.base import TokenFile
from mixer.sources.token_files.rows import TokenFileRows
from mixer.types import IntArray
from tests.support.documents import VOCAB

WRITTEN = Path(__file__).parents[1] / "written"


def stream_of(file: TokenFile) -> IntArray:
    """Return all ids of a file, read piece by piece from its bytes."""
    data = file.path.read_bytes()
    offsets, lengths = (column.tolist() for column in file.pieces())
    pieces = [np.frombuffer(data, file.dtype, n, offset) for offset, n in zip(offsets, lengths, strict=True)]
    return np.concatenate(pieces).astype(np.int64)


def rows_of(
    files: Sequence[TokenFile], *, row_length: int = 8, vocab_size: int = VOCAB, separator_id: int | None = None
) -> TokenFileRows:
    """Return the rows of files as a source named web."""
    return TokenFileRows("web", files, row_length=row_length, vocab_size=vocab_size, separator_id=separator_id)
