"""The journal of one run, and a walk that continues where it ends.

After a restart ``recover`` replays the lines after the newest snapshot into a walk. Every line that the walk writes
then must equal the one that the journal has, so that no phase is decided twice differently and nothing acknowledged is
lost. After the last line, new ones are appended: a restart leaves no trace in the journal. Of the lines before the
snapshot, ``dashboard.checkpoint`` has a summary; without one, all lines are read.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from mixer.config.curriculum import Curriculum
from mixer.errors import StateMismatchError
from mixer.journal.file import Fsync
from mixer.journal.scan import Position, last_lines
from mixer.walk.apply import apply
from mixer.walk.walk import Walk
from service.storage.journal_lines import FileLines, Lines, Record, TableLines, stored_lines
from service.storage.store import SERVED, Store

OnLine = Callable[[Record, int, bool], None]  # content of a line, its number, whether it is new
UNFINISHED = "journal.fork"  # the journal of a fork that the database does not have yet

log = logging.getLogger(__name__)


class RunJournal:
    """What the walk of a run writes to: during a replay it compares, afterwards it appends.

    Args:
        lines: the stored lines.
        on_line: called with each line: after a restart with the stored ones first, with new ones once durable.

    Attributes:
        indexed: number and offset of every line seen that is no report.
    """

    def __init__(self, lines: Lines, on_line: OnLine = lambda _record, _number, _is_new: None) -> None:
        self.path = getattr(lines, "path", "the journal in the database")
        self.indexed: list[tuple[int, int]] = []
        self._lines = lines
        self._on_line = on_line
        self._passed = lines.position
        self._notified = 0  # the number of the newest line that ``on_line`` was called with
        self._expected: tuple[int, Record] | None = None  # in a replay: offset and content of the next line
        self._rest: Iterator[tuple[int, Record]] = iter(())  # the lines after it

    @property
    def position(self) -> Position:
        """The end of the newest line; during a replay, of the line that was replayed last."""
        return self._passed

    def raw_lines(self) -> Iterator[bytes]:
        """Yield every complete line as it is stored."""
        return self._lines.raw_lines()

    def record_at(self, line: int) -> Record | None:
        """Return a line by its number, from 1."""
        return self._lines.record_at(line)

    def position_of(self, line: int) -> Position | None:
        """Return the end of line number ``line``; None if there are fewer."""
        return self._lines.position_of(line)

    def resume_from(self, position: Position) -> None:
        """Go back to an earlier line, from which a replay will start."""
        self._passed = position

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a line; during a replay, compare it with the stored one.

        Raises:
            StateMismatchError: the stored line is another one.
        """
        if self._expected is not None:
            self._compare(record, *self._expected)
            return
        offset = self._lines.offset
        if record["type"] != "feedback":  # the time is for people: no decision depends on it
            record = {**record, "at": round(time.time(), 3)}
        self._lines.append(record)
        self._passed = self._lines.position
        self._notify(offset, _plain(record), self._passed.line, is_new=True)

    def _compare(self, record: Mapping[str, Any], offset: int, expected: Record) -> None:
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
        self._notify(offset, expected, self._passed.line)
        self._expected = next(self._rest, None)

    def _notify(self, offset: int, record: Record, number: int, *, is_new: bool = False) -> None:
        if number > self._notified:
            self._notified = number
            if record["type"] != "feedback":
                self.indexed.append((number, offset))
            self._on_line(record, number, is_new)

    def sync(self) -> None:
        """Flush every line: a snapshot in the database must not name one that may be lost."""
        self._lines.sync()

    def notify_indexed(self, offsets: Sequence[int], *, up_to: int) -> None:
        """Call ``on_line`` with the lines at some offsets: all lines up to number ``up_to`` but reports."""
        for offset, record in zip(offsets, self._lines.records_at(offsets), strict=True):
            self._notify(offset, record, record.pop("number"))
        self._notified = up_to

    def replay_into(self, walk: Walk) -> int:
        """Replay every line after the current one into ``walk``, and return how many there were."""
        begin, end = self._passed.line, self._lines.position.line
        self._rest = self._lines_after(begin)
        self._expected = next(self._rest, None)
        while (expected := self._expected) is not None:
            record = expected[1]
            if not apply(walk, record):
                raise StateMismatchError(
                    f"the journal has a {record['type']} line, which the service does not write; use another folder"
                )
            if self._expected is expected:
                raise StateMismatchError(
                    f"driven again, the walk does not write line {self._passed.line + 1} of {self.path}, a "
                    f"{record['type']}; the journal was not written by this service"
                )
        self._passed = self._lines.position
        return max(0, end - begin)

    def _lines_after(self, begin: int) -> Iterator[tuple[int, Record]]:
        """Yield offset and content of the lines after number ``begin``; call ``on_line`` with those up to it first."""
        for offset, record in self._lines.records_after(min(begin, self._notified)):
            number = record.pop("number")  # a walk writes records without it
            if number > begin:
                yield offset, record
            else:
                self._notify(offset, record, number)

    def close(self) -> None:
        """Close the lines."""
        self._lines.close()


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = orjson.loads(orjson.dumps(dict(record), option=orjson.OPT_SERIALIZE_NUMPY))
    return plain


def recover(curriculum: Curriculum, journal: RunJournal, snapshot: Mapping[str, Any] | None = None) -> Walk:
    """Return a walk that continues its journal.

    Args:
        curriculum: the run.
        journal: what the walk writes to; it may be empty.
        snapshot: a state of the walk to start the replay from; one that does not fit the journal is ignored.
    """
    is_new = journal.position.line == 0
    walk = _walk(curriculum, journal)
    if is_new:
        return walk
    journal.resume_from(Position(_begin_of(journal), ""))
    if snapshot is not None:
        try:
            _load(walk, snapshot, journal)
        except StateMismatchError as error:
            log.warning("the newest snapshot of the walk is passed over: %s", error)
            walk = _walk(curriculum, journal)
            journal.resume_from(Position(_begin_of(journal), ""))
    journal.replay_into(walk)
    return walk


def _load(walk: Walk, snapshot: Mapping[str, Any], journal: RunJournal) -> None:
    if not walk.has_recorded(snapshot):
        raise StateMismatchError(f"it was taken at {snapshot['journal']}, a line that {journal.path} lacks")
    walk.load_state_dict(snapshot)


def _walk(curriculum: Curriculum, journal: RunJournal) -> Walk:
    """Return a walk that writes to ``journal``; the engine publishes alarms and silence, so the walk logs neither."""
    lines: Any = journal  # it has the methods of a Journal that a walk calls
    return Walk(curriculum, journal=lines, on_alarm=lambda _: None, on_silence=lambda _: None)


def _begin_of(journal: RunJournal) -> int:
    """Return the number of the line after which a walk without a snapshot starts; of a fork, its last shared line."""
    parent = (journal.record_at(1) or {}).get("parent")
    return 1 if parent is None else int(parent["shared"]) + 2


def open_lines(store: Store, run: str, folder: Path, *, fsync: Fsync = "phase") -> Lines:
    """Open the lines of a run: a file in ``folder`` beside SQLite, else a table of the database.

    Raises:
        StateMismatchError: there is no line, though steps of the run were handed out.
    """
    if store.is_server:
        lines = TableLines(store, run)
        if lines.position.line == 0:
            _check_unknown(store, run, "the journal in the database has no line")
        return lines
    path, unfinished = journal_path(folder, run), folder / run / UNFINISHED
    path.parent.mkdir(parents=True, exist_ok=True)
    if unfinished.exists():
        unfinished.rename(path)
    if path.exists() and path.stat().st_size:
        if last_lines(path)[0].line == 0:
            _check_unknown(store, run, f"{path} has no whole line")
        return FileLines.open(path, fsync=fsync)
    _check_unknown(store, run, f"{path} is {'empty' if path.exists() else 'not there'}")
    path.unlink(missing_ok=True)  # empty: the server was killed before the header
    return FileLines.create(path, fsync=fsync)


def _check_unknown(store: Store, run: str, what: str) -> None:
    """Raise StateMismatchError if steps of a run without a journal may have been handed out."""
    lease = store.newest(run, SERVED)
    if lease is not None and lease[0] > 0:
        raise StateMismatchError(
            f"{what}, but the database knows run {run}: steps up to {lease[0] - 1} may have been handed out. Put the "
            "journal back, from where it was moved to or from a backup; to begin anew, use another --name or --folder"
        )


def fork_lines(store: Store, parent: str, run: str, at_step: int, curriculum: Curriculum, folder: Path) -> list[bytes]:
    """Write the journal of a run that shares its parent's history up to a step; see ``mixer.replay.fork``.

    Beside SQLite it is a file that ``open_lines`` renames once the database has the run. For a database that is a
    server the lines are returned, to be written in one transaction with the run.
    """
    from mixer.replay.fork import fork  # it imports all that audits a journal

    if not store.is_server:
        out = folder / run / UNFINISHED
        out.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)  # the server was killed while it made the run
        fork(journal_path(folder, parent), at_step, curriculum, out)
        return []
    with tempfile.TemporaryDirectory() as name:
        path, out = Path(name) / "parent.jsonl", Path(name) / "fork.jsonl"
        with path.open("wb") as file:
            file.writelines(stored_lines(store, parent))
        fork(path, at_step, curriculum, out, fsync="never")
        return out.read_bytes().splitlines(keepends=True)


def drop_unfinished(run: str, folder: Path) -> None:
    """Delete the journal of a fork that was never finished, before its name is used for another run."""
    (folder / run / UNFINISHED).unlink(missing_ok=True)


def journal_path(folder: Path, run: str) -> Path:
    """Return the path of a run's journal, where journals are files."""
    return folder / run / "journal.jsonl"
