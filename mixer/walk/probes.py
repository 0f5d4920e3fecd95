"""Held-out losses on their way to a decision: which steps offer a probe, what was answered, what no decision has used.

A probe is offered at the first step of each phase, or each n-th. Each rank answers a part of its rows once; what a
decision sees depends only on which answers had come.
"""

from __future__ import annotations

import bisect
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.errors import FeedbackError, ProbeNotOfferedError, RepeatedRowsError
from mixer.losses import SourceLosses
from mixer.sampling.phases import Phase
from mixer.types import IntArray
from mixer.walk.limits import Limits
from mixer.walk.reports import ReportSum

KEPT_PROBES = 64  # the newest that may still be answered; about 1,500 steps
NO_PROBES = "step {} offers no probe: the curriculum asks for none (`probes: {{}}` does)"

_step = operator.attrgetter("first_step")


def offers_probe(curriculum: Curriculum, phase: Phase, step: int) -> bool:
    """Return whether a step, which lies in ``phase``, offers a probe."""
    return curriculum.probes is not None and step == phase.start and phase.index % curriculum.probes.phases == 0


class ProbeInbox:
    """The probes offered and their answers; empty for ever if the curriculum asks for none.

    Args:
        curriculum: the run.
    """

    def __init__(self, curriculum: Curriculum) -> None:
        self._curriculum = curriculum
        self._names = curriculum.probed_names
        self._most_rows = curriculum.probes.rows if curriculum.probes else 0
        limits = Limits.of(curriculum)
        self._limits = replace(limits, batch_rows=self._most_rows * len(self._names))
        self._ranks: dict[int, list[int]] = {}  # by step offered, in order: who has answered
        self._told: dict[int, IntArray] = {}  # by step answered: rows, [K + M]
        self._pending: list[ReportSum] = []  # one for each step, in order

    def offer(self, phase: Phase) -> None:
        """Take note of a new phase, whose first step may offer a probe."""
        if offers_probe(self._curriculum, phase, phase.start):
            self._ranks.setdefault(phase.start, [])
            if len(self._ranks) > KEPT_PROBES:
                oldest = next(iter(self._ranks))
                del self._ranks[oldest]
                self._told.pop(oldest, None)

    def newest(self, until: int) -> int | None:
        """Return the newest step up to ``until`` that offers a probe; None if none that is kept does."""
        return next((step for step in reversed(self._ranks) if step <= until), None)

    def has(self, step: int, rank: int) -> bool:
        """Return whether a rank has answered the probe of a step; ProbeNotOfferedError if the step offers none."""
        if self._curriculum.probes is None:
            raise ProbeNotOfferedError(NO_PROBES.format(step))
        if step not in self._ranks:
            offered = ", ".join(map(str, [*self._ranks][-3:])) or "none yet"
            raise ProbeNotOfferedError(
                f"step {step} offers no probe that can be answered; the newest steps that do are {offered}: report "
                "what dataset.probe_batch() gives, as it was given"
            )
        return rank in self._ranks[step]

    def check(self, step: int, losses: SourceLosses) -> None:
        """Raise unless an answer that is not known yet can be one, in part, of the probe of a step.

        Raises:
            FeedbackError: more rows than the probe has.
            RepeatedRowsError: rows that other ranks have reported.
            InvalidLossError: a loss that no model has.
        """
        self._limits.check(losses, self._names, step=step)
        told = self._told.get(step, np.zeros_like(losses.rows))
        for i in np.flatnonzero(losses.rows + told > self._most_rows)[:1].tolist():
            name, rows = self._names[i], int(losses.rows[i])
            if rows > self._most_rows:
                raise FeedbackError(
                    f"the probe of step {step} has {self._most_rows} rows of {name} at most, but {rows} are reported"
                )
            raise RepeatedRowsError(
                f"the probe of step {step} has {self._most_rows} rows of {name} at most: {int(told[i])} were reported "
                f"before, and {rows} more are; report each row once"
            )

    def add(self, step: int, losses: SourceLosses) -> None:
        """Accept an answer that ``has`` does not know; losses are on the grid."""
        new = ReportSum(step, step, replace(losses, rank=0))
        i = bisect.bisect_left(self._pending, step, key=_step)
        if i < len(self._pending) and self._pending[i].first_step == step:
            new = self._pending.pop(i).joined(new, keeps_lowest=False)
        self._pending.insert(i, new)
        self._ranks[step].append(losses.rank)
        self._told[step] = self._told.get(step, np.zeros_like(losses.rows)) + losses.rows

    def ready(self, before: int) -> list[ReportSum]:
        """Return what no decision has used of steps below ``before``, in order."""
        return self._pending[: bisect.bisect_left(self._pending, before, key=_step)]

    def drop(self, used: Sequence[ReportSum]) -> None:
        """Forget the losses that a decision has used."""
        gone = set(map(id, used))
        self._pending = [report for report in self._pending if id(report) not in gone]

    def put_back(self, used: Sequence[ReportSum]) -> None:
        """Take back what ``drop`` forgot: the decision that used it is undone."""
        by_step = {report.first_step: report for report in self._pending}
        for report in used:
            late = by_step.get(report.first_step)
            by_step[report.first_step] = report if late is None else report.joined(late, keeps_lowest=False)
        self._pending = [by_step[step] for step in sorted(by_step)]

    def state_dict(self) -> dict[str, Any]:
        """Return what is offered, answered and not used, as plain data."""
        return {
            "offered": [[step, sorted(ranks)] for step, ranks in self._ranks.items()],
            "told": {str(step): rows.tolist() for step, rows in self._told.items()},
            "pending": [report.to_record() for report in self._pending],
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take the place of the inbox that gave ``state``; None is that of a run that offered none."""
        state = state or {"offered": [], "told": {}, "pending": []}
        self._ranks = {step: [*ranks] for step, ranks in state["offered"]}
        self._told = {int(step): np.array(rows, dtype=np.int64) for step, rows in state["told"].items()}
        self._pending = [ReportSum.of(record, len(self._names)) for record in state["pending"]]
