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
from mixer.walk.reports import Arrived, lows_of, reports_to_state, state_to_reports

OPEN_STEPS = 256  # of which some rows were reported and others not; those of older ones count as reported

_first_step = operator.attrgetter("first_step")


class Inbox:
    """Reports that no decision has used; remembers for ever which it has had, as intervals of steps per rank.

    Reports that a decision to come will use together, as far as decisions are planned, are kept as one sum, so that the
    state stays small whatever the lag. Of a step of which some rows were reported and others not, it knows those.

    Args:
        num_sources: K.
        batch_rows: rows of a step.
        is_by_step: keep every step apart, for a policy that learns from one step after the other.
        in_sums: a decision uses what is kept as one sum, or would be if steps were not kept apart, whole or not at all.
        is_guarded: note each source's lowest report too.
        whole_rows: rows of a step, if the policy may learn from a step once all of them were reported.
    """

    def __init__(
        self,
        num_sources: int,
        *,
        batch_rows: int = sys.maxsize,
        is_by_step: bool = False,
        in_sums: bool = False,
        is_guarded: bool = False,
        whole_rows: int | None = None,
    ) -> None:
        self._num_sources = num_sources
        self._batch_rows = batch_rows
        self._is_by_step = is_by_step
        self._in_sums = in_sums
        self._whole_rows = whole_rows
        self.learned_until = 0  # the first step that the policy has not learned from ahead of a decision
        self.is_guarded = is_guarded
        self._pending: list[Arrived] = []  # in order of first_step
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
        lows = lows_of(step, losses) if self.is_guarded else None
        due = next((cutoff for cutoff in cutoffs if cutoff > step), step + 1) if self._in_sums else step + 1
        new = Arrived(step, step, 1, losses if losses.rank == 0 else replace(losses, rank=0), lows, due=due)
        i = next((i for i, arrived in enumerate(self._pending) if self._is_kept_with(arrived, new, cutoffs)), None)
        if i is not None:
            new = self._pending.pop(i).joined(new)
        bisect.insort(self._pending, new, key=_first_step)
        self._note_rows(step, losses.rows)
        _note(self._had.setdefault(losses.rank, []), step)

    def _note_rows(self, step: int, rows: IntArray) -> None:
        told = self._open.pop(step, None)
        if not _has(self._heard, step):
            _note(self._heard, step)
            told = self._nothing
        if told is not None and int(told.sum() + rows.sum()) < self._batch_rows:
            self._open[step] = told + rows
            if len(self._open) > OPEN_STEPS:
                del self._open[min(self._open)]

    def _is_kept_with(self, arrived: Arrived, new: Arrived, cutoffs: Sequence[int]) -> bool:
        """Whether a new report becomes part of what is pending."""
        if self._is_by_step:  # a step learned from has no rows to come
            return arrived.first_step <= new.first_step <= arrived.last_step and (
                arrived.due == new.due or arrived.is_learned
            )
        return not cutoffs or arrived.due == new.due

    def next_whole(self, before: int) -> Arrived | None:
        """Return the reports of the next step to learn from, if it is below ``before`` and all its rows are there."""
        step = self.learned_until
        if self._whole_rows is None or step >= before:
            return None
        i = bisect.bisect_left(self._pending, step, key=_first_step)
        if i == len(self._pending) or self._pending[i].first_step != step:
            return None
        return self._pending[i] if int(self._pending[i].losses.rows.sum()) >= self._whole_rows else None

    def note_learned(self, arrived: Arrived) -> None:
        """Keep of reports that the policy has learned from their sum alone, which the decision still tells of."""
        self._pending.remove(arrived)
        arrived, learned = replace(arrived, is_learned=True), self._learned()
        if learned is None:
            bisect.insort(self._pending, arrived, key=_first_step)
        else:
            self._pending[learned] = self._pending[learned].joined(arrived)
        self.learned_until = arrived.last_step + 1

    def _learned(self) -> int | None:
        """The place of what is pending and learned from."""
        return next((i for i, arrived in enumerate(self._pending) if arrived.is_learned), None)

    def ready(self, before: int) -> list[Arrived]:
        """Return what is pending of steps below ``before`` alone, in order."""
        return [arrived for arrived in self._pending if max(arrived.due, arrived.last_step + 1) <= before]

    def drop(self, used: Sequence[Arrived]) -> None:
        """Forget the content of what a decision has used."""
        gone = set(map(id, used))
        self._pending = [arrived for arrived in self._pending if id(arrived) not in gone]

    def keep_apart(self) -> None:
        """Let decisions use each step by itself from now on, as if ``in_sums`` had been False."""
        self._in_sums = False
        self._pending = [replace(arrived, due=arrived.last_step + 1) for arrived in self._pending]

    def put_back(self, used: Sequence[Arrived]) -> None:
        """Take back what ``drop`` forgot: the decision that used it is undone."""
        self._pending = sorted([*used, *self._pending], key=_first_step)

    @property
    def had(self) -> dict[int, list[list[int]]]:
        """By rank, the steps that were reported: closed intervals in order, not to be changed."""
        return self._had

    @property
    def last_step(self) -> int | None:
        """The newest step that any rank reported; None if there was no report."""
        return max((intervals[-1][1] for intervals in self._had.values()), default=None)

    def state_dict(self) -> dict[str, Any]:
        """Return pending reports and the steps had, as plain data."""
        of_open = [[step, *_sparse(self._open[step])] for step in sorted(self._open)]
        return {
            "pending": reports_to_state(self._pending),
            "learned_until": self.learned_until,
            "had": _alike(self._had),
            **({"open": of_open} if of_open else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the place of the inbox that gave ``state``."""
        self._had = {
            rank: [[*pair] for pair in intervals]
            for ranks, intervals in state["had"]
            for first, last in ranks
            for rank in range(first, last + 1)
        }
        self._heard = _joined(self._had.values())
        self._open = {}
        for step, sources, rows in state.get("open", []):
            self._open[step] = np.zeros(self._num_sources, dtype=np.int64)
            self._open[step][sources] = rows
        self.learned_until = state["learned_until"]
        self._pending = state_to_reports(state["pending"], self._num_sources)


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


def _sparse(counts: IntArray) -> tuple[list[int], list[int]]:
    """Return the places that are not 0, and what is there."""
    places = np.flatnonzero(counts)
    return places.tolist(), counts[places].tolist()


def _note(intervals: list[list[int]], number: int) -> None:
    """Add a number to closed intervals in order that do not have it."""
    i = bisect.bisect_right(intervals, number, key=operator.itemgetter(0))
    intervals.insert(i, [number, number])
    if i + 1 < len(intervals) and intervals[i + 1][0] == number + 1:
        intervals[i][1] = intervals.pop(i + 1)[1]
    if i > 0 and intervals[i - 1][1] == number - 1:
        intervals[i - 1][1] = intervals.pop(i)[1]


def _alike(had: dict[int, list[list[int]]]) -> list[list[list[list[int]]]]:
    """Return intervals of ranks, each with those of the steps that they had: nearly all ranks had the same."""
    alike: dict[str, list[list[list[int]]]] = {}
    for rank in sorted(had):
        ranks, _ = alike.setdefault(repr(had[rank]), [[], [[*pair] for pair in had[rank]]])
        _note(ranks, rank)
    return list(alike.values())
