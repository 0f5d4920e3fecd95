"""The phase lines of a journal as pivots left them: a live pivot shortens the newest phase, or undoes it.

Whoever follows a journal's lines keeps its phases here, and learns from ``cut`` what a pivot changed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from mixer.journal.records import record_to_phase
from mixer.journal.scan import Record
from mixer.sampling.draws import phase_counts


class Cut(NamedTuple):
    """What a pivot did to the newest phase line: ``before``, and what is ``left`` of it, None if it was undone."""

    before: Record
    left: Record | None


class PhaseLines:
    """Phase lines in order.

    Args:
        curriculum: as the journal's header has it.
        keep: how many of the newest lines to keep; None keeps all, 0 only ``frontier``.

    Attributes:
        records: the lines; a cut replaces this list, so that whoever holds one sees no change in it.
        frontier: the first step that no phase covers.
    """

    def __init__(self, curriculum: Mapping[str, Any], keep: int | None = None) -> None:
        self._curriculum = curriculum
        self._keep = keep
        self.records: list[Record] = []
        self.frontier = 0

    @property
    def newest(self) -> Record | None:
        """The newest line that holds; None if there is none, or none is kept."""
        return self.records[-1] if self.records else None

    def add(self, record: Record) -> None:
        """Take in the next phase line."""
        self.records.append(record)
        if self._keep is not None:
            del self.records[: max(len(self.records) - self._keep, 0)]
        self.frontier = record["start"] + record["length"]

    def cut(self, pivot: Mapping[str, Any]) -> Cut | None:
        """Take in a pivot line; return what it changed, None if it cuts nothing or the phase it cuts is not kept.

        A shortened line has fewer steps, and ``counts`` of the rows that were drawn in them.
        """
        step = pivot["at_step"]
        if step >= pivot["decided_before"]:
            return None
        self.frontier = step
        if not self.records:
            return None
        newest = self.records[-1]
        left = self._shortened(newest, step) if newest["start"] < step else None
        self.records = [*self.records[:-1], *([] if left is None else [left])]
        return Cut(newest, left)

    def copy(self) -> Self:
        """Return the same lines, which stay as they are."""
        same = copy.copy(self)
        same.records = list(self.records)
        return same

    def _shortened(self, record: Record, step: int) -> Record:
        shorter = {**record, "length": step - record["start"]}
        seed, method, batch_rows = (self._curriculum[key] for key in ("seed", "draws", "batch_rows"))
        counts, _ = phase_counts(record_to_phase(shorter, ()), seed=seed, method=method, batch_rows=batch_rows)
        return {**shorter, "counts": counts.sum(axis=0).tolist()}
