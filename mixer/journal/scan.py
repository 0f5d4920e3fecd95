"""Lines of a journal as bytes: their ends, the chain that ties them, and how to find one without reading the rest.

A journal of 200,000 steps has some 200 MB, nearly all of it reports. What is not needed is not parsed: a ``Line`` is
checked when it is read, and its JSON is read when somebody asks.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import orjson

from mixer.errors import JournalError

Record = dict[str, Any]  # the fields of a line

FIRST = "0" * 32  # what the first line is chained to
MAX_LINE_BYTES = 64 * 2**20  # 250,000 sources; a file without line feeds must not fill the memory
TAIL_BYTES = 2**20  # what opening checks at the end of the file
BLOCK_BYTES = 2**18  # what is searched at once


class Position(NamedTuple):
    """The end of a line: how many lines there are up to it, and its digest."""

    line: int
    digest: str


class Line(NamedTuple):
    """A whole line: its number from 1, its digest, the byte at which it begins, and its text without the digest."""

    number: int
    digest: str
    offset: int
    body: bytes
    path: Path

    @property
    def position(self) -> Position:
        """The end of this line."""
        return Position(self.number, self.digest)

    @property
    def end(self) -> int:
        """The byte after this line."""
        return self.offset + len(self.body) - 1 + _ENDING_BYTES

    @property
    def kind(self) -> str:
        """The line's ``type``, without parsing the rest; empty if it does not begin with one."""
        return self.body[9 : self.body.find(b'"', 9)].decode(errors="replace") if self.body[:9] == _TYPE else ""

    def time(self) -> dict[str, float]:
        """Return the field that says when it was written, if it has one, without parsing the rest."""
        found = _TIME.search(self.body, max(0, len(self.body) - _LONGEST_TIME))
        return {} if found is None else {"at": orjson.loads(found[1])}

    def record(self) -> dict[str, Any]:
        """Return the line's fields."""
        try:
            record = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise JournalError(f"{self.path}: line {self.number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise JournalError(f"{self.path}: line {self.number} is a {type(record).__name__}, not an object")
        return record


_TYPE = b'{"type":"'
_TIME = re.compile(rb',"at":([0-9.]+),"number":\d{1,18}\}\Z')
_LONGEST_TIME = 70


def chained(previous: str, body: bytes) -> str:
    """Return a line's digest, hex [32], from the digest of the line before and its own text."""
    return hashlib.blake2b(previous.encode() + body, digest_size=16).hexdigest()


def ending(digest: str) -> bytes:
    """Return what closes a line."""
    return b',"chain":"' + digest.encode() + b'"}\n'


_ENDING_BYTES = len(ending(FIRST))
_ENDING = re.compile(rb',"number":(\d{1,18}),"chain":"([0-9a-f]{32})"\}\n\Z')
_OLD_ENDING = re.compile(rb'^\{"type":"header","version":(\d+),.*,"chain":"[0-9a-f]{32}"\}\n\Z', re.DOTALL)
_LONGEST_ENDING = 18 + len(b',"number":') + _ENDING_BYTES


def end_of(line: bytes) -> Position | None:
    """Return the number and digest that a line says it has."""
    match = _ENDING.search(line, max(0, len(line) - _LONGEST_ENDING))
    return Position(int(match[1]), match[2].decode()) if match else None


def scan(path: Path, *, after: Position | None = None, offset: int = 0) -> Iterator[Line]:
    """Yield every whole line, checked against the one before; stop before a torn last line.

    Args:
        path: the journal.
        after: the line that lies before ``offset``; None begins at the file's beginning.
        offset: the byte to begin at.

    Raises:
        JournalError: naming the first damaged line and what is wrong with it.
    """
    number, digest = after or Position(0, FIRST)
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while line := file.readline(MAX_LINE_BYTES + 1):
                if line[-1:] != b"\n":
                    if len(line) > MAX_LINE_BYTES:
                        raise JournalError(
                            f"{path}: line {number + 1} is longer than {MAX_LINE_BYTES} bytes; this is not a journal"
                        )
                    return
                found = _follow(path, line, Position(number, digest), offset)
                yield found
                number, digest, offset = found.number, found.digest, offset + len(line)
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from error


def _follow(path: Path, line: bytes, before: Position, offset: int) -> Line:
    """Return a line as it was read, or raise JournalError if it does not follow the one before it."""
    after = following(line, before)
    if after is None:
        raise JournalError(_damage(path, line, before))
    return Line(after.line, after.digest, offset, line[:-_ENDING_BYTES] + b"}", path)


def following(line: bytes, before: Position) -> Position | None:
    """Return the end of a line as it is stored; None if it does not follow the line that ends at ``before``."""
    number, body = before.line + 1, line[:-_ENDING_BYTES] + b"}"
    digest = chained(before.digest, body)
    is_next = line[-_ENDING_BYTES:] == ending(digest) and body.endswith(b',"number":%d}' % number)
    return Position(number, digest) if is_next else None


def _damage(path: Path, line: bytes, before: Position) -> str:
    """Say what is wrong with a line that does not follow the one before, and what to do about it."""
    number = before.line + 1
    old = _OLD_ENDING.match(line) if number == 1 else None
    if old is not None:
        return (
            f"{path}: a journal of version {int(old[1])}, which this release does not read; "
            "read it with the release that wrote it, or begin a new file"
        )
    said = end_of(line)
    if number == 1 and said is None:
        return f"{path}: line 1 is damaged or this is not a journal: no line of it is sound; give the path of a journal"
    if said is None:
        cause = "it does not end as lines do"
    elif said.line != number:
        cause = f"it says that it is line {said.line}: lines were lost, repeated or moved"
    else:
        cause = "its text is not what its digest was made of: it was changed, or belongs to another journal"
    keep = f"lines 1 to {before.line} are sound" if before.line else "no line before it"
    return (
        f"{path}: line {number} is damaged or does not follow the line before it ({cause}); {keep}; "
        f"take the journal from a backup, or keep what is sound with `head -n {before.line}` and restore a state of it"
    )


def last_lines(path: Path) -> tuple[Position, int]:
    """Return the end of the last whole line and the size of the file up to it, after checking the file's two ends.

    Costs the same for any length: the first line and the last mebibyte (or last two lines) are read.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from error
    window, position, end = TAIL_BYTES, Position(0, FIRST), 0
    lines: Iterator[Line] = scan(path)
    if size > window:
        next(scan(path), None)  # raises if this is no journal
        while window < size:
            if (found := _anchor(path, size - window)) is not None:
                position, end = found
                lines = scan(path, after=position, offset=end)
                break
            window *= 4
    try:
        for line in lines:
            position, end = line.position, line.end
    except JournalError as error:
        raise_first_damage(path, error)
    return position, end


def raise_first_damage(path: Path, error: JournalError) -> NoReturn:
    """Raise for the very first damaged line of a file in which some damage was met; ``error`` if there is none."""
    for _ in scan(path):
        pass
    raise error


def line_at(path: Path, offset: int) -> Line:
    """Return the line that begins at a byte, checked against the one before it; the rest of the file is not.

    Raises:
        JournalError: naming the first damaged line of the file.
    """
    line = next(lines_from(path, offset), None)
    if line is None:
        raise_first_damage(path, JournalError(f"{path}: no whole line begins at byte {offset}"))
    return line


def lines_at(path: Path, offsets: Sequence[int]) -> Iterator[Line]:
    """Yield the lines that begin at some bytes, each checked against the one before it; the others are not read.

    Raises:
        JournalError: naming the first damaged line of the file.
    """
    try:
        with path.open("rb") as file:
            for offset in offsets:
                yield _line_in(file, path, offset)
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from error
    except JournalError as error:
        raise_first_damage(path, error)


def _line_in(file: IO[bytes], path: Path, offset: int) -> Line:
    before = _before(file, offset) if offset else Position(0, FIRST)
    file.seek(offset)
    line = file.readline(MAX_LINE_BYTES)
    if before is None or line[-1:] != b"\n":
        raise JournalError(f"{path}: no whole line begins at byte {offset}")
    return _follow(path, line, before, offset)


def lines_from(path: Path, offset: int) -> Iterator[Line]:
    """Yield the whole lines from the one that begins at a byte, each checked against the one before it.

    Raises:
        JournalError: naming the first damaged line of the file.
    """
    try:
        with path.open("rb") as file:
            before = _before(file, offset) if offset else Position(0, FIRST)
        if before is not None:
            yield from scan(path, after=before, offset=offset)
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from error
    except JournalError as error:
        raise_first_damage(path, error)


def line_starts(path: Path, kinds: Sequence[str], start: int, end: int) -> Iterator[int]:
    """Yield the bytes at which lines of some types begin, from ``start`` to ``end``, both where lines begin.

    Constant memory, and some 1 GB a second: nothing is parsed or checked. The first line of the file is not found.
    """
    marks = [b'\n{"type":"' + kind.encode() + b'"' for kind in kinds]
    overlap = max(map(len, marks)) - 1
    at = max(start - 1, 0)  # the line feed before
    with path.open("rb") as file:
        while at < end:
            file.seek(at)
            block = file.read(min(BLOCK_BYTES, end - at))
            found: list[int] = []
            for mark in marks:
                place = block.find(mark)
                while place >= 0:
                    found.append(at + place + 1)
                    place = block.find(mark, place + 1)
            found.sort()
            yield from found
            if len(block) <= overlap or at + len(block) >= end:
                return
            at = max([at + len(block) - overlap, *found[-1:]])


def _anchor(path: Path, at: int) -> tuple[Position, int] | None:
    """Return the first line that begins after byte ``at``, and the byte after it, if another whole line follows."""
    with path.open("rb") as file:
        file.seek(at)
        file.readline(MAX_LINE_BYTES)
        line = file.readline(MAX_LINE_BYTES)
        end = file.tell()
        said = end_of(line)
        return (said, end) if said is not None and file.readline(MAX_LINE_BYTES).endswith(b"\n") else None


def find_line(path: Path, number: int) -> Line | None:
    """Return line ``number`` by bisection: every line says its own number; None if there is none.

    The line is checked against the one before it, the rest of the file is not.
    """
    try:
        with path.open("rb") as file:
            place = _bisect(file, number)
            if place is None:
                return None
            before = Position(0, FIRST) if number == 1 else _before(file, place)
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from error
    return None if before is None else next(scan(path, after=before, offset=place))


def _bisect(file: IO[bytes], number: int) -> int | None:
    low, high = 0, os.fstat(file.fileno()).st_size  # the line begins in [low, high)
    while low < high:
        middle = (low + high) // 2
        start = 0
        if middle:
            file.seek(middle - 1)
            start = middle - 1 + len(file.readline(MAX_LINE_BYTES))
        line = file.readline(MAX_LINE_BYTES) if middle else _first_line(file)
        said = end_of(line)
        if said is None or said.line > number:
            high = middle
        elif said.line == number:
            return start
        else:
            low = start + len(line)
    return None


def _first_line(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.readline(MAX_LINE_BYTES)


def _before(file: IO[bytes], place: int) -> Position | None:
    """Return the number and digest of the line that ends at ``place``."""
    back = min(place, _LONGEST_ENDING)
    file.seek(place - back)
    return end_of(file.read(back))
