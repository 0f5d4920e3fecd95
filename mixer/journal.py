"""The durable record of a walk: one JSON line per decision, report and pivot, each chained to the one before.

The file is only ever appended to. A run that restarts from an older snapshot writes a ``resume`` line that names the
line it goes on from; what lies between is superseded, not erased. ``docs/journal.md`` describes every line.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import orjson

from mixer.errors import JournalError, StateMismatchError

JOURNAL_VERSION = 1
_FIRST = "0" * 32  # what the first line is chained to

log = logging.getLogger(__name__)


class Position(NamedTuple):
    """The end of a line: how many lines there are up to it, and its digest."""

    line: int
    digest: str


class Journal:
    """An open journal. ``Journal.create(path)`` begins one, ``Journal.open(path)`` goes on with one.

    Every line is handed to the operating system before ``append`` returns, so a killed process loses nothing;
    ``fsync="always"`` also survives a power cut, at the cost of a disk flush per line. A second writer is refused.
    """

    def __init__(self, path: Path, flags: int, *, fsync: Literal["never", "always"]) -> None:
        self.path = path
        self._fsync = fsync
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
        self.position = Position(0, _FIRST)
        self._size = 0

    @classmethod
    def create(cls, path: str | Path, *, fsync: Literal["never", "always"] = "never") -> Self:
        """Begin a journal in a file that does not exist yet."""
        return cls(Path(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, fsync=fsync)

    @classmethod
    def open(cls, path: str | Path, *, fsync: Literal["never", "always"] = "never") -> Self:
        """Go on with an existing journal; a last line cut short by a crash is dropped with a notice."""
        journal = cls(Path(path), os.O_RDWR, fsync=fsync)
        try:
            for position, line, _ in _scan(journal.path):
                journal.position = position
                journal._size += len(line)
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
        """Write one line; on failure the file is as before and JournalError says why."""
        body = orjson.dumps(dict(record), option=orjson.OPT_SERIALIZE_NUMPY)
        digest = _chained(self.position.digest, body)
        line = body[:-1] + _ending(digest)
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
            if self._fsync == "always":
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
        self.position = Position(self.position.line + 1, digest)

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

    def position_of(self, line: int) -> Position | None:
        """Return the end of line number ``line``, counted from 1; None if there are fewer lines."""
        return next((at for at, _, _ in _scan(self.path) if at.line == line), None)

    def close(self) -> None:
        """Release the file and its lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_journal(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield every whole line of a journal as a dict, in file order and constant memory, checking the chain.

    Raises:
        JournalError: naming the first line that is damaged; a torn last line is left out.
    """
    for _, _, record in _scan(Path(path)):
        yield record


def _chained(previous: str, body: bytes) -> str:
    return hashlib.blake2b(previous.encode() + body, digest_size=16).hexdigest()


def _ending(digest: str) -> bytes:
    return b',"chain":"' + digest.encode() + b'"}\n'


_ENDING_BYTES = len(_ending(_FIRST))


def _scan(path: Path) -> Iterator[tuple[Position, bytes, dict[str, Any]]]:
    """Yield (position after the line, the line, its record); stop before a torn last line."""
    position = Position(0, _FIRST)
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                body = line[:-_ENDING_BYTES] + b"}"
                digest = _chained(position.digest, body)
                if line[-_ENDING_BYTES:] != _ending(digest):
                    raise JournalError(
                        f"{path}: line {position.line + 1} is damaged or does not follow the line before it; "
                        f"lines 1 to {position.line} are sound"
                    )
                position = Position(position.line + 1, digest)
                yield position, line, orjson.loads(body)
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise JournalError(f"{path}: line {position.line} is not JSON: {error}") from error
