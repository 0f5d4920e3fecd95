"""Feedback on its way to a decision: accepted once, kept until a decision may use it, handed over in order.

Reports may come late, twice, or in any order; what a decision sees depends only on which of them had arrived.
"""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np

from mixer.rewards import SourceLosses, add_losses


class Inbox:
    """Reports by (step, rank); remembers for ever which it has had, as intervals of steps per rank."""

    def __init__(self, num_sources: int) -> None:
        self._num_sources = num_sources
        self._pending: dict[tuple[int, int], SourceLosses] = {}
        self._had: dict[int, list[list[int]]] = {}  # rank -> disjoint closed intervals of steps, in order

    def has(self, step: int, rank: int) -> bool:
        """Return whether the report of (step, rank) has come before."""
        intervals = self._had.get(rank, [])
        i = bisect.bisect_right(intervals, step, key=lambda interval: interval[0]) - 1
        return i >= 0 and step <= intervals[i][1]

    def add(self, step: int, losses: SourceLosses) -> None:
        """Accept a report that ``has`` does not know."""
        self._pending[step, losses.rank] = losses
        intervals = self._had.setdefault(losses.rank, [])
        i = bisect.bisect_right(intervals, step, key=lambda interval: interval[0])
        intervals.insert(i, [step, step])
        if i + 1 < len(intervals) and intervals[i + 1][0] == step + 1:
            intervals[i][1] = intervals.pop(i + 1)[1]
        if i > 0 and intervals[i - 1][1] == step - 1:
            intervals[i - 1][1] = intervals.pop(i)[1]

    def ready(self, before: int) -> list[tuple[int, int]]:
        """Return the (step, rank) of pending reports of steps below ``before``, in order."""
        return sorted(key for key in self._pending if key[0] < before)

    def by_step(self, keys: list[tuple[int, int]]) -> list[SourceLosses]:
        """Return the reports of ``keys`` summed over ranks, one per step, in order."""
        steps: dict[int, list[SourceLosses]] = {}
        for step, rank in keys:
            steps.setdefault(step, []).append(self._pending[step, rank])
        return [add_losses(parts) for parts in steps.values()]

    def take(self, keys: list[tuple[int, int]]) -> list[tuple[int, SourceLosses]]:
        """Return the reports of ``keys`` with their steps, and keep their content no longer: a decision uses them."""
        return [(key[0], self._pending.pop(key)) for key in keys]

    def put_back(self, reports: list[tuple[int, SourceLosses]]) -> None:
        """Keep reports that ``take`` gave: the decision that used them is undone."""
        self._pending.update({(step, losses.rank): losses for step, losses in reports})

    @property
    def last_step(self) -> int | None:
        """The newest step that any rank reported; None if there was no report."""
        return max((intervals[-1][1] for intervals in self._had.values()), default=None)

    def state_dict(self) -> dict[str, Any]:
        """Return pending reports and the steps had, as plain data."""
        pending = [
            {"step": step, **losses_to_record(self._pending[step, rank])} for step, rank in sorted(self._pending)
        ]
        return {
            "pending": pending,
            "had": {str(rank): [[*pair] for pair in self._had[rank]] for rank in sorted(self._had)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the place of the inbox that gave ``state``."""
        self._had = {int(rank): [list(map(int, pair)) for pair in pairs] for rank, pairs in state["had"].items()}
        reports = [(record["step"], record_to_losses(record, self._num_sources)) for record in state["pending"]]
        self._pending = {(step, losses.rank): losses for step, losses in reports}


def losses_to_record(losses: SourceLosses) -> dict[str, Any]:
    """Return plain data with the sources that have rows alone: the form in journals and states."""
    present = np.flatnonzero(losses.rows)
    return {
        "rank": losses.rank,
        "sources": present.tolist(),
        "rows": losses.rows[present].tolist(),
        "tokens": losses.tokens[present].tolist(),
        "loss_sums": losses.loss_sums[present].tolist(),
        "square_sums": losses.square_sums[present].tolist(),
    }


def record_to_losses(record: dict[str, Any], num_sources: int) -> SourceLosses:
    """Return what ``losses_to_record`` was given."""
    arrays: dict[str, Any] = {}
    for key, dtype in (
        ("rows", np.int64),
        ("tokens", np.int64),
        ("loss_sums", np.float64),
        ("square_sums", np.float64),
    ):
        arrays[key] = np.zeros(num_sources, dtype=dtype)
        arrays[key][record["sources"]] = record[key]
    return SourceLosses(rank=record["rank"], **arrays)
