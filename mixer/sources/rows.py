"""Token rows of one source: documents in, tokenised and packed, rows out, exact at every row.

The state is the place where the current group of documents began, what the packer held there, and how many rows of
the group have been taken. Restoring reads and tokenises that one group again, at most 64 documents.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mixer.errors import SourceExhaustedError, StateMismatchError
from mixer.packing import Packer
from mixer.sources import Progress
from mixer.tokenizer import TextTokenizer
from mixer.types import TokenArray

if TYPE_CHECKING:
    from mixer.sources.huggingface import TextStream

STATE_VERSION = 1


class EndOfSource(Exception):  # noqa: N818  # a signal, like StopIteration
    """A source whose ``on_exhausted`` is ``stop`` has fewer rows left than asked for; ``rows_left`` may still be taken.

    A signal to the delivery, not an error of the user's: the run ends here as planned.
    """

    def __init__(self, name: str, rows_left: int) -> None:
        super().__init__(f"source {name} has ended with {rows_left} rows left")
        self.name = name
        self.rows_left = rows_left


@dataclass(frozen=True)
class _Counts:
    """What has been read, as of the border between two groups."""

    rows: int = 0
    documents: int = 0
    epoch: int = 0
    epoch_tokens: int = 0
    unique_tokens: int | None = None


@dataclass(frozen=True)
class _Group:
    """Rows that became complete with one group of documents, and the state in which it was read."""

    start: dict[str, Any]
    rows: TokenArray
    counts: _Counts  # as of its end


class StreamedRows:
    """Rows of one source, read in file order and repeated, stopped or refused when it runs dry.

    With ``repeat`` the remainder of one epoch is the beginning of the next, so that every token is delivered; with
    ``stop`` and ``error`` the last tokens that do not fill a row stay in the packer.
    """

    def __init__(
        self,
        stream: TextStream,
        tokenizer: TextTokenizer,
        *,
        sequence_length: int,
        on_exhausted: Literal["repeat", "stop", "error"] = "repeat",
    ) -> None:
        self.name = stream.name
        self._stream = stream
        self._tokenizer = tokenizer
        self._packer = Packer(sequence_length, tokenizer.separator_id)
        self._on_exhausted = on_exhausted
        self._groups: deque[_Group] = deque()  # read, and not yet taken in full
        self._taken = 0  # rows taken of the first of them
        self._read = _Counts()  # as of the end of the last of them
        self._end_seen = _Counts()  # as of the last row taken

    @property
    def row_length(self) -> int:
        """Tokens of a row: T + 1."""
        return self._packer.row_length

    @property
    def progress(self) -> Progress:
        """How far the source has been read; the same after a resume."""
        counts = self._groups[0].counts if self._taken else self._end_seen
        rows = self._end_seen.rows + self._taken
        return Progress(
            rows=rows,
            tokens=rows * self.row_length,
            documents=counts.documents,
            epoch=counts.epoch,
            unique_tokens=counts.unique_tokens,
        )

    def take(self, num_rows: int) -> TokenArray:
        """Return the next rows, uint32 [num_rows, T + 1].

        Raises:
            EndOfSource: fewer rows are left and the source is to ``stop``.
            SourceExhaustedError: fewer rows are left and that is to be an error.
            SourceError: the source cannot be read on.

        Whatever it raises, nothing is taken: the state is unchanged and the rows already read wait for the next call.
        """
        while self._num_ready() < num_rows:
            self._read_group(num_rows)
        pieces = [np.empty((0, self.row_length), dtype=np.uint32)]
        missing = num_rows
        while missing:
            group = self._groups[0]
            piece = group.rows[self._taken : self._taken + missing]
            pieces.append(piece)
            missing -= len(piece)
            self._taken += len(piece)
            if self._taken == len(group.rows):
                self._groups.popleft()
                self._taken = 0
                self._end_seen = group.counts
        return np.concatenate(pieces)

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last row taken as plain data, a few kB: the remainder is most of it."""
        start = self._groups[0].start if self._groups else self._here()
        return {**copy.deepcopy(start), "taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the last row taken.

        Raises:
            StateMismatchError: the state of another source, version, tokenizer or row length, or of text that has
                changed since.
            SourceError: the group that was being taken cannot be read again.
        """
        expected = {key: value for key, value in self._here().items() if key in ("version", "tokenizer", "row_length")}
        for key, value in expected.items():
            if state.get(key) != value:
                raise StateMismatchError(
                    f"source {self.name}: the saved state has {key} {state.get(key)!r}, but this run has {value!r}"
                )
        self._stream.load_state_dict(state["stream"])
        self._packer.load_state_dict(state["packer"])
        self._groups.clear()
        self._taken = 0
        self._read = self._end_seen = _Counts(**state["counts"])
        if state["taken"]:
            self._read_group(state["taken"])
            if self._num_ready() <= state["taken"]:
                raise StateMismatchError(
                    f"source {self.name}: the saved state has taken {state['taken']} rows of a group that now gives "
                    f"{self._num_ready()}; its text has changed since"
                )
            self._taken = state["taken"]

    def _num_ready(self) -> int:
        return sum(len(group.rows) for group in self._groups) - self._taken

    def _here(self) -> dict[str, Any]:
        """The state between two groups."""
        return {
            "version": STATE_VERSION,
            "tokenizer": self._tokenizer.fingerprint,
            "row_length": self.row_length,
            "stream": self._stream.state_dict(),
            "packer": self._packer.state_dict(),
            "counts": asdict(self._read),
        }

    def _read_group(self, num_wanted: int) -> None:
        """Read documents until at least one more row is complete."""
        start = self._here()
        rows: TokenArray = np.empty((0, self.row_length), dtype=np.uint32)
        counts = self._read
        try:
            while not len(rows):
                documents = self._stream.next_group()
                if not documents:
                    counts = self._next_epoch(counts, num_wanted)
                    continue
                encoded = self._tokenizer.encode(documents)
                rows = self._packer.push(encoded)
                num_tokens = sum(map(len, encoded)) + len(encoded)
                counts = replace(
                    counts,
                    rows=counts.rows + len(rows),
                    documents=counts.documents + len(documents),
                    epoch_tokens=counts.epoch_tokens + num_tokens,
                )
        except BaseException:  # Ctrl-C too must not lose documents
            self._stream.load_state_dict(start["stream"])
            self._packer.load_state_dict(start["packer"])
            raise
        self._groups.append(_Group(start, rows, counts))
        self._read = counts

    def _next_epoch(self, counts: _Counts, num_wanted: int) -> _Counts:
        if self._on_exhausted == "stop":
            raise EndOfSource(self.name, self._num_ready())
        if self._on_exhausted == "error":
            rows = self.progress.rows
            raise SourceExhaustedError(
                f"source {self.name} ran dry after {rows} rows ({rows * self.row_length} tokens): {num_wanted} more "
                f"were asked for and {self._num_ready()} are left; set on_exhausted to repeat or stop, cap the "
                "source's weight, or give it more text"
            )
        self._stream.restart()
        return replace(counts, epoch=counts.epoch + 1, epoch_tokens=0, unique_tokens=counts.epoch_tokens)
