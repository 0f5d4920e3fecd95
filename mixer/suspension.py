"""A source that cannot be reached is pivoted out of the region, and back in when it answers again.

Both are live pivots, so they are journalled, replayed and kept in saved states like any other. The one out cuts the
phase in force at the batch that could not be composed; the one back in begins with the next phase. Ranks agree before
any of them trains on a batch (``agreement``): what one cannot compose, the others give back. DataLoader workers do
(``turns``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any, Self

from mixer.agreement import Agreement, Alone, Loop, Verdict, readable_by_all
from mixer.batches import BatchReader, RowBatch
from mixer.config import Curriculum, Pivot
from mixer.errors import MixerError, PivotError, SourceUnavailableError
from mixer.regimes import OUT_OF_REACH, Regime

log = logging.getLogger(__name__)


class Suspension:
    """Suspends the sources whose ``on_failure`` says so.

    Args:
        curriculum: the run.
        walk: who decides; one that cannot pivot (a replay) suspends nothing.
        ranks: with whom this process agrees.
    """

    def __init__(self, curriculum: Curriculum, walk: Any, ranks: Agreement | Alone | None = None) -> None:
        self.ranks = ranks or Alone()
        self._may = curriculum.suspended_if_lost
        self._walk = walk
        self._loop = Loop(0)
        self._readable: dict[int, Collection[str]] = {}  # by rank, the suspended sources that it could read
        self._readable_in = 0  # number of the loop in which they said so

    @classmethod
    def of(cls, curriculum: Curriculum, walk: Any) -> Self | None:
        """Return who suspends the sources of a run that one process reads, None if none is to be suspended."""
        return cls(curriculum, walk) if curriculum.suspended_if_lost else None

    def begin(self) -> Loop:
        """Note that this process, or its workers, begin to iterate; return the loop."""
        self._loop = self.ranks.begin()
        return self._loop

    def read(self, reader: BatchReader, step: int) -> RowBatch:
        """Return the batch of a step, as soon as every rank can compose its own.

        Raises:
            SourceUnavailableError: a source is out of reach and cannot be suspended; on all ranks.
            TopologyError: another rank is gone.
        """
        names = self.to_probe(step) if self._walk.phase_at(step).start == step else []
        readable = [name for name in names if reader.probe(name)] if names else None
        while True:
            batch = problem = None
            try:
                batch = reader.read(step)
            except SourceUnavailableError as error:
                problem = error
            is_good = self.ranks.agree(self._loop, step, self.follow, problem=problem, readable=readable)
            if is_good:
                assert batch is not None, "or there was a problem"
                return batch
            readable = None
            if batch is not None:
                reader.give_back(batch)

    def follow(self, verdict: Verdict, *, first_free: int = 0) -> bool:
        """Do what ranks have agreed on for a step: suspend a source from there on, or take sources back.

        Args:
            verdict: the same on all ranks.
            first_free: the first step that nobody counts on as it is.

        Returns:
            Whether the step that was agreed on now is for good as it was composed.
        """
        if verdict.loop != self._readable_in:
            self._readable.clear()
            self._readable_in = verdict.loop
        if verdict.problem is not None:
            self._readable.clear()
            self.suspend(verdict.problem, verdict.step, first_free=first_free)
            return False
        self._readable |= verdict.readable
        readable = readable_by_all(self._readable, self.ranks.world_size)
        if readable is not None:
            self.take_back(verdict.step, readable.__contains__)
        return not verdict.is_late

    def suspend(self, error: SourceUnavailableError, step: int, *, first_free: int = 0) -> None:
        """Pivot the source that failed out from ``step`` on, whose batch is composed anew.

        Args:
            error: says which source.
            step: of the batch that could not be composed.
            first_free: the first step that nobody counts on as it is.

        Raises:
            SourceUnavailableError: the one given, if the source is not to be suspended; or another with the reason, if
                the bounds or the phases do not allow to go on without it.
        """
        if error.name not in self._may or not hasattr(self._walk, "pivot"):
            raise error
        planned = self._planned(step).bounds
        out = [*self._suspended(step), error.name]
        try:
            if step < first_free:
                raise PivotError(f"the weights of step {first_free - 1} were given out")
            self._walk.pivot(Pivot.to(planned.without(out), name=_name(step, out)), step, cut=True)
        except MixerError as reason:
            raise SourceUnavailableError(
                f"{error}; it cannot be suspended at step {step}: {reason}", name=error.name
            ) from error
        log.warning("source %s is suspended from step %d on: %s", error.name, step, error)

    def take_back(self, step: int, can_read: Callable[[str], bool]) -> None:
        """Pivot those that answer again back in, from the next phase on.

        Args:
            step: one of the phase in which they were tried.
            can_read: whether all who read can read a source now.
        """
        if not self._walk.regime_at(step).name.startswith(OUT_OF_REACH):
            return
        if self._walk.regime_at(self._walk.frontier).name != self._walk.regime_at(step).name:
            return  # another regime comes next, as planned or as decided before
        out = self._suspended(step)
        still = [name for name in out if not can_read(name)]
        if still == out:
            return
        planned, start = self._planned(step).bounds, self._walk.frontier
        try:
            self._walk.pivot(Pivot.to(planned.without(still), name=_name(start, still)))
        except MixerError as reason:  # a boundary is too near: the next phase asks again
            log.warning("suspended sources stay out for one phase more: %s", reason)
            return
        log.warning("source %s is taken back from step %d on", ", ".join(sorted(set(out) - set(still))), start)

    def to_probe(self, step: int) -> list[str]:
        """Return the sources that were suspended before the phase of ``step`` began."""
        is_new = self._walk.regime_at(step).start >= self._walk.phase_at(step).start
        return [] if is_new else self._suspended(step)

    def _planned(self, step: int) -> Regime:
        """The newest regime, up to ``step``, in which nothing is suspended."""
        regimes: tuple[Regime, ...] = self._walk.regimes
        return next(r for r in reversed(regimes) if r.start <= step and not r.name.startswith(OUT_OF_REACH))

    def _suspended(self, step: int) -> list[str]:
        regime: Regime = self._walk.regime_at(step)
        if not regime.name.startswith(OUT_OF_REACH):
            return []
        return [name for name in regime.bounds.exclude if name not in self._planned(step).bounds.exclude]


def _name(step: int, out: list[str]) -> str:
    """Return the name of the regime from ``step`` on; the step comes first, for many sources are cut short."""
    return f"{OUT_OF_REACH}{step}-{'-'.join(out)}"[:100] if out else f"with-all-{step}"
