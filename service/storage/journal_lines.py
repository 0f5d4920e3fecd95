"""Stores the lines of a run's journal: ``FileLines`` beside SQLite, ``TableLines`` in a database that is a server.

``Lines`` is what both offer; ``run_journal`` writes to it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import orjson
import sqlalchemy as sa

from mixer.errors import JournalError
from mixer.journal.file import Journal
from mixer.journal.scan import FIRST, Position, chained, end_of, ending, find_line, following, lines_at, scan
from service.errors import StoreError
from service.storage import tables
from service.storage.store import Store

WRITE_ATTEMPTS = 5
CHECKED_LINES = 100  # at the end of a table, when a run is opened
ROWS = 1000  # of a table, read at once

Record = dict[str, Any]


class Lines(Protocol):
    """The stored lines of a journal. An *offset* says where a line lies: a byte of a file, or the number of a row."""

    position: Position

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line, or raise JournalError and change nothing."""

    @property
    def offset(self) -> int:
        """The offset of the next line."""

    def records_after(self, line: int) -> Iterator[tuple[int, Record]]:
        """Yield offset and content of every line after number ``line``, and check the chain from there on."""

    def records_at(self, offsets: Sequence[int]) -> Iterator[Record]:
        """Yield the lines at some offsets, in order, without reading the others."""

    def record_at(self, line: int) -> Record | None:
        """Return a line by its number, from 1, in constant time; None if there are fewer."""

    def position_of(self, line: int) -> Position | None:
        """Return the end of line number ``line``, in constant time; None if there are fewer."""

    def raw_lines(self) -> Iterator[bytes]:
        """Yield every complete line as it is stored."""

    def sync(self) -> None:
        """Flush all lines so far, so that a power cut loses none of them."""

    def close(self) -> None:
        """Close what is open."""


class FileLines(Journal):
    """A journal in a file."""

    @property
    def offset(self) -> int:
        """The size of the file."""
        return self._size

    def records_after(self, line: int) -> Iterator[tuple[int, Record]]:
        """Yield offset and content of every line after number ``line``."""
        found = find_line(self.path, line) if line else None
        after, offset = (None, 0) if found is None else (found.position, found.end)
        for each in scan(self.path, after=after, offset=offset):
            yield each.offset, each.record()

    def records_at(self, offsets: Sequence[int]) -> Iterator[Record]:
        """Yield the lines that begin at some bytes, each checked against the line before it in the file."""
        return (line.record() for line in lines_at(self.path, offsets))

    def raw_lines(self) -> Iterator[bytes]:
        """Yield every complete line as it is stored."""
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line


class TableLines:
    """A journal in the database: the lines of ``docs/journal.md``, byte for byte, one row each.

    A commit whose answer was lost is looked up before it is retried. A line that was never acknowledged is deleted
    before the next one, as a torn last line of a file would be. Of two servers that open the same journal, the second
    takes it over: later writes of the first are refused.
    """

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run
        self.writer = store.take_over(run)
        self.position = Position(0, FIRST)
        self._is_unsure = False  # whether a line may have been written that was not acknowledged
        self._lock = threading.Lock()
        at = tables.journal_lines.c
        newest = sa.select(at.number, at.line).where(at.run == run).order_by(at.number.desc()).limit(CHECKED_LINES)
        with store.transaction() as connection:
            rows = connection.execute(newest).all()[::-1]
        for row in rows:  # as with files, opening checks the end alone
            if self.position.line == 0 and row.number > 1:
                self.position = _own_end(bytes(row.line), row.number, run)
            else:
                self.position = _follow(self.position, bytes(row.line), run)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line in a transaction of its own."""
        number = self.position.line + 1
        body = orjson.dumps({**record, "number": number}, option=orjson.OPT_SERIALIZE_NUMPY)
        digest = chained(self.position.digest, body)
        line = body[:-1] + ending(digest)
        with self._lock:
            for attempt in range(WRITE_ATTEMPTS):
                try:
                    self._write(number, line)
                    break
                except StoreError as error:
                    self._is_unsure = True
                    if attempt == WRITE_ATTEMPTS - 1:
                        raise JournalError(
                            f"the journal of run {self._run} cannot be written: {error}; nothing was decided: "
                            "call again once the database is back"
                        ) from error
        self.position = Position(number, digest)

    def _write(self, number: int, line: bytes) -> None:
        at = tables.journal_lines.c
        with self._store.transaction() as connection:
            self._store.check_writer(connection, self._run, self.writer)
            if self._is_unsure:
                found = connection.scalar(sa.select(at.line).where((at.run == self._run) & (at.number == number)))
                if found == line:
                    self._is_unsure = False
                    return
                dropped = sa.delete(tables.journal_lines).where((at.run == self._run) & (at.number >= number))
                connection.execute(dropped)
            values = {"run": self._run, "number": number, "line": line}
            connection.execute(sa.insert(tables.journal_lines).values(values))
        self._is_unsure = False

    @property
    def offset(self) -> int:
        """The number of the next line."""
        return self.position.line + 1

    def records_after(self, line: int) -> Iterator[tuple[int, Record]]:
        """Yield number and content of every line after number ``line``."""
        position = self.position_of(line) if line else Position(0, FIRST)
        for text in stored_lines(self._store, self._run, after=line):
            position = _follow(position or Position(0, FIRST), text, self._run)
            yield position.line, _parsed(text)

    def records_at(self, offsets: Sequence[int]) -> Iterator[Record]:
        """Yield the lines of some numbers."""
        at = tables.journal_lines.c
        for begin in range(0, len(offsets), ROWS):
            some = offsets[begin : begin + ROWS]
            query = sa.select(at.line).where((at.run == self._run) & at.number.in_(some)).order_by(at.number)
            with self._store.transaction() as connection:
                found = connection.scalars(query).all()
            if len(found) < len(some):
                raise JournalError(f"the journal of run {self._run}: of lines {some[0]} to {some[-1]} some are lost")
            yield from map(_parsed, found)

    def record_at(self, line: int) -> Record | None:
        """Return a line by its number, from 1."""
        text = self._text_of(line)
        return None if text is None else _parsed(text)

    def position_of(self, line: int) -> Position | None:
        """Return the end of line number ``line``; None if there are fewer."""
        text = self._text_of(line)
        return None if text is None else _own_end(text, line, self._run)

    def _text_of(self, line: int) -> bytes | None:
        at = tables.journal_lines.c
        with self._store.transaction() as connection:
            return connection.scalar(sa.select(at.line).where((at.run == self._run) & (at.number == line)))

    def raw_lines(self) -> Iterator[bytes]:
        """Yield every line as it is stored."""
        return stored_lines(self._store, self._run)

    def sync(self) -> None:
        """Nothing to do: every line is a transaction."""

    def close(self) -> None:
        """Nothing to do: the store has the connections."""


def stored_lines(store: Store, run: str, *, after: int = 0) -> Iterator[bytes]:
    """Yield every line of a journal in the database after number ``after``, whoever writes it."""
    at, last = tables.journal_lines.c, after
    while True:
        query = sa.select(at.number, at.line).where((at.run == run) & (at.number > last)).order_by(at.number)
        with store.transaction() as connection:
            rows = connection.execute(query.limit(ROWS)).all()
        if not rows:
            return
        for row in rows:
            yield bytes(row.line)
        last = rows[-1].number


def _parsed(line: bytes) -> Record:
    record: Record = orjson.loads(line)
    del record["chain"]
    return record


def _own_end(line: bytes, number: int, run: str) -> Position:
    """Return the position that a line itself states; raise JournalError if it is not line ``number``."""
    found = end_of(line)
    if found is None or found.line != number:
        raise JournalError(
            f"the journal of run {run}: line {number} is damaged or another one; restore the database from a backup"
        )
    return found


def _follow(position: Position, line: bytes, run: str) -> Position:
    """Return the position after ``line``; raise JournalError if it does not follow the one before."""
    after = following(line, position)
    if after is None:
        raise JournalError(f"the journal of run {run}: line {position.line + 1} does not follow the line before it")
    return after
