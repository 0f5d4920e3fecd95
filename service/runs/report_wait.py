"""Whether the losses that a decision should see have come: what makes a run the same whatever the timing.

Nothing in the walk waits. The service does, a little: before a phase from step s is decided, for the reports of all
ranks on steps below s - lag, and for a rank that stays silent at most ``wait_s``, once, until it reports again.

Once a run has had reports, it is decided only so far beyond the newest of them: whoever asks far ahead would else have
all of it decided on nothing, and the steps that trainers still need would be gone.
"""

from __future__ import annotations

import itertools
import sys
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
        known = list(self._reported.items())  # reports come in threads
        return {rank: max(steps) for rank, steps in sorted(known) if steps}

    @property
    def reach(self) -> int:
        """The last step that a phase may begin at, as far as reports have come; there is no bound before the first."""
        newest = self.newest_report
        return sys.maxsize if newest is None else newest + self._lag + self._unreported_steps

    def asked(self, step: int, world_size: int) -> None:
        """Note that a world of this size asks for batches."""
        if world_size != self._world_size:
            self._since = 0 if self._world_size is None else step  # after a restart the world is the one before it
            self._world_size = world_size
            self._absent.clear()
        self._since = min(self._since, step)

    def reported(self, step: int, rank: int) -> None:
        """Note a report."""
        self._reported.setdefault(rank, set()).add(step)
        self.newest_report = max(step, self.newest_report or 0)
        self._absent.discard(rank)

    def resume(self, had: Mapping[int, Sequence[Sequence[int]]], *, since: int) -> None:
        """Note what was reported before a restart: by rank the intervals of its steps, those before ``since`` left out.

        The newest step of a rank is kept whatever its age.
        """
        for rank, intervals in had.items():
            newest = intervals[-1][1]
            recent = (range(max(first, since), last + 1) for first, last in intervals)
            self._reported[rank] = set(itertools.chain((newest,), *recent))
            self.newest_report = max(newest, self.newest_report or 0)

    def decided(self, start: int) -> None:
        """Note that the phase from ``start`` is decided; what the one before it waited for matters no more."""
        self._waiting = None
        for rank, steps in self._reported.items():
            self._reported[rank] = {s for s in steps if s >= self._newest_start - self._lag} or {max(steps)}
        self._newest_start = start

    def cut(self, newest_start: int) -> None:
        """Note that a pivot cut the newest phase; ``newest_start`` is that of the newest one left."""
        self._waiting, self._newest_start = None, newest_start

    def is_over(self, start: int) -> bool:
        """Return whether the phase from ``start``, which follows the newest, may be decided now."""
        if start > self.reach:
            return False
        expected = range(max(self._since, self._newest_start - self._lag, 0), max(start - self._lag, 0))
        missing = {
            rank
            for rank in range(self._world_size or 0)
            if rank not in self._absent and not self._reported.get(rank, set()).issuperset(expected)
        }
        if not missing:
            return True
        if self._waiting is None or self._waiting[0] != start:
            self._waiting = (start, self._clock())
        if self._clock() - self._waiting[1] < self._wait_s:
            return False
        self._absent |= missing
        return True
