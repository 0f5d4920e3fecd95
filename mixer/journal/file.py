"""The durable record of a walk: one JSON line per decision, report and pivot, each chained to the one before.

The file is only ever appended to. A run that restarts from an older snapshot writes a ``resume`` line that names the
line it goes on from; what lies between is superseded, not erased. ``docs/journal.md`` describes every line. Every line
says its own number, so that opening a journal and finding a line in it cost the same whatever its length: opening
checks the first line and the last mebibyte, and reading checks every line that it passes.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import orjson

from mixer.errors import JournalError, StateMismatchError
from mixer.journal.scan import (
    FIRST,
    MAX_LINE_BYTES,
    Line,
    Position,
    chained,
    ending,
    find_line,
    last_lines,
    line_at,
    line_starts,
    raise_first_damage,
    scan,
)

JOURNAL_VERSION = 2
Fsync = Literal["never", "phase", "always"]

log = logging.getLogger(__name__)


class Journal:
    """An open journal. ``Journal.create(path)`` begins one, ``Journal.open(path)`` goes on with one.

    Every line is handed to the operating system before ``append`` returns, so a killed process loses nothing. What a
    power cut may take is a setting, ``fsync``: "phase", the default, flushes the disk after every line but reports, so
    that decisions and all that they rest on survive; ``sync`` flushes the reports since then, as a walk does before it
    gives its state. "always" flushes after every line, "never" leaves it to the operating system, which is for runs
    that can be made again. A second writer is refused.
    """

    def __init__(self, path: Path, flags: int, *, fsync: Fsync) -> None:
        self.path = path
        self._place = path.absolute()  # whatever folder the process changes to
        self._fsync = fsync
        self._is_synced = True  # else a power cut may take the newest lines
        try:
            self._file = os.open(path, flags | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise JournalError(
                f"{path}: {error.strerror}; a journal needs a new file in a folder that exists"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise JournalError(f"{path}: another process writes this journal; stop it, or use another file") from error
        own = os.fstat(self._file)
        self._identity = (own.st_dev, own.st_ino)
        self.position = Position(0, FIRST)
        self._size = 0

    @classmethod
    def create(cls, path: str | Path, *, fsync: Fsync = "phase") -> Self:
        """Begin a journal in a file that does not exist yet."""
        journal = cls(Path(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, fsync=fsync)
        if fsync != "never":
            _sync_folder(Path(path).parent)
        return journal

    @classmethod
    def open(cls, path: str | Path, *, fsync: Fsync = "phase") -> Self:
        """Go on with an existing journal; a last line cut short by a crash is dropped with a notice.

        The first line and the last mebibyte are checked; damage in between is found by whoever reads it.

        Raises:
            JournalError: no such file, a second writer, or damage; the message names the first damaged line.
        """
        journal = cls(Path(path), os.O_RDWR, fsync=fsync)
        try:
            journal.position, journal._size = last_lines(journal.path)
        except JournalError:
            journal.close()
            raise
        torn = os.fstat(journal._file).st_size - journal._size
        if torn:
            log.warning("%s: the last line was cut short by a crash; %d bytes of it are dropped", path, torn)
            os.ftruncate(journal._file, journal._size)
        os.lseek(journal._file, journal._size, os.SEEK_SET)
        return journal

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line; on failure, also if the file was moved away, it is as before and JournalError says why."""
        number = self.position.line + 1
        body = orjson.dumps({**record, "number": number}, option=orjson.OPT_SERIALIZE_NUMPY)
        digest = chained(self.position.digest, body)
        line = body[:-1] + ending(digest)
        if len(line) > MAX_LINE_BYTES:
            raise JournalError(f"{self.path}: a line of {len(line)} bytes; lines hold at most {MAX_LINE_BYTES}")
        is_report = record.get("type") == "feedback"
        self._put(Position(number, digest), line, flush=self._fsync == "always" or not is_report)

    def _check_in_place(self) -> None:
        """Raise JournalError unless the file is where it was, as this writer left it: lines would be lost else."""
        try:
            found = self._place.stat()
        except OSError as error:
            what = error.strerror
        else:
            if (found.st_dev, found.st_ino) != self._identity:
                what = "another file is there now"
            elif found.st_size != self._size:
                what = f"it has {found.st_size} bytes, and {self._size} were written"
            else:
                return
        raise JournalError(
            f"{self.path}: {what}; it was moved, replaced or cut while it was written. Nothing more is written or "
            "decided: put the file back as it was; the run then goes on, or can be started again"
        )

    def _put(self, position: Position, line: bytes, *, flush: bool) -> None:
        self._check_in_place()
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
            if flush and self._fsync != "never":
                os.fsync(self._file)
        except OSError as error:
            if written:
                os.ftruncate(self._file, self._size)
                os.lseek(self._file, self._size, os.SEEK_SET)
            raise JournalError(
                f"{self.path}: cannot be written: {error.strerror}; the line was taken back and nothing was decided: "
                "make room and call again"
            ) from error
        self._size += len(line)
        self.position = position
        self._is_synced = flush or self._fsync == "never"

    def sync(self) -> None:
        """Make sure that what was appended survives a power cut, unless ``fsync`` is "never".

        Raises:
            JournalError: the disk does not take it.
        """
        if self._is_synced:
            return
        try:
            os.fsync(self._file)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot be flushed to disk: {error.strerror}") from error
        self._is_synced = True

    def resume_from(self, position: Position) -> None:
        """Go on from an earlier line of this file: what was written after it is superseded by a ``resume`` line."""
        if position == self.position:
            return
        found = self.position_of(position.line)
        if found != position:
            what = "has fewer lines" if found is None else "differs there"
            raise StateMismatchError(
                f"{self.path}: the saved state was taken at line {position.line}, digest {position.digest}, "
                f"but the journal {what}; use the journal that was written with this state"
            )
        self.append({"type": "resume", "line": position.line, "digest": position.digest})

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every line so far."""
        return read_journal(self.path)

    def record_at(self, line: int) -> dict[str, Any] | None:
        """Return line number ``line``, counted from 1, without reading those before it; None if there are fewer."""
        found = find_line(self.path, line)
        return None if found is None else found.record()

    def position_of(self, line: int) -> Position | None:
        """Return the end of line number ``line``, counted from 1; None if there are fewer lines."""
        found = find_line(self.path, line)
        return None if found is None else found.position

    def close(self) -> None:
        """Release the file and its lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sync_folder(folder: Path) -> None:
    """Make a new file's name survive a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # some systems open no folders
        return
    try:
        os.fsync(handle)
    except OSError:
        log.info("%s: this file system does not flush folders", folder)
    finally:
        os.close(handle)


def read_journal(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield every whole line of a journal as a dict, in file order and constant memory, checking the chain.

    Raises:
        JournalError: naming the first line that is damaged; a torn last line is left out.
    """
    for line in scan(Path(path)):
        yield line.record()


def read_history(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of the run as it stands at the journal's end: those that no ``resume`` line superseded.

    In file order and constant memory; every line is checked, also those left out. ``resume`` lines are left out too.
    """
    for line in scan_history(Path(path)):
        yield line.record()


def scan_history(path: Path) -> Iterator[Line]:
    """Yield the lines of ``read_history`` without parsing them."""
    spans = history_spans(path)
    at = 0
    for line in scan(path):
        while at < len(spans) and line.number > spans[at].last:
            at += 1
        if at == len(spans):  # what was written since the spans were read
            return
        if line.number >= spans[at].first:
            yield line


class Span(NamedTuple):
    """Lines one after the other that still hold: the numbers of the first and the last, and the bytes they fill."""

    first: int
    last: int
    start: int
    end: int


def history_spans(path: Path) -> list[Span]:
    """Return the spans of lines that the run, as it stands at the end, is made of, in order.

    A ``resume`` line leads from the line it names: the run is the way back from the last line to the first.
    """
    (last, _), end = last_lines(path)
    spans: list[Span] = []
    for resume, target in reversed(resume_lines(path, end)):
        if resume.number <= last:
            spans.append(Span(resume.number + 1, last, resume.end, end))
            named = find_line(path, target)
            if named is None:
                raise_first_damage(path, JournalError(f"{path}: line {resume.number} goes on from a line that is lost"))
            last, end = target, named.end
    spans.append(Span(1, last, 0, end))
    return [span for span in reversed(spans) if span.first <= span.last]


def resume_lines(path: Path, end: int) -> list[tuple[Line, int]]:
    """Return each ``resume`` line before byte ``end``, where a line begins, with the number of the line it names."""
    resumes = []
    for start in line_starts(path, ["resume"], 0, end):
        line = line_at(path, start)
        target = line.record().get("line")
        if not isinstance(target, int) or not 1 <= target < line.number:
            raise JournalError(
                f"{path}: line {line.number} goes on from line {target!r}, which is not a line before it; "
                "the file was not written by this program"
            )
        resumes.append((line, target))
    return resumes
