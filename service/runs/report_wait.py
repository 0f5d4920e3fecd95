"""Whether the losses that a decision should see have come, so that timing does not change the run.

The walk itself never waits. The service does, for a short time: before it decides a phase from step s, it waits for the
reports of all ranks on steps below s - lag. It waits at most ``wait_s`` for a silent rank, and then no more until that
rank reports again.

Once a run has had reports, phases are decided only up to a bound beyond the newest one. Without it, a request far ahead
would have the whole run decided without losses, and the steps that trainers still need would no longer be kept.

Missing reports are counted once for each phase, and each report changes the count of its own rank. So a report costs
the same with thousands of ranks as with a few.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence


class ReportWait:
    """Who is expected to report, and who has.

    Args:
        lag: of the run's feedback.
        wait_s: longest wait for a rank.
        unreported_steps: how far beyond the newest report, and the lag, a phase may begin.
        clock: what waits go by.

    Attributes:
        newest_report: the newest step that any rank reported; None if there was no report.
    """

    def __init__(
        self,
        *,
        lag: int,
        wait_s: float,
        unreported_steps: int = sys.maxsize,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lag, self._wait_s, self._clock = lag, wait_s, clock
        self._unreported_steps = unreported_steps
        self._world_size: int | None = None
        self._since = 0  # the first step that this world is expected to report
        self._newest_start = 0  # of the phases decided
        self._reported: dict[int, set[int]] = {}
        self._absent: set[int] = set()
        self._waiting: tuple[int, float] | None = None  # the phase's first step, and since when
        self._expected: range | None = None  # the steps that the next phase waits for; None: to be counted anew
        self._missing: dict[int, int] = {}  # how many of them each rank has not reported; complete ranks are left out
        self._awaited: set[int] = set()  # those of these ranks that are not absent
        self._lock = threading.Lock()  # reports come in threads
        self.newest_report: int | None = None

    @property
    def absent(self) -> list[int]:
        """Ranks that are not waited for."""
        return sorted(self._absent)

    @property
    def world_size(self) -> int | None:
        """The number of ranks that asked last."""
        return self._world_size

    def last_reports(self) -> dict[int, int]:
        """Return the newest reported step of each rank that is known."""
        with self._lock:
            return {rank: max(steps) for rank, steps in sorted(self._reported.items()) if steps}

    @property
    def reach(self) -> int:
        """The last step that a phase may begin at, as far as reports have come; there is no bound before the first."""
        newest = self.newest_report
        return sys.maxsize if newest is None else newest + self._lag + self._unreported_steps

    def asked(self, step: int, world_size: int) -> None:
        """Note that a world of this size asks for batches."""
        with self._lock:
            if world_size != self._world_size:
                self._since = 0 if self._world_size is None else step  # after a restart the world is the one before it
                self._world_size = world_size
                self._absent.clear()
                self._expected = None
            self._since = min(self._since, step)

    def reported(self, step: int, rank: int) -> None:
        """Note a report."""
        with self._lock:
            steps = self._reported.setdefault(rank, set())
            is_due = self._expected is not None and step in self._expected and step not in steps
            steps.add(step)
            self.newest_report = max(step, self.newest_report or 0)
            self._absent.discard(rank)
            if rank in self._missing:
                self._missing[rank] -= is_due
                self._awaited.add(rank)
                if self._missing[rank] == 0:
                    del self._missing[rank]
                    self._awaited.remove(rank)

    def resume(self, had: Mapping[int, Sequence[Sequence[int]]], *, since: int) -> None:
        """Note what was reported before a restart: by rank the intervals of its steps, those before ``since`` left out.

        The newest step of a rank is kept whatever its age.
        """
        with self._lock:
            self._expected = None
            for rank, intervals in had.items():
                newest = intervals[-1][1]
                recent = (range(max(first, since), last + 1) for first, last in intervals)
                self._reported[rank] = set(itertools.chain((newest,), *recent))
                self.newest_report = max(newest, self.newest_report or 0)

    def decided(self, start: int) -> None:
        """Note that the phase from ``start`` is decided; what the one before it waited for matters no more."""
        with self._lock:
            self._waiting = self._expected = None
            for rank, steps in self._reported.items():
                self._reported[rank] = {s for s in steps if s >= self._newest_start - self._lag} or {max(steps)}
            self._newest_start = start

    def cut(self, newest_start: int) -> None:
        """Note that a pivot cut the newest phase; ``newest_start`` is that of the newest one left."""
        with self._lock:
            self._waiting = self._expected = None
            self._newest_start = newest_start

    def is_over(self, start: int) -> bool:
        """Return whether the phase from ``start``, which follows the newest, may be decided now."""
        if start > self.reach:
            return False
        with self._lock:
            self._expect(range(max(self._since, self._newest_start - self._lag, 0), max(start - self._lag, 0)))
            if not self._awaited:
                return True
            if self._waiting is None or self._waiting[0] != start:
                self._waiting = (start, self._clock())
            if self._clock() - self._waiting[1] < self._wait_s:
                return False
            self._absent |= self._awaited
            self._awaited.clear()
            return True

    def _expect(self, steps: range) -> None:
        """Count what each rank has not reported of some steps, unless ``reported`` keeps that count already."""
        if steps == self._expected:
            return
        self._expected, self._missing = steps, {}
        for rank in range(self._world_size or 0):
            had = self._reported.get(rank, set())
            if missing := sum(step not in had for step in steps):
                self._missing[rank] = missing
        self._awaited = self._missing.keys() - self._absent
