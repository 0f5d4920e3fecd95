"""Feedback on its way to a decision: accepted once, kept until a decision may use it, handed over in order.

Reports may come late, twice, or in any order; what a decision sees depends only on which of them had arrived.
"""

from __future__ import annotations

import bisect
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixer.packed import pack, unpack
from mixer.rewards import SQUARE_GRID, SUM_GRID, SourceLosses, add_losses
from mixer.types import Array


@dataclass(frozen=True, eq=False)
class Arrived:
    """Reports that one decision learns from together: their steps, from the first to the last, and their losses.

    ``lows``, for a guard, is the report with the lowest mean loss of each source, which a sum would hide: its loss sum,
    tokens, rows and step, [4, K]; zeros for a source without rows.
    """

    first_step: int
    last_step: int
    reports: int
    losses: SourceLosses
    lows: Array | None = None

    def joined(self, other: Arrived) -> Arrived:
        """Return both as one; losses lie on a grid, so the sum is exact in any order."""
        return Arrived(
            min(self.first_step, other.first_step),
            max(self.last_step, other.last_step),
            self.reports + other.reports,
            add_losses([self.losses, other.losses]),
            None if self.lows is None or other.lows is None else lowest(self.lows, other.lows),
        )


def lows_of(step: int, losses: SourceLosses) -> Array:
    """Return the ``lows`` of one report, [4, K]."""
    steps = np.where(losses.rows > 0, step, 0)
    return np.stack([losses.loss_sums, losses.tokens, losses.rows, steps]).astype(np.float64)


def lowest(one: Array, other: Array) -> Array:
    """Return of each source the lower of two ``lows``; equal ones by step, rows, tokens, so that order is nothing."""
    ranks = [
        np.divide(lows[0], lows[1], out=np.full(lows.shape[1], np.inf), where=lows[1] > 0) for lows in (one, other)
    ]
    is_lower, is_equal = ranks[1] < ranks[0], (ranks[1] == ranks[0]) & (other[1] > 0)
    if is_equal.any():
        for row in (3, 2, 1):
            is_lower |= is_equal & (other[row] < one[row])
            is_equal &= other[row] == one[row]
    return np.where(is_lower, other, one)


_first_step = operator.attrgetter("first_step")


class Inbox:
    """Reports that no decision has used; remembers for ever which it has had, as intervals of steps per rank.

    Reports that every decision to come uses together are kept as one sum, so that the state stays small.

    Args:
        num_sources: K.
        is_by_step: keep every step apart, for a policy that learns from one step after the other.
        is_guarded: note each source's lowest report too.
    """

    def __init__(self, num_sources: int, *, is_by_step: bool = False, is_guarded: bool = False) -> None:
        self._num_sources = num_sources
        self._is_by_step = is_by_step
        self.is_guarded = is_guarded
        self._pending: list[Arrived] = []  # in order of first_step
        self._had: dict[int, list[list[int]]] = {}  # rank -> disjoint closed intervals of steps, in order

    def has(self, step: int, rank: int) -> bool:
        """Return whether the report of (step, rank) has come before."""
        intervals = self._had.get(rank, [])
        i = bisect.bisect_right(intervals, step, key=lambda interval: interval[0]) - 1
        return i >= 0 and step <= intervals[i][1]

    def add(self, step: int, losses: SourceLosses, *, together: int = 0) -> None:
        """Accept a report that ``has`` does not know.

        Args:
            step: its step.
            losses: on the grid.
            together: steps below this one are all used by a decision to come, or none is.
        """
        lows = lows_of(step, losses) if self.is_guarded else None
        new = Arrived(step, step, 1, losses if losses.rank == 0 else replace(losses, rank=0), lows)
        i = bisect.bisect_left(self._pending, step, key=_first_step)
        if i < len(self._pending) and self._pending[i].first_step == step:
            self._pending[i] = new.joined(self._pending[i])
        else:
            self._pending.insert(i, new)
        if not self._is_by_step:
            self._join(together)
        intervals = self._had.setdefault(losses.rank, [])
        i = bisect.bisect_right(intervals, step, key=lambda interval: interval[0])
        intervals.insert(i, [step, step])
        if i + 1 < len(intervals) and intervals[i + 1][0] == step + 1:
            intervals[i][1] = intervals.pop(i + 1)[1]
        if i > 0 and intervals[i - 1][1] == step - 1:
            intervals[i - 1][1] = intervals.pop(i)[1]

    def _join(self, together: int) -> None:
        """Make one of those next to each other that lie below ``together``."""
        joined = self._pending[:1]
        for arrived in self._pending[1:]:
            if joined[-1].first_step < together and arrived.last_step < together:
                joined[-1] = joined[-1].joined(arrived)
            else:
                joined.append(arrived)
        self._pending = joined

    def ready(self, before: int) -> list[Arrived]:
        """Return what is pending of steps below ``before``, in order."""
        return [arrived for arrived in self._pending if arrived.first_step < before]

    def across(self, before: int) -> Arrived | None:
        """Return reports kept as one sum of which some are of steps below ``before`` and some are not."""
        return next((arrived for arrived in self._pending if arrived.first_step < before <= arrived.last_step), None)

    def drop(self, used: Sequence[Arrived]) -> None:
        """Forget the content of what a decision has used."""
        gone = set(map(id, used))
        self._pending = [arrived for arrived in self._pending if id(arrived) not in gone]

    def put_back(self, used: Sequence[Arrived]) -> None:
        """Take back what ``drop`` forgot: the decision that used it is undone."""
        self._pending = sorted([*used, *self._pending], key=lambda arrived: arrived.first_step)

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
        return {
            "pending": [arrived_to_state(arrived) for arrived in self._pending],
            "had": {str(rank): [[*pair] for pair in self._had[rank]] for rank in sorted(self._had)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the place of the inbox that gave ``state``."""
        self._had = {int(rank): [list(map(int, pair)) for pair in pairs] for rank, pairs in state["had"].items()}
        self._pending = [state_to_arrived(arrived, self._num_sources) for arrived in state["pending"]]


def arrived_to_state(arrived: Arrived) -> list[Any]:
    """Return plain data, packed: the form in states."""
    return [arrived.first_step, arrived.last_step, arrived.reports, *_packed(arrived)]


def state_to_arrived(state: list[Any], num_sources: int) -> Arrived:
    """Return what ``arrived_to_state`` was given."""
    first_step, last_step, reports, present, text = state
    numbers = unpack(text).reshape(-1, len(present)) if present else np.zeros((8, 0))
    columns = np.zeros((len(numbers), num_sources))
    columns[:, present] = numbers * np.array(_GRIDS)[: len(numbers), None]
    rows, tokens, loss_sums, square_sums = columns[:4]
    losses = SourceLosses(
        rows=rows.astype(np.int64), tokens=tokens.astype(np.int64), loss_sums=loss_sums, square_sums=square_sums
    )
    return Arrived(first_step, last_step, reports, losses, columns[4:] if len(columns) > 4 else None)


# of rows, tokens, loss_sums, square_sums, and of the lows' loss sums, tokens, rows and steps
_GRIDS = (1.0, 1.0, SUM_GRID, SQUARE_GRID, SUM_GRID, 1.0, 1.0, 1.0)


def _packed(arrived: Arrived) -> list[Any]:
    """Return the sources that have rows, and their numbers as multiples of the grids."""
    losses = arrived.losses
    present = np.flatnonzero(losses.rows)
    columns = [losses.rows, losses.tokens, losses.loss_sums, losses.square_sums]
    columns += [] if arrived.lows is None else list(arrived.lows)
    multiples = [np.rint(column[present] / grid) for column, grid in zip(columns, _GRIDS, strict=False)]
    return [present.tolist(), pack(np.concatenate(multiples).astype(np.int64))]


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
    places = np.array(record["sources"], dtype=np.intp)
    counts, sums = np.zeros((2, num_sources), dtype=np.int64), np.zeros((2, num_sources))
    counts[:, places] = np.array([record["rows"], record["tokens"]], dtype=np.int64)
    sums[:, places] = np.array([record["loss_sums"], record["square_sums"]], dtype=np.float64)
    return SourceLosses(rows=counts[0], tokens=counts[1], loss_sums=sums[0], square_sums=sums[1], rank=record["rank"])
