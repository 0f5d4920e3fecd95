"""Reading parts of a journal: the lines that still hold, and the few that one question needs.

A run that was restored from an older snapshot leaves lines behind that a later ``resume`` supersedes. ``history``
streams what still holds, the whole chain checked. ``JournalIndex`` finds phases by bisection, as their steps only grow
along the lines that still hold, and checks each line that it returns against the line before it. It does not check the
whole chain: ``mixer replay`` does. Both take the same memory at any length.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixer.errors import JournalError, StepError
from mixer.journal.file import history_spans, read_history
from mixer.journal.header import deciding_curriculum
from mixer.journal.phases import PhaseLines
from mixer.journal.scan import Record, line_at, line_starts, lines_from

NUM_OPENINGS = 3  # regions and alarms that are told of


def history(path: str | Path) -> tuple[Record, Iterator[Record]]:
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


class Tail(NamedTuple):
    """The end of a journal, and what still matters of the lines before it.

    Attributes:
        openings: the phase lines that opened the newest regions before ``lines``, at most ``NUM_OPENINGS``.
        pivots: all pivot lines before ``lines``.
        alarms: the newest alarm lines before ``lines``, at most ``NUM_OPENINGS``.
        lines: the lines at the end, from a phase line on; without any phase all of them, the header too.
        end: the byte after the last line.
    """

    openings: list[Record]
    pivots: list[Record]
    alarms: list[Record]
    lines: Iterator[Record]
    end: int


class JournalIndex:
    """Questions about single phases of a journal, as it stands now.

    A *place* is the byte at which a line would begin in a file without the superseded lines.

    Raises:
        JournalError: no journal there, or a line it uses does not follow the line before it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._spans = history_spans(self.path)
        if not self._spans:
            raise JournalError(f"{self.path}: the file has no whole line; a journal begins with a header")
        self._bases = [0, *itertools.accumulate(span.end - span.start for span in self._spans)]
        self.header = self._record(0)
        if self.header.get("type") != "header":
            raise JournalError(f"{self.path}: the first line is not a header; is this a journal?")

    def phase_at(self, step: int) -> Record:
        """Return the phase line that covers ``step``, as far as no pivot cut it; raises StepError if none does."""
        if step < 0:
            raise StepError(f"step is {step}; steps count from 0")
        phase = self._played(self._last(lambda phase: phase["start"] <= step))
        if phase is None or step >= phase["start"] + phase["length"]:
            end = self._frontier()
            there = f"{self.path} has phases for steps 0 to {end - 1}" if end else f"{self.path} has no phase yet"
            raise StepError(f"step {step} is not decided: {there}")
        return phase

    def before(self, phase: Mapping[str, Any]) -> Record | None:
        """Return the phase line before ``phase``; None for the first."""
        return self._played(self._last(lambda other: other["index"] < phase["index"]))

    def alarms(self, phase: Mapping[str, Any]) -> list[Record]:
        """Return the alarm lines that the decision of ``phase`` wrote: those since the phase before."""
        place = self._last(lambda other: other["index"] <= phase["index"])
        before = self._last(lambda other: other["index"] < phase["index"])
        found = self._places(("alarm",), 0 if before is None else before + 1, place or 0)
        return [self._record(at) for at in found]

    def first_of_regime(self, phase: Mapping[str, Any]) -> Record:
        """Return the phase line in which the region of ``phase`` begins."""
        curriculum, parent = deciding_curriculum(self.header, phase["start"]), self.header.get("parent")
        starts = [curriculum["curriculum_warmup_steps"]]  # a pivot within the warmup has another region after it
        while parent is not None:
            starts.append(parent["step"])
            parent = parent["parent"]
        since = max((step for step in starts if step <= phase["start"]), default=0)

        def is_before(other: Mapping[str, Any]) -> bool:
            is_other = other["start"] < since or other["regime"] != phase["regime"]
            return bool(is_other and other["index"] <= phase["index"])

        place = self._last(is_before)
        first = self._first_from(0 if place is None else place + 1)
        found = None if first is None else self._record(first)
        if found is None or found["region"] is None:
            raise JournalError(f"{self.path}: no phase up to {phase['index']} says what its region is")
        return found

    def tail(self, num_bytes: int) -> Tail:
        """Return what a journal says of the run now, from its last ``num_bytes`` and at least two phases."""
        last = self._last(lambda phase: True)
        if last is None:
            return Tail([], [], [], self._lines(0), self.end)
        newest = self._record(last)["index"]
        before = self._last(lambda phase: phase["index"] < newest)
        begin = last if before is None else before
        late = self._first_from(max(self._bases[-1] - num_bytes, 0))
        begin = begin if late is None else min(begin, late)
        pivots = [self._record(at) for at in self._places(("pivot",), 0, begin)]
        newest_alarms = deque(self._places(("alarm",), 0, begin), maxlen=NUM_OPENINGS)
        alarms = [self._record(at) for at in newest_alarms]
        return Tail(self._openings(self._record(begin)), pivots, alarms, self._lines(begin), self.end)

    @property
    def end(self) -> int:
        """The byte after the last line."""
        return self._spans[-1].end

    def _openings(self, phase: Record) -> list[Record]:
        """Return the phase lines that opened the newest regions before a phase, in order."""
        found: list[Record] = []
        if phase["region"] is not None:
            phase = self.before(phase) or {}
        while phase and len(found) < NUM_OPENINGS:
            found.append(self.first_of_regime(phase))
            phase = self.before(found[-1]) or {}
        return found[::-1]

    def _lines(self, place: int) -> Iterator[Record]:
        """Yield the lines that still hold, from a place on."""
        for span, base in zip(self._spans, self._bases, strict=False):
            start = max(place - base + span.start, span.start)
            if start < span.end:
                within = itertools.takewhile(lambda line: line.offset < span.end, lines_from(self.path, start))  # noqa: B023  # used up here
                yield from (line.record() for line in within)

    def _frontier(self) -> int:
        """Return the first step that is not decided."""
        last = self._last(lambda phase: True)
        if last is None:
            return 0
        phase = self._played(last)
        return int(self._record(last)["start"] if phase is None else phase["start"] + phase["length"])

    def _last(self, holds: Callable[[Record], bool]) -> int | None:
        """Return the place of the last phase line for which something holds that holds up to there and not after."""
        found, low, high = None, 0, self._bases[-1]
        while low < high:
            middle = (low + high) // 2
            place = self._first_from(middle)
            if place is None or place >= high or not holds(self._record(place)):
                high = middle
            else:
                found, low = place, place + 1
        return found

    def _first_from(self, place: int) -> int | None:
        """Return the place of the first phase line at or after a place."""
        return next(self._places(("phase",), place, self._bases[-1]), None)

    def _places(self, kinds: tuple[str, ...], start: int, end: int) -> Iterator[int]:
        """Yield the places of lines of some types, from ``start`` up to ``end``."""
        for span, base in zip(self._spans, self._bases, strict=False):
            shift = span.start - base
            first, last = max(start + shift, span.start), min(end + shift, span.end)
            yield from (at - shift for at in line_starts(self.path, kinds, first, last))

    def _record(self, place: int) -> Record:
        span, base = next(
            (span, base)
            for span, base in zip(self._spans, self._bases, strict=False)
            if place < base + span.end - span.start
        )
        return line_at(self.path, place - base + span.start).record()

    def _played(self, place: int | None) -> Record | None:
        """Return what pivots left of the phase whose line is at a place; None if its decision was undone."""
        if place is None:
            return None
        phases, first = PhaseLines(self.header["curriculum"]), self._record(place)
        phases.add(first)
        index = first["index"]
        following = self._last(lambda phase: phase["index"] <= index + 1)
        end = None if following is None else self._first_from(following + 1)
        for other in self._places(("phase", "pivot"), place + 1, self._bases[-1] if end is None else end):
            record = self._record(other)
            if record["type"] == "phase":
                phases.add(record)
            else:
                phases.cut(record)
        return next((phase for phase in phases.records if phase["index"] == index), None)
