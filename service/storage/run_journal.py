"""The record of one run: its journal, in a file or in the database, and a walk that goes on from where it ends.

After a kill the walk is driven again over the lines after the newest snapshot. Every line that it writes then must be
the one that is there already, so that no phase can be decided twice differently and nothing acknowledged is lost;
after the last line, new ones are appended. A restart therefore leaves no trace in the journal. Of the lines before the
snapshot those are read that are not reports, where a view (``views``) says where they lie; without one, all are.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from mixer.config.curriculum import Curriculum, Pivot
from mixer.errors import StateMismatchError
from mixer.journal.file import Fsync
from mixer.journal.records import record_to_losses
from mixer.journal.scan import Position, last_lines
from mixer.walk.walk import Walk
from service.storage.journal_lines import FileLines, Lines, Record, TableLines, stored_lines
from service.storage.store import SERVED, Store

OnLine = Callable[[Record, int, bool], None]  # a line, its number, whether it is new
UNFINISHED = "journal.fork"  # the file of a fork until the database has the run

log = logging.getLogger(__name__)


class RunJournal:
    """What the walk of a run writes to: first over the lines that are there, comparing; then new lines.

    Args:
        lines: where they lie.
        on_line: told each line, those of before a restart first; new ones once durable.

    Attributes:
        noted: number and place of every line told of that is no report.
    """

    def __init__(self, lines: Lines, on_line: OnLine = lambda _record, _number, _is_new: None) -> None:
        self.path = getattr(lines, "path", "the journal in the database")
        self.noted: list[tuple[int, int]] = []
        self._lines = lines
        self._on_line = on_line
        self._passed = lines.position
        self._told = 0  # the number of the newest line told of
        self._expected: tuple[int, Record] | None = None  # the line that the walk is to write again, and its place
        self._rest: Iterator[tuple[int, Record]] = iter(())  # those after it

    @property
    def position(self) -> Position:
        """The end of the newest line, or of the line that the walk stands at while it is driven again."""
        return self._passed

    def raw_lines(self) -> Iterator[bytes]:
        """Yield every line as it is stored, up to the newest whole one."""
        return self._lines.raw_lines()

    def record_at(self, line: int) -> Record | None:
        """Return a line by its number, from 1."""
        return self._lines.record_at(line)

    def position_of(self, line: int) -> Position | None:
        """Return the end of line number ``line``; None if there are fewer."""
        return self._lines.position_of(line)

    def resume_from(self, position: Position) -> None:
        """Stand at an earlier line; what comes after it is going to be written again, and compared."""
        self._passed = position

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a line; while driven again, compare it with the one that is there.

        Raises:
            StateMismatchError: another line is there.
        """
        if self._expected is not None:
            self._compare(record, *self._expected)
            return
        place = self._lines.place
        if record["type"] != "feedback":  # a fact for people: no decision looks at it
            record = {**record, "at": round(time.time(), 3)}
        self._lines.append(record)
        self._passed = self._lines.position
        self._tell(place, _plain(record), self._passed.line, is_new=True)

    def _compare(self, record: Mapping[str, Any], place: int, expected: Record) -> None:
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
        self._tell(place, expected, self._passed.line)
        self._expected = next(self._rest, None)

    def _tell(self, place: int, record: Record, number: int, *, is_new: bool = False) -> None:
        if number > self._told:
            self._told = number
            if record["type"] != "feedback":
                self.noted.append((number, place))
            self._on_line(record, number, is_new)

    def sync(self) -> None:
        """Flush every line: a snapshot in the database must not name one that may be lost."""
        self._lines.sync()

    def tell_noted(self, places: Sequence[int], *, up_to: int) -> None:
        """Tell of the lines at some places alone, which are all up to number ``up_to`` but reports."""
        for place, record in zip(places, self._lines.records_at(places), strict=True):
            self._tell(place, record, record.pop("number"))
        self._told = up_to

    def drive_again(self, walk: Walk) -> int:
        """Drive ``walk`` over every line after the one it stands at, and return how many there were."""
        begin, end = self._passed.line, self._lines.position.line
        self._rest = self._lines_after(begin)
        self._expected = next(self._rest, None)
        while (expected := self._expected) is not None:
            record = expected[1]
            _drive(walk, record)
            if self._expected is expected:
                raise StateMismatchError(
                    f"driven again, the walk does not write line {self._passed.line + 1} of {self.path}, a "
                    f"{record['type']}; the journal was not written by this service"
                )
        self._passed = self._lines.position
        return max(0, end - begin)

    def _lines_after(self, begin: int) -> Iterator[tuple[int, Record]]:
        """Yield place and content of the lines after number ``begin``, having told of those up to it."""
        for place, record in self._lines.records_after(min(begin, self._told)):
            number = record.pop("number")  # as when it was written
            if number > begin:
                yield place, record
            else:
                self._tell(place, record, number)

    def close(self) -> None:
        """Let go of the lines."""
        self._lines.close()


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = orjson.loads(orjson.dumps(dict(record), option=orjson.OPT_SERIALIZE_NUMPY))
    return plain


def recover(curriculum: Curriculum, journal: RunJournal, snapshot: Mapping[str, Any] | None = None) -> Walk:
    """Return a walk that stands where its journal ends.

    Args:
        curriculum: the run.
        journal: what the walk writes to, new or not.
        snapshot: a state of the walk somewhere in the journal, to begin from; one that does not fit is passed over.
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
    journal.drive_again(walk)
    return walk


def _load(walk: Walk, snapshot: Mapping[str, Any], journal: RunJournal) -> None:
    if not walk.has_recorded(snapshot):
        raise StateMismatchError(f"it was taken at {snapshot['journal']}, a line that {journal.path} lacks")
    walk.load_state_dict(snapshot)


def _walk(curriculum: Curriculum, journal: RunJournal) -> Walk:
    """Return a walk that writes to ``journal``, whose listeners tell of alarms and of silence."""
    lines: Any = journal  # all that it asks of one
    return Walk(curriculum, journal=lines, on_alarm=lambda _: None, on_silence=lambda _: None)


def _drive(walk: Walk, record: Mapping[str, Any]) -> None:
    """Make the walk do what ``record`` says was done."""
    kind = record["type"]
    if kind in ("phase", "alarm"):  # a decision writes the alarms that it found, pivots for them, and its phase
        walk.phase_at(walk.frontier)
    elif kind == "feedback":
        walk.report(record["step"], record_to_losses(dict(record), len(walk.names)), is_recorded=True)
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
    """Open the lines of a run: a file in ``folder`` beside SQLite, the database itself where that is a server.

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
    """Raise StateMismatchError if steps of a run may have been handed out, whose journal is lost."""
    lease = store.newest(run, SERVED)
    if lease is not None and lease[0] > 0:
        raise StateMismatchError(
            f"{what}, but the database knows run {run}: steps up to {lease[0] - 1} may have been handed out. Put the "
            "journal back, from where it was moved to or from a backup; to begin anew, use another --name or --folder"
        )


def fork_lines(store: Store, parent: str, run: str, at_step: int, curriculum: Curriculum, folder: Path) -> list[bytes]:
    """Write the journal of a run that shares its parent's history up to a step; see ``mixer.replay.fork``.

    Beside SQLite it lies in a file that ``open_lines`` takes once the database has the run. For a database that is a
    server the lines are returned, to be written together with the run.
    """
    from mixer.replay.fork import fork  # and all that checks a whole record

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
    """Drop the file of a fork that was never finished, before its name is used for another run."""
    (folder / run / UNFINISHED).unlink(missing_ok=True)


def journal_path(folder: Path, run: str) -> Path:
    """Return where the journal of a run lies, if it is a file."""
    return folder / run / "journal.jsonl"
