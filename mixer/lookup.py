"""Reading parts of a journal: the lines that still hold, and the few that one question needs.

A run that was restored from an older snapshot leaves lines behind that a later ``resume`` supersedes. ``history``
streams what still holds, in constant memory, the whole chain checked. ``Lookup`` maps the file, finds phase lines by
their first bytes, skips over all else, and checks each line that it returns against the line before it. It does not
check the whole chain: ``mixer replay`` does.
"""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from mixer.errors import JournalError, StepError
from mixer.journal import read_history
from mixer.records import cut_phases
from mixer.scan import chained

_PHASE, _PIVOT, _RESUME = b'\n{"type":"phase"', b'\n{"type":"pivot"', b'\n{"type":"resume"'
_LINE = b'"chain":"'
_CHAIN_BYTES = len(',"chain":""}\n') + 32


def history(path: str | Path) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """Return a journal's header and its other lines as the run stands at its end, streamed, the chain checked.

    Raises:
        JournalError: as ``read_history``; also a file that does not begin with a header.
    """
    records = read_history(path)
    header = next(records, None)
    if header is None or header.get("type") != "header":
        what = "there is no whole line in this file" if header is None else "the first line is not a header"
        raise JournalError(f"{path}: {what}; a journal begins with a header")
    return header, records


class Lookup:
    """A journal mapped into memory, for questions about single phases.

    Raises:
        JournalError: no journal there, or a line it uses does not follow the line before it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            reason = getattr(error, "strerror", None) or "the file is empty; a journal begins with a header"
            raise JournalError(f"{self.path}: {reason}") from error
        self._end = self._map.rfind(b"\n") + 1  # a torn last line is left out
        self.header = self._record(0)
        if self.header.get("type") != "header":
            raise JournalError(f"{self.path}: the first line is not a header; is this a journal?")
        self._cuts: dict[int, dict[str, Any]] = {}  # first byte of a phase line -> the pivot that cut it
        self._phases = self._live_phases()

    def __enter__(self) -> Lookup:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()

    def phase_at(self, step: int) -> dict[str, Any]:
        """Return the phase line that covers ``step``; raises StepError if none does."""
        if step < 0:
            raise StepError(f"step is {step}; steps count from 0")
        at = bisect.bisect_right(self._phases, step, key=lambda start: self._record(start)["start"]) - 1
        newest = self._phase(self._phases[-1]) if self._phases else None
        end = newest["start"] + newest["length"] if newest else 0
        if at < 0 or step >= end:
            there = f"{self.path} has phases for steps 0 to {end - 1}" if newest else f"{self.path} has no phase yet"
            raise StepError(f"step {step} is not decided: {there}")
        return self._phase(self._phases[at])

    def before(self, phase: dict[str, Any]) -> dict[str, Any] | None:
        """Return the phase line before ``phase``; None for the first."""
        return self._phase(self._phases[phase["index"] - 1]) if phase["index"] else None

    def first_of_regime(self, phase: dict[str, Any]) -> dict[str, Any]:
        """Return the phase line in which the regime of ``phase`` begins: the newest up to it that has a region."""
        for start in reversed(self._phases[: phase["index"] + 1]):
            if b'"region":null' not in self._line(start):
                return self._record(start)
        raise JournalError(f"{self.path}: no phase up to {phase['index']} says what its region is")

    def _line(self, start: int) -> bytes:
        return self._map[start : self._map.find(b"\n", start, self._end) + 1]

    def _phase(self, start: int) -> dict[str, Any]:
        """Return the phase line that begins at byte ``start``, as far as no pivot cut it."""
        phases = [self._record(start)]
        if start in self._cuts:
            cut_phases(phases, self._cuts[start], self.header["curriculum"])
        return phases[0]

    def _live_phases(self) -> list[int]:
        """Return the bytes at which the phase lines that still hold begin; note which of them were cut."""
        found: list[int] = []
        for start, end in self._live_spans():
            pivots = iter([*self._places(_PIVOT, start, end), end])
            pivot = next(pivots)
            for place in [*self._places(_PHASE, start, end), end]:
                while pivot < place:
                    self._note_cut(found, self._record(pivot))
                    pivot = next(pivots)
                found.append(place)
            found.pop()  # the end
        return found

    def _places(self, what: bytes, start: int, end: int) -> Iterator[int]:
        """Yield the bytes at which lines of a type begin."""
        at = self._map.find(what, max(start - 1, 0), end)
        while at >= 0:
            yield at + 1
            at = self._map.find(what, at + 1, end)

    def _note_cut(self, phases: list[int], pivot: dict[str, Any]) -> None:
        if pivot["at_step"] < pivot["decided_before"]:
            if self._record(phases[-1])["start"] == pivot["at_step"]:
                phases.pop()
            else:
                self._cuts[phases[-1]] = pivot

    def _record(self, start: int) -> dict[str, Any]:
        """Return the line that begins at byte ``start``, checked against the line before it."""
        line = self._line(start)
        previous = self._map[start - 35 : start - 3].decode("ascii", "replace") if start else "0" * 32
        body = line[:-_CHAIN_BYTES] + b"}"
        try:
            record: dict[str, Any] = orjson.loads(line)
            is_sound = record["chain"] == chained(previous, body)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            is_sound = False
        if not is_sound:
            raise JournalError(
                f"{self.path}: the line at byte {start} is damaged or does not follow the line before it; "
                "`mixer replay` finds the first damaged line"
            )
        return record

    def _live_spans(self) -> list[tuple[int, int]]:
        """Return the spans of bytes whose lines still hold."""
        resumes, at = [], self._map.find(_RESUME, 0, self._end)
        while at >= 0:
            record = self._record(at + 1)
            named = self._map.find(_LINE + str(record["digest"]).encode() + b'"}\n', 0, at + 1)
            if named < 0:
                raise JournalError(f"{self.path}: a resume line names a line that is not there: {record['digest']}")
            resumes.append((at + 1, self._map.find(b"\n", named) + 1))
            at = self._map.find(_RESUME, at + 1, self._end)
        spans, end = [], self._end
        for start, named_end in reversed(resumes):
            if start < end:
                spans.append((start, end))
                end = named_end
        return [*reversed([*spans, (0, end)])]
