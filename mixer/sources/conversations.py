"""Conversations into rows of ``sequence_length + 1`` tokens, none of them cut that fits into one row.

A few rows are filled at a time. A conversation goes into the fullest one that has room for it; where none has, the
fullest is padded with separators whose loss does not count, and given. A conversation that is longer than a row is cut,
and each further piece begins with the last token of the one before, so that every token of an assistant is the label of
some row, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixer.sources.masks import MARK
from mixer.types import TokenArray

OPEN_ROWS = (
    8  # more waste less and take more of a state: of lognormal lengths 8 leave some 3 % of padding, 1 leaves 20 %
)


@dataclass(frozen=True, eq=False)
class Conversations:
    """Encoded conversations of one group; looks like the array that other documents are joined in, as far as needed.

    Attributes:
        ids: of each conversation, uint32, marked where its loss does not count.
    """

    ids: Sequence[TokenArray]

    ndim = 1

    @property
    def size(self) -> int:
        """Tokens of all of them."""
        return sum(map(len, self.ids))

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return 4 * self.size


class ConversationPacker:
    """Fills rows with whole conversations; its state is the rows that are not full."""

    def __init__(self, sequence_length: int, separator_id: int) -> None:
        self.row_length = sequence_length + 1
        self._separator_id = separator_id
        self._padding = np.array([separator_id | MARK], dtype=np.uint32)
        self._open: tuple[TokenArray, ...] = ()

    @property
    def remainder(self) -> tuple[TokenArray, ...]:
        """The rows that are not full yet, uint32 [fewer than T + 1] each; never changed."""
        return self._open

    @property
    def num_waiting(self) -> int:
        """How many tokens wait for a row to be complete."""
        return sum(map(len, self._open))

    def completes_row(self, documents: Conversations) -> bool:
        """Whether pushing so much is certain to give a row."""
        return self.num_waiting + documents.size > OPEN_ROWS * self.row_length

    def push(self, documents: Sequence[TokenArray]) -> TokenArray:
        """Add conversations and return the rows that are complete, uint32 [n, T + 1]."""
        rows: list[TokenArray] = []
        for ids in documents:
            for piece in self._pieces(ids):
                self._place(piece, rows)
        return self._stacked(rows)

    def push_joined(self, documents: Conversations) -> TokenArray:
        """Do what ``push`` does."""
        return self.push(documents.ids)

    def flush(self) -> TokenArray:
        """Pad the rows that are not full, and return them."""
        rows = [self._padded(row) for row in self._open]
        self._open = ()
        return self._stacked(rows)

    def _pieces(self, ids: TokenArray) -> list[TokenArray]:
        """Return a conversation in pieces that fit into a row, a separator at its end."""
        begins_counted = len(ids) > 0 and not ids[0] & MARK  # the first token of a row is no label
        ends = len(ids) > 0 and int(ids[-1]) & (MARK - 1) == self._separator_id
        ids = np.concatenate([self._padding[: int(begins_counted)], ids, self._padding[: int(not ends)]])
        pieces = [ids[: self.row_length]]
        for start in range(self.row_length - 1, len(ids) - 1, self.row_length - 1):
            piece = ids[start : start + self.row_length].copy()
            piece[0] |= MARK  # it was the last label of the piece before
            pieces.append(piece)
        return pieces

    def _place(self, piece: TokenArray, rows: list[TokenArray]) -> None:
        """Put a piece into an open row, and those that are full then among ``rows``."""
        if len(piece) == self.row_length:
            rows.append(piece)
            return
        by_size = sorted(self._open, key=len, reverse=True)
        fitting = [i for i, row in enumerate(by_size) if len(row) + len(piece) <= self.row_length]
        if fitting:
            row = np.concatenate([by_size.pop(fitting[0]), piece])
        else:
            if len(by_size) == OPEN_ROWS:
                rows.append(self._padded(by_size.pop(0)))
            row = piece
        if len(row) == self.row_length:
            rows.append(row)
        else:
            by_size.append(row)
        self._open = tuple(by_size)

    def _padded(self, row: TokenArray) -> TokenArray:
        return np.concatenate([row, self._padding.repeat(self.row_length - len(row))])

    def _stacked(self, rows: list[TokenArray]) -> TokenArray:
        return np.stack(rows) if rows else np.empty((0, self.row_length), dtype=np.uint32)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows that are not full as plain data."""
        return self.plain(self._open)

    @staticmethod
    def plain(remainder: tuple[TokenArray, ...]) -> dict[str, Any]:
        """Return a remainder as plain data."""
        return {"rows": [row.tolist() for row in remainder]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that ``state_dict`` gave."""
        self._open = tuple(np.array(row, dtype=np.uint32) for row in state["rows"])

    def go_back(self, remainder: tuple[TokenArray, ...]) -> None:
        """Go on from a remainder."""
        self._open = remainder
