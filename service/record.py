"""The record of one run: its journal, in a file or in the database, and a walk that goes on from where it ends.

After a kill the walk is driven again over the lines after the newest snapshot. Every line that it writes then must be
the one that is there already, so that no phase can be decided twice differently and nothing acknowledged is lost;
after the last line, new ones are appended. A restart therefore leaves no trace in the journal.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import orjson
import sqlalchemy as sa

from mixer.config import Curriculum, Pivot
from mixer.errors import JournalError, StateMismatchError
from mixer.fork import fork
from mixer.inbox import record_to_losses
from mixer.journal import Fsync, Journal
from mixer.scan import FIRST, Position, chained, ending
from mixer.walk import Walk
from service import tables
from service.errors import StoreError
from service.store import Store

WRITE_ATTEMPTS = 5
CHECKED_LINES = 100  # of a table, when a run is opened
UNFINISHED = "journal.fork"  # the file of a fork until the database has the run

log = logging.getLogger(__name__)


class Lines(Protocol):
    """Where the lines of a journal lie."""

    position: Position

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line, or raise JournalError and leave everything as it was."""

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every line so far."""

    def record_at(self, line: int) -> dict[str, Any] | None:
        """Return a line by its number, from 1, at the same cost whatever its number."""

    def close(self) -> None:
        """Let go."""


class TableLines:
    """A journal in the database: the lines of ``docs/journal.md``, byte for byte, one row each.

    A commit whose answer was lost is looked up before it is tried again, and a line that was never acknowledged is
    taken away before the next one, as a torn last line of a file would be. Of two servers that open the same journal
    the second one takes it over: what the first one would write then is refused.
    """

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run
        self._writer = f"{secrets.token_hex(8)}, process {os.getpid()} on {socket.gethostname()}"[:200]
        self._take_over()
        self.position = Position(0, FIRST)
        self._is_unsure = False
        self._lock = threading.Lock()
        at = tables.journal_lines.c
        newest = sa.select(at.number, at.line).where(at.run == run).order_by(at.number.desc()).limit(CHECKED_LINES)
        with store.transaction() as connection:
            rows = connection.execute(newest).all()[::-1]
        for row in rows:  # as opening a file does, only the end is checked
            if self.position.line == 0 and row.number > 1:
                self.position = Position(row.number, bytes(row.line)[-35:-3].decode("ascii", "replace"))
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

    def _take_over(self) -> None:
        mine = tables.journal_writers.c.run == self._run
        with self._store.transaction() as connection:  # waits for a line that is being written
            connection.execute(sa.delete(tables.journal_writers).where(mine))
            connection.execute(sa.insert(tables.journal_writers).values(run=self._run, writer=self._writer))

    def _check_is_writer(self, connection: sa.Connection) -> None:
        at = tables.journal_writers.c
        writer = connection.scalar(sa.select(at.writer).where(at.run == self._run).with_for_update(read=True))
        if writer != self._writer:
            raise JournalError(
                f"another server writes the journal of run {self._run} now ({writer}); stop one of the two, and start "
                "this one again if it is to go on"
            )

    def _write(self, number: int, line: bytes) -> None:
        at = tables.journal_lines.c
        with self._store.transaction() as connection:
            self._check_is_writer(connection)
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

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every line so far, checking the chain."""
        position = Position(0, FIRST)
        for line in self.raw_lines():
            position = _follow(position, line, self._run)
            record: dict[str, Any] = orjson.loads(line)
            del record["chain"]
            yield record

    def record_at(self, line: int) -> dict[str, Any] | None:
        """Return a line by its number, from 1."""
        at = tables.journal_lines.c
        with self._store.transaction() as connection:
            found = connection.scalar(sa.select(at.line).where((at.run == self._run) & (at.number == line)))
        return None if found is None else orjson.loads(found)

    def raw_lines(self) -> Iterator[bytes]:
        """Yield every line as it is stored."""
        return stored_lines(self._store, self._run)

    def close(self) -> None:
        """Nothing to let go of: the store has the connections."""


def stored_lines(store: Store, run: str) -> Iterator[bytes]:
    """Yield every line of a journal in the database, whoever writes it."""
    at, last = tables.journal_lines.c, 0
    while True:
        query = sa.select(at.number, at.line).where((at.run == run) & (at.number > last)).order_by(at.number)
        with store.transaction() as connection:
            rows = connection.execute(query.limit(1000)).all()
        if not rows:
            return
        for row in rows:
            yield bytes(row.line)
        last = rows[-1].number


def _follow(position: Position, line: bytes, run: str) -> Position:
    """Return the position after ``line``; raise JournalError if it does not follow the one before."""
    body, _, _ = line.rpartition(b',"chain":"')
    digest = chained(position.digest, body + b"}")
    if line != body + ending(digest):
        raise JournalError(f"the journal of run {run}: line {position.line + 1} does not follow the line before it")
    return Position(position.line + 1, digest)


class RunJournal:
    """What the walk of a run writes to: first over the lines that are there, comparing; then new lines.

    Args:
        lines: where they lie.
        on_line: told each line, those of before a restart first, and whether it is new; new ones once durable.
    """

    def __init__(
        self, lines: Lines, on_line: Callable[[dict[str, Any], bool], None] = lambda _record, _is_new: None
    ) -> None:
        self.path = getattr(lines, "path", "the journal in the database")
        self._lines = lines
        self._on_line = on_line
        self._passed = lines.position
        self._expected: dict[str, Any] | None = None  # the line that the walk is to write again
        self._rest: Iterator[dict[str, Any]] = iter(())  # those after it

    @property
    def position(self) -> Position:
        """The end of the newest line, or of the line that the walk stands at while it is driven again."""
        return self._passed

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every line so far."""
        return self._lines.records()

    def raw_lines(self) -> Iterator[bytes]:
        """Yield every line as it is stored, up to the newest whole one."""
        if isinstance(self._lines, TableLines):
            yield from self._lines.raw_lines()
            return
        with Path(self.path).open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line

    def record_at(self, line: int) -> dict[str, Any] | None:
        """Return a line by its number, from 1."""
        return self._lines.record_at(line)

    def position_of(self, line: int) -> Position | None:
        """Return the end of line number ``line``: while driven again, only its number is known and compared."""
        return Position(line, "") if line <= self._lines.position.line else None

    def resume_from(self, position: Position) -> None:
        """Stand at an earlier line; what comes after it is going to be written again, and compared."""
        self._passed = position

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a line; while driven again, compare it with the one that is there.

        Raises:
            StateMismatchError: another line is there.
        """
        if self._expected is not None:
            self._compare(record, self._expected)
            return
        self._lines.append(record)
        self._passed = self._lines.position
        self._on_line(_plain(record), True)

    def _compare(self, record: Mapping[str, Any], expected: dict[str, Any]) -> None:
        again = _plain(record)
        differing = [key for key in again if again[key] != expected.get(key)]
        if differing:
            key = differing[0]
            raise StateMismatchError(
                f"driven again, the walk writes {key} {again[key]!r} in line {self._passed.line + 1} of {self.path}, "
                f"but the journal has {expected.get(key)!r}; start the server with the versions of the libraries "
                "that the journal's header names"
            )
        self._passed = Position(self._passed.line + 1, "")
        self._on_line(expected, False)
        self._expected = next(self._rest, None)

    def unsynced(self) -> list[str]:
        """Return no line: all are flushed first, as a snapshot in the database must not name one that may be lost."""
        if isinstance(self._lines, Journal):
            self._lines.sync()
        return []

    def drive_again(self, walk: Walk) -> int:
        """Drive ``walk`` over every line after the one it stands at, and return how many there were."""
        begin, end = self._passed.line, self._lines.position.line
        self._rest = self._lines_after(begin)
        self._expected = next(self._rest, None)
        while (record := self._expected) is not None:
            _drive(walk, record)
            if self._expected is record:
                raise StateMismatchError(
                    f"driven again, the walk does not write line {self._passed.line + 1} of {self.path}, a "
                    f"{record['type']}; the journal was not written by this service"
                )
        self._passed = self._lines.position
        return max(0, end - begin)

    def _lines_after(self, begin: int) -> Iterator[dict[str, Any]]:
        """Yield the lines after number ``begin``, having told of those up to it."""
        for number, record in enumerate(self.records(), start=1):
            record.pop("number")  # as when it was written
            if number > begin:
                yield record
            else:
                self._on_line(record, False)

    def close(self) -> None:
        """Let go of the lines."""
        self._lines.close()


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = orjson.loads(orjson.dumps(dict(record), option=orjson.OPT_SERIALIZE_NUMPY))
    return plain


def recover(
    curriculum: Curriculum,
    lines: Lines,
    snapshot: Mapping[str, Any] | None,
    on_line: Callable[[dict[str, Any], bool], None],
) -> tuple[Walk, RunJournal]:
    """Return a walk that stands where its journal ends, and what it writes to.

    Args:
        curriculum: the run.
        lines: its journal, new or not.
        snapshot: a state of the walk somewhere in the journal, to begin from; one that cannot be used is passed over.
        on_line: see ``RunJournal``.
    """
    if lines.position.line == 0:
        journal = RunJournal(lines, on_line)
        return _walk(curriculum, journal), journal
    for state in (snapshot, None):
        journal = RunJournal(lines, on_line)
        walk = _walk(curriculum, journal)
        journal.resume_from(Position(_begin_of(journal), ""))
        if state is not None:
            try:
                walk.load_state_dict(state)
            except StateMismatchError as error:
                log.warning("the newest snapshot is passed over: %s", error)
                continue
            if journal.position.line > lines.position.line:
                continue  # a power cut took lines that it had seen
        break
    journal.drive_again(walk)
    return walk, journal


def _walk(curriculum: Curriculum, journal: RunJournal) -> Walk:
    """Return a walk that writes to ``journal``, which tells of its alarms as of every other line."""
    return Walk(curriculum, journal=journal, on_alarm=lambda _: None)  # type: ignore[arg-type]  # all that it asks of one


def _drive(walk: Walk, record: Mapping[str, Any]) -> None:
    """Make the walk do what ``record`` says was done."""
    kind = record["type"]
    if kind in ("phase", "alarm"):  # a decision writes the alarms that it found, pivots for them, and its phase
        walk.phase_at(walk.frontier)
    elif kind == "feedback":
        walk.report(record["step"], record_to_losses(dict(record), len(walk.names)))
    elif kind == "pivot":
        tables_given = {key: record[key] for key in ("name", "floors", "caps", "exclude")}
        walk.pivot(Pivot(**tables_given), at_step=record["at_step"], cut=record["at_step"] < record["decided_before"])
    elif kind == "unique_tokens":
        walk.learn_unique_tokens(record["source"], record["tokens"])
    else:
        raise StateMismatchError(f"the journal has a {kind} line, which the service does not write; use another folder")


def _begin_of(journal: RunJournal) -> int:
    """Return the number of the line that a walk without a snapshot stands at: a fork's own steps begin later."""
    parent = (journal.record_at(1) or {}).get("parent")
    return 1 if parent is None else int(parent["shared"]) + 2


def open_lines(store: Store, run: str, folder: Path, *, fsync: Fsync = "phase") -> Lines:
    """Open the lines of a run: a file in ``folder`` beside SQLite, the database itself where that is a server."""
    if store.is_server:
        return TableLines(store, run)
    path, unfinished = _path(folder, run), folder / run / UNFINISHED
    path.parent.mkdir(parents=True, exist_ok=True)
    if unfinished.exists():
        unfinished.rename(path)
    if path.exists() and path.stat().st_size:
        return Journal.open(path, fsync=fsync)
    path.unlink(missing_ok=True)  # empty: the server was killed before the header
    return Journal.create(path, fsync=fsync)


def fork_lines(store: Store, parent: str, run: str, at_step: int, curriculum: Curriculum, folder: Path) -> list[bytes]:
    """Write the journal of a run that shares its parent's history up to a step; see ``mixer.fork``.

    Beside SQLite it lies in a file that ``open_lines`` takes once the database has the run. For a database that is a
    server the lines are returned, to be written together with the run.
    """
    if not store.is_server:
        out = folder / run / UNFINISHED
        out.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)  # the server was killed while it made the run
        fork(_path(folder, parent), at_step, curriculum, out)
        return []
    with tempfile.TemporaryDirectory() as name:
        path, out = Path(name) / "parent.jsonl", Path(name) / "fork.jsonl"
        with path.open("wb") as file:
            file.writelines(stored_lines(store, parent))
        fork(path, at_step, curriculum, out, fsync="never")
        return out.read_bytes().splitlines(keepends=True)


def drop_unfinished(run: str, folder: Path) -> None:
    """Drop the file of a fork that was never finished, before its name is used for another run."""
    (folder / run / UNFINISHED).unlink(missing_ok=True)


def _path(folder: Path, run: str) -> Path:
    return folder / run / "journal.jsonl"
