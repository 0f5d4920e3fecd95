"""The phases of a run as its journal has them, each cut where a pivot cut it: any of them, for whoever asks.

Reading asks here, never the walk, which would decide what it does not have.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from mixer.journal.phases import PhaseLines
from mixer.journal.records import record_to_phase, region_in_force
from mixer.sampling.phases import Phase

KEPT = 4  # phases that a reader's view holds: readers tell them apart by identity


class UndecidedError(Exception):
    """A step that no phase covers, or none any more."""


class PhaseIndex:
    """Phases in order; they may be asked for in one thread while they are added in another.

    Args:
        names: the sources.
        curriculum: as the journal's header has it.

    """

    def __init__(self, names: tuple[str, ...], curriculum: Mapping[str, Any]) -> None:
        self.names = names
        self._lines = PhaseLines(curriculum)
        self._regions: list[dict[str, Any]] = []  # the records that say what their region is
        self._newest: tuple[dict[str, Any], Phase] | None = None  # as the walk has it
        self._lock = threading.Lock()

    @property
    def records(self) -> list[dict[str, Any]]:
        """Lines of the journal; a new list after a cut, so that whoever holds one sees no hole in it."""
        return self._lines.records

    @property
    def frontier(self) -> int:
        """The first step that no phase covers."""
        return self._lines.frontier

    def add(self, record: dict[str, Any]) -> None:
        """Take in a phase line."""
        with self._lock:
            self._lines.add(record)
            if record["region"] is not None:
                self._regions.append(record)

    def note(self, phase: Phase) -> None:
        """Take the newest phase as the walk has it: what the walk has worked out of it readers need not again."""
        with self._lock:
            if self.records and (self.records[-1]["start"], _end(self.records[-1])) == (phase.start, phase.end):
                self._newest = self.records[-1], phase

    def cut(self, pivot: Mapping[str, Any]) -> None:
        """Take in a pivot line, which may cut the newest phase or undo it."""
        if pivot["at_step"] >= pivot["decided_before"]:
            return
        with self._lock:
            self._lines.cut(pivot)
            if self._regions and self._regions[-1]["start"] >= pivot["at_step"]:
                self._regions.pop()

    def at(self, step: int) -> Phase:
        """Return the phase that covers a step; raise UndecidedError if none does."""
        return record_to_phase(self._record(step), self.names)

    def begins(self, step: int) -> bool:
        """Return whether a phase begins at a step; raise UndecidedError if none covers it."""
        return bool(self._record(step)["start"] == step)

    def view(self) -> Callable[[int], Phase]:
        """Return an ``at`` for one reader, which gives the same object for a phase as long as no pivot cuts it."""
        kept: deque[tuple[dict[str, Any], Phase]] = deque(maxlen=KEPT)

        def at(step: int) -> Phase:
            record = self._record(step)
            found = next((phase for known, phase in kept if known is record), None)
            newest = self._newest
            if found is None:
                if newest is not None and newest[0] is record:
                    found = newest[1]
                else:
                    found = record_to_phase(record, self.names)
                kept.append((record, found))
            return found

        return at

    def _record(self, step: int) -> dict[str, Any]:
        records = self.records
        index = _covering(records, step)
        if not 0 <= index < len(records):
            raise UndecidedError(step)
        return records[index]

    def region_at(self, step: int) -> dict[str, Any]:
        """Return the region of the phase that covers a step, as the journal has it, under its caps by epochs."""
        phase = self._record(step)
        with self._lock:
            at = bisect.bisect_right(self._regions, step, key=lambda record: record["start"]) - 1
            return region_in_force(phase, self._regions[max(at, 0)]["region"])

    def bounds_at(self, step: int) -> tuple[list[float], list[float]]:
        """Return the smallest and the largest weight that the region of a decided step lets each source reach."""
        region = self.region_at(step)
        return region["lower"], region["upper"]

    def since(self, step: int, limit: int) -> list[dict[str, Any]]:
        """Return up to ``limit`` records, that of the phase which covers ``step`` first."""
        records = self.records
        begin = _covering(records, step)
        return records[begin : begin + limit]


def _end(record: Mapping[str, Any]) -> int:
    return int(record["start"] + record["length"])


def _covering(records: list[dict[str, Any]], step: int) -> int:
    """Return the place of the record that covers a step; their number if none does, -1 for a negative step."""
    return bisect.bisect_right(records, step, key=_end) if step >= 0 else -1
