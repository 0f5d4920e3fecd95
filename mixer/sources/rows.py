"""Token rows of one source: documents in, tokenised and packed, rows out, exact at every row.

Documents that are token ids already are packed as they are, and whole rows of them are given as they are. The state is
the place where the current group of documents began, what the packer held there, and how many rows of the group have
been taken. Restoring reads and tokenises that one group again, at most 256 documents of text.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from mixer.errors import SourceExhaustedError, StateMismatchError
from mixer.sources.ahead import ReadAhead
from mixer.sources.base import EndOfSource, Progress
from mixer.sources.chat import encode_conversations, packer_of
from mixer.sources.conversations import ConversationPacker, Conversations
from mixer.sources.faults import NetworkFault
from mixer.sources.groups import Encoded
from mixer.sources.packing import Packer, joined
from mixer.sources.shared import Participant, StreamSlot
from mixer.sources.streams import Documents, Stream
from mixer.sources.text_stream import TextStream
from mixer.sources.tokenizer import TextTokenizer
from mixer.types import IntArray, TokenArray

STATE_VERSION = 2
AHEAD_BYTES = 64 << 20  # of rows that are read ahead, of all sources together; a group has about a MB
MAX_AHEAD = 8  # groups of one source; a hub that needs more for its answer than these last is too slow anyhow


@dataclass(frozen=True)
class _Counts:
    """What has been read, as of the border between two groups."""

    rows: int = 0
    documents: int = 0
    epoch: int = 0
    epoch_tokens: int = 0
    unique_tokens: int | None = None
    bad: int = 0


@dataclass(frozen=True)
class _Start:
    """The state between two groups; made plain when somebody asks for it."""

    place: dict[str, Any]  # the stream's state, shared and never changed
    remainder: Any  # the packer's, never changed
    counts: _Counts


@dataclass(frozen=True)
class _Group:
    """Rows that became complete with one group of documents, and the state in which it was read."""

    start: _Start
    rows: TokenArray
    counts: _Counts  # as of its end
    skipped: list[str]  # records left out of it


class StreamedRows:
    """Rows of one source, read in file order and repeated, stopped or refused when it runs dry.

    With ``repeat`` the remainder of one epoch is the beginning of the next, so that every token is delivered; with
    ``stop`` and ``error`` the last tokens that do not fill a row stay in the packer. After the first ``take`` the next
    groups are read in the background: about 4 times as many rows as are taken at once and half a group at least, and
    twice as many groups each time that they came too late.

    A source that stays out of reach raises SourceUnavailableError, with its name, at the ``take`` whose rows cannot be
    read; those before are given, and every later ``take`` tries again. A delivery whose config says
    ``on_failure: suspend`` goes on without it and asks ``probe`` from time to time, which costs one attempt.
    """

    def __init__(
        self,
        stream: Stream[Any],
        tokenizer: TextTokenizer,
        *,
        sequence_length: int,
        on_exhausted: Literal["repeat", "stop", "error"] = "repeat",
        ahead_bytes: int = AHEAD_BYTES,
        member: Participant | None = None,
    ) -> None:
        """Give the rows of ``stream``; at most about ``ahead_bytes`` of them, and one group, are read ahead.

        With a ``member``, groups are shared with other runs of this process.
        """
        self.name = stream.name
        self.fingerprint = stream.fingerprint
        self._tokenizer = tokenizer
        self._is_text = isinstance(stream, TextStream)
        repeat = on_exhausted == "repeat"
        seat = StreamSlot(stream) if member is None else member.seat(stream, f"{tokenizer.fingerprint} {repeat}")
        self._ahead = ReadAhead(seat, self._encode, repeat=repeat)
        self._ahead_bytes = ahead_bytes
        self._chat = stream.chat
        self._packer: Packer | ConversationPacker = packer_of(sequence_length, tokenizer, self._chat)
        self._empty = np.empty((0, self.row_length), dtype=np.uint32)
        self._on_exhausted = on_exhausted
        self._groups: deque[_Group] = deque()  # read, and not yet taken in full
        self.skipped: list[str] = []  # records left out of what was taken in full, until somebody clears it
        self._taken = 0  # rows taken of the first of them
        self._num_ready = 0  # rows of all of them that are not taken
        self._group_rows = 1  # of the last one read
        self._low = 0  # rows ready below which more are read ahead
        self._looks_ahead = False
        self._depth = 1  # groups to be read ahead at least: what it took so far not to wait
        self._read = self._end_seen = _Counts()  # as of the end of the last of them; as of the last row taken

    @property
    def is_masked(self) -> bool:
        """Whether tokens whose loss does not count are marked, as ``masks`` says."""
        return self._chat is not None

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
            bad_records=counts.bad,
        )

    def take(self, num_rows: int) -> TokenArray:
        """Return the next rows, uint32 [num_rows, T + 1].

        Raises:
            EndOfSource: fewer rows are left and the source is to ``stop``.
            SourceExhaustedError: fewer rows are left and that is to be an error.
            SourceUnavailableError: a network or server failed, and went on failing after all retries.
            SourceError: the source cannot be read on.

        Whatever it raises, nothing is taken: the state is unchanged and the rows already read wait for the next call.
        """
        while self._num_ready < num_rows:
            self._read_group(num_rows)
        rows = np.concatenate([self._empty, *self._pieces(num_rows)])
        self.skip(num_rows)
        return rows

    def at_hand(self, num_rows: int) -> int:
        """Return how many of the next ``num_rows`` rows can be had without waiting or failing."""
        while self._num_ready < num_rows and self._is_next_group_at_hand():
            self._read_group(num_rows)
        return min(self._num_ready, num_rows)

    def begin(self) -> None:
        """Let the next group be read in the background, before several sources are waited for one after the other."""
        if not self._looks_ahead:
            self._ahead.want(1)

    def copy_to(self, out: TokenArray, places: IntArray) -> None:
        """Copy the next rows, which are at hand, to ``places`` of ``out``, without taking them."""
        start = 0
        for piece in self._pieces(len(places)):
            out[places[start : start + len(piece)]] = piece
            start += len(piece)

    def skip(self, num_rows: int) -> None:
        """Take the next rows, which are at hand, without returning them."""
        if not self._looks_ahead and self._num_ready - num_rows < max(4 * num_rows, self._low):
            self._look_ahead(num_rows)
        self._num_ready -= num_rows
        self._taken += num_rows
        while self._groups and self._taken >= len(self._groups[0].rows):
            group = self._groups.popleft()
            self._taken -= len(group.rows)
            self._end_seen = group.counts
            self.skipped += group.skipped

    def probe(self) -> bool:
        """Return whether the next group can be read now, in one attempt; what it reads waits for the next ``take``.

        Raises:
            SourceError: it is there again, but cannot be read.
        """
        try:
            self._ahead.peek(persist=False)
        except NetworkFault:
            return False
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last row taken as plain data, a few kB: the remainder is most of it."""
        start = self._groups[0].start if self._groups else self._here()
        return {
            **self._identity(),
            "stream": copy.deepcopy(start.place),
            "packer": self._packer.plain(start.remainder),
            "counts": asdict(start.counts),
            "taken": self._taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the last row taken.

        Raises:
            StateMismatchError: the state of another source, version, reader, tokenizer or row length, or of text that
                has changed since.
            SourceError: the group that was being taken cannot be read again.
        """
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise StateMismatchError(
                    f"source {self.name}: the saved state has {key} {state.get(key)!r}, but this run has {value!r}"
                )
        self._ahead.move(copy.deepcopy(state["stream"]))
        self._packer.load_state_dict(state["packer"])
        self._groups.clear()
        self.skipped.clear()
        self._taken = self._num_ready = 0
        self._looks_ahead = False
        self._read = self._end_seen = _Counts(**state["counts"])
        if state["taken"]:
            self._read_group(state["taken"])
            if self._num_ready <= state["taken"]:
                raise StateMismatchError(
                    f"source {self.name}: the saved state has taken {state['taken']} rows of a group that now gives "
                    f"{self._num_ready}; its text has changed since"
                )
            self._taken = state["taken"]
            self._num_ready -= self._taken

    def _pieces(self, num_rows: int) -> Iterator[TokenArray]:
        """Yield the next rows, which are at hand, as they lie in their groups."""
        start = self._taken
        for group in self._groups:
            if num_rows <= 0:
                return
            piece = group.rows[start : start + num_rows]
            yield piece
            num_rows -= len(piece)
            start = 0

    def _look_ahead(self, num_rows: int) -> None:
        self._looks_ahead = True  # until the next group has come
        missing = max(4 * num_rows, self._group_rows) - self._num_ready + num_rows
        room = self._ahead_bytes // (4 * self.row_length * self._group_rows)
        self._ahead.want(max(1, min(MAX_AHEAD, room, max(self._depth, -(-missing // self._group_rows)))))

    def _identity(self) -> dict[str, Any]:
        """What a state must have in common with this object."""
        identity = {
            "version": STATE_VERSION,
            "tokenizer": self._tokenizer.fingerprint,
            "row_length": self.row_length,
        }
        return identity if self._chat is None else {**identity, "chat template": self._chat.digest}

    def _here(self) -> _Start:
        """The state between two groups."""
        return _Start(self._ahead.place, self._packer.remainder, self._read)

    def _encode(self, documents: Documents) -> Encoded:
        if self._chat is not None:
            return Conversations(encode_conversations(documents, self._tokenizer))  # type: ignore[arg-type]
        if self._is_text:
            return self._tokenizer.encode_joined(documents)  # type: ignore[arg-type]
        if isinstance(documents, np.ndarray):
            return documents  # rows as they are
        return joined(documents, self._tokenizer.separator_id)  # type: ignore[arg-type]

    def _rows_of(self, encoded: Encoded) -> TokenArray:
        """Return the rows that a group completes."""
        if isinstance(encoded, np.ndarray) and encoded.ndim == 2:
            return encoded
        return self._packer.push_joined(encoded)  # type: ignore[arg-type]  # the packer is of the stream's kind

    def _read_group(self, num_wanted: int) -> None:
        """Read documents until at least one more row is complete."""
        if self._looks_ahead and self._ahead.at_hand() is None:  # it will have to wait
            self._depth = min(MAX_AHEAD, 2 * self._depth)
        start = self._here()
        rows = self._empty
        counts, skipped = self._read, list[str]()
        try:
            while not len(rows):
                read = self._ahead.peek()
                if read.num_documents:
                    encoded = read.encoded.result()
                    rows = self._rows_of(encoded)
                    size = encoded.size if self._chat is None else len(rows) * self.row_length  # padding counts
                    counts = replace(
                        counts,
                        rows=counts.rows + len(rows),
                        documents=counts.documents + read.num_documents,
                        epoch_tokens=counts.epoch_tokens + size,
                    )
                else:
                    rows = self._packer.flush()
                    size = len(rows) * self.row_length
                    counts = replace(counts, rows=counts.rows + len(rows), epoch_tokens=counts.epoch_tokens + size)
                    if not len(rows) or self._on_exhausted == "repeat":
                        counts = self._next_epoch(counts, num_wanted)
                counts = replace(counts, bad=counts.bad + len(read.skipped))
                skipped += read.skipped
                self._ahead.pop()
        except BaseException:  # Ctrl-C too must not lose documents
            if self._ahead.place is not start.place:
                self._ahead.move(start.place)
            self._packer.go_back(start.remainder)
            raise
        self._groups.append(_Group(start, rows, counts, skipped))
        self._read = counts
        self._num_ready += len(rows)
        self._group_rows = len(rows)
        self._low = len(rows) // 2
        self._looks_ahead = False

    def _is_next_group_at_hand(self) -> bool:
        """Whether a group that completes a row has been read and encoded, so that reading it on cannot fail."""
        encoded = self._ahead.at_hand()
        return encoded is not None and (encoded.ndim == 2 or self._packer.completes_row(encoded))  # type: ignore[arg-type]

    def _next_epoch(self, counts: _Counts, num_wanted: int) -> _Counts:
        if self._on_exhausted == "stop":
            raise EndOfSource(self.name, self._num_ready)
        if self._on_exhausted == "error":
            rows = self.progress.rows
            raise SourceExhaustedError(
                f"source {self.name} ran dry after {rows} rows ({rows * self.row_length} tokens): {num_wanted} more "
                f"were asked for and {self._num_ready} are left; set on_exhausted to repeat or stop, cap the "
                "source's weight, or give it more text"
            )
        return replace(counts, epoch=counts.epoch + 1, epoch_tokens=0, unique_tokens=counts.epoch_tokens)
