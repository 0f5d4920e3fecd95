"""Documents of token ids into rows of ``sequence_length + 1`` tokens, with nothing dropped.

Each document is followed by one separator and the stream is cut into rows wherever they end, so a long document runs
over several rows and a row may hold several documents. What does not fill a row waits for the next push.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixer.system.kernels import compiled
from mixer.system.memory import new_tokens
from mixer.types import AnyTokens, RowArray, TokenArray

WIDE = np.dtype(np.int64)  # what a model takes
SMALL = frozenset(map(np.dtype, ("uint8", "uint16", "uint32")))  # token ids that compiled loops read


def smallest_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest of uint8, uint16 and uint32 that holds every id below ``vocab_size``."""
    return np.dtype(np.min_scalar_type(vocab_size - 1) if vocab_size > 1 else np.uint8)


def joined(documents: Sequence[TokenArray], separator_id: int) -> TokenArray:
    """Return documents as one stream of tokens, a separator after each, uint32 [all tokens + documents]."""
    separator = np.array([separator_id], dtype=np.uint32)
    pieces: list[TokenArray] = [separator[:0]]
    for document in documents:
        pieces += (document, separator)
    return np.concatenate(pieces, dtype=np.uint32, casting="same_kind")


class Packer:
    """Cuts a stream of documents into rows; its whole state is the remainder, fewer than T + 1 tokens.

    Rows hold one token more than the model reads: ``row[:-1]`` are the inputs and ``row[1:]`` the labels. Consecutive
    rows share no token.
    """

    def __init__(self, sequence_length: int, separator_id: int) -> None:
        self.row_length = sequence_length + 1
        self._separator_id = separator_id
        self._remainder: TokenArray = np.empty(0, dtype=np.uint32)

    @property
    def remainder(self) -> TokenArray:
        """The tokens that wait for a row to be complete, a copy, uint32 [fewer than T + 1]."""
        return self._remainder.copy()

    @property
    def num_waiting(self) -> int:
        """How many tokens wait for a row to be complete."""
        return len(self._remainder)

    def completes_row(self, stream: TokenArray) -> bool:
        """Whether pushing such a stream is certain to give a row."""
        return len(self._remainder) + len(stream) >= self.row_length

    def push(self, documents: Sequence[TokenArray]) -> TokenArray:
        """Append the documents, a separator after each, and return the rows that are complete, uint32 [n, T + 1]."""
        return self.push_joined(joined(documents, self._separator_id))

    def push_joined(self, stream: TokenArray) -> TokenArray:
        """Do what ``push`` does with documents that ``joined`` has joined."""
        tokens = np.concatenate([self._remainder, stream])
        num_rows = len(tokens) // self.row_length
        end = num_rows * self.row_length
        self._remainder = tokens[end:].copy()  # a view would keep the whole push in memory
        return tokens[:end].reshape(num_rows, self.row_length)

    def flush(self) -> TokenArray:
        """Return no rows: what does not fill one waits for the next push, or is left over."""
        return self._remainder[:0].reshape(0, self.row_length)

    def state_dict(self) -> dict[str, Any]:
        """Return the remainder as plain data."""
        return self.plain(self._remainder)

    @staticmethod
    def plain(remainder: TokenArray) -> dict[str, Any]:
        """Return a remainder as plain data."""
        return {"remainder": remainder.tolist()}

    def go_back(self, remainder: TokenArray) -> None:
        """Go on from a remainder."""
        self._remainder = remainder

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that ``state_dict`` gave."""
        self._remainder = np.array(state["remainder"], dtype=np.uint32)


def split(rows: RowArray, dtype: np.dtype[Any] = WIDE) -> tuple[AnyTokens, AnyTokens]:
    """Return what rows are trained on: inputs and labels as new memory, [n, T] both.

    Args:
        rows: token ids, [n, T + 1].
        dtype: int64, or an unsigned type that holds the ids.
    """
    num_rows, length = len(rows), rows.shape[1] - 1
    inputs, labels = new_tokens(num_rows, length, dtype), new_tokens(num_rows, length, dtype)
    if compiled is not None and rows.flags.c_contiguous and rows.dtype in SMALL and dtype in (WIDE, rows.dtype):
        compiled.split(rows, inputs, labels)
    else:
        np.copyto(inputs, rows[:, :-1], casting="unsafe")  # a stream's ids are uint32, whatever holds the vocabulary
        np.copyto(labels, rows[:, 1:], casting="unsafe")
    return inputs, labels
