"""Feedback on its way to a decision: accepted once, kept until a decision may use it, handed over in order.

Reports may come late, twice, or in any order; what a decision sees depends only on which of them had arrived.
"""

from __future__ import annotations

import bisect
import itertools
import operator
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mixer.losses import SourceLosses
from mixer.types import IntArray
from mixer.walk.reports import ReportSum

OPEN_STEPS = 256  # of which some rows were reported and others not; those of older ones count as reported

_first_step = operator.attrgetter("first_step")


class Inbox:
    """Reports that no decision has used; remembers for ever which it has had, as intervals of steps per rank.

    Reports that a decision to come will use together, as far as decisions are planned, are kept as one sum. Of a step
    of which some rows were reported and others not, it knows those.

    Args:
        num_sources: K.
        batch_rows: rows of a step.
        is_by_step: keep every step apart, for a policy that learns from one step after the other.
        in_sums: a decision uses what is kept as one sum, or would be if steps were not kept apart, whole or not at all.
        is_guarded: note the lowest report of each source too.
    """

    def __init__(
        self,
        num_sources: int,
        *,
        batch_rows: int = sys.maxsize,
        is_by_step: bool = False,
        in_sums: bool = False,
        is_guarded: bool = False,
    ) -> None:
        self._num_sources = num_sources
        self._batch_rows = batch_rows
        self._is_by_step = is_by_step
        self._in_sums = in_sums
        self.is_guarded = is_guarded
        self._pending: list[ReportSum] = []  # in order of first_step
        self._had: dict[int, list[list[int]]] = {}  # rank -> disjoint closed intervals of steps, in order
        self._heard: list[list[int]] = []  # those of any rank
        self._open: dict[int, IntArray] = {}  # rows reported of steps of which some are missing, [K]
        self._nothing: IntArray = np.zeros(num_sources, dtype=np.int64)

    def has(self, step: int, rank: int) -> bool:
        """Return whether the report of (step, rank) has come before."""
        return _has(self._had.get(rank, []), step)

    def told(self, step: int) -> IntArray | None:
        """Return the rows of each source that were reported of a step, [K]; None if those were all."""
        return self._open.get(step) if _has(self._heard, step) else self._nothing

    def add(self, step: int, losses: SourceLosses, *, cutoffs: Sequence[int] = ()) -> None:
        """Accept a report that ``has`` does not know.

        Args:
            step: its step.
            losses: on the grid.
            cutoffs: in order, the steps below which the decisions planned will use what there is; none if the next
                decision, planned or not, will use all that there is.
        """
        due = next((cutoff for cutoff in cutoffs if cutoff > step), step + 1) if self._in_sums else step + 1
        new = ReportSum(step, step, losses if losses.rank == 0 else replace(losses, rank=0), due=due)
        i = next((i for i, waiting in enumerate(self._pending) if self._is_kept_with(waiting, new, cutoffs)), None)
        if i is not None:
            new = self._pending.pop(i).joined(new, keeps_lowest=self.is_guarded)
        bisect.insort(self._pending, new, key=_first_step)
        self._note_rows(step, losses.rows)
        _note(self._had.setdefault(losses.rank, []), step)

    def _is_kept_with(self, waiting: ReportSum, new: ReportSum, cutoffs: Sequence[int]) -> bool:
        """Whether a new report becomes part of what is pending."""
        if self._is_by_step:
            return waiting.first_step == new.first_step and waiting.due == new.due
        return not cutoffs or waiting.due == new.due

    def _note_rows(self, step: int, rows: IntArray) -> None:
        told = self._open.pop(step, None)
        if not _has(self._heard, step):
            _note(self._heard, step)
            told = self._nothing
        if told is not None and int(told.sum() + rows.sum()) < self._batch_rows:
            self._open[step] = told + rows
            if len(self._open) > OPEN_STEPS:
                del self._open[min(self._open)]

    def ready(self, before: int) -> list[ReportSum]:
        """Return what is pending of steps below ``before``, in order."""
        return [reports for reports in self._pending if max(reports.due, reports.last_step + 1) <= before]

    def drop(self, used: Sequence[ReportSum]) -> None:
        """Forget the content of what a decision has used."""
        gone = set(map(id, used))
        self._pending = [reports for reports in self._pending if id(reports) not in gone]

    def keep_apart(self) -> None:
        """Let decisions use each step by itself from now on, as if ``in_sums`` had been False."""
        self._in_sums = False
        self._pending = [replace(reports, due=reports.last_step + 1) for reports in self._pending]

    def put_back(self, used: Sequence[ReportSum]) -> None:
        """Take back what ``drop`` forgot: the decision that used it is undone."""
        self._pending = sorted([*used, *self._pending], key=_first_step)

    @property
    def had(self) -> dict[int, list[list[int]]]:
        """By rank, the steps that were reported: closed intervals in order, not to be changed."""
        return self._had

    @property
    def last_step(self) -> int | None:
        """The newest step that any rank reported; None if there was no report."""
        return self._heard[-1][1] if self._heard else None

    def state_dict(self) -> dict[str, Any]:
        """Return pending reports and the steps had, as plain data."""
        return {
            "pending": [reports.to_record() for reports in self._pending],
            "had": {str(rank): [[*pair] for pair in self._had[rank]] for rank in sorted(self._had)},
            "open": {str(step): self._open[step].tolist() for step in sorted(self._open)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the place of the inbox that gave ``state``."""
        self._had = {int(rank): [[*pair] for pair in intervals] for rank, intervals in state["had"].items()}
        self._heard = _joined(self._had.values())
        self._open = {int(step): np.array(rows, dtype=np.int64) for step, rows in state["open"].items()}
        self._pending = [ReportSum.of(record, self._num_sources) for record in state["pending"]]


def _has(intervals: list[list[int]], number: int) -> bool:
    """Return whether closed intervals in order have a number."""
    i = bisect.bisect_right(intervals, number, key=operator.itemgetter(0)) - 1
    return i >= 0 and number <= intervals[i][1]


def _joined(several: Iterable[list[list[int]]]) -> list[list[int]]:
    """Return the closed intervals of all numbers that any of some lists of them has."""
    joined: list[list[int]] = []
    for first, last in sorted(itertools.chain.from_iterable(several)):
        if joined and first <= joined[-1][1] + 1:
            joined[-1][1] = max(joined[-1][1], last)
        else:
            joined.append([first, last])
    return joined


def _note(intervals: list[list[int]], number: int) -> None:
    """Add a number to closed intervals in order that do not have it."""
    i = bisect.bisect_right(intervals, number, key=operator.itemgetter(0))
    intervals.insert(i, [number, number])
    if i + 1 < len(intervals) and intervals[i + 1][0] == number + 1:
        intervals[i][1] = intervals.pop(i + 1)[1]
    if i > 0 and intervals[i - 1][1] == number - 1:
        intervals[i - 1][1] = intervals.pop(i)[1]
