"""A source that cannot be reached is pivoted out of the region, and back in when it answers again.

Both are live pivots, so they are journalled, replayed and kept in saved states like any other. The one out cuts the
phase in force at the batch that could not be composed, which nobody may have taken: this works where one process
reads for all, which is a data set alone or the service. The one back in begins with the next phase.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.delivery.batch import BatchReader, RowBatch
from mixer.delivery.decider import Decider
from mixer.errors import MixerError, PivotError, SourceUnavailableError, TopologyError
from mixer.region.regimes import BACK_IN_REACH, OUT_OF_REACH, Regime

log = logging.getLogger(__name__)


class Suspension:
    """Suspends the sources whose ``on_failure`` says so.

    Args:
        curriculum: the run.
        walk: who decides, and can pivot.
    """

    def __init__(self, curriculum: Curriculum, walk: Decider) -> None:
        self._may = curriculum.suspended_if_lost
        self._walk = walk

    @classmethod
    def of(cls, curriculum: Curriculum, walk: Decider) -> Suspension | None:
        """Return who suspends the sources of a run; None if none is to be suspended, or the walk is a replay."""
        return cls(curriculum, walk) if may_suspend(curriculum, walk) else None

    def read(self, reader: BatchReader, step: int) -> RowBatch:
        """Return the batch of a step, without the sources that cannot be reached.

        Raises:
            SourceUnavailableError: a source is out of reach and cannot be suspended.
        """
        names = self.to_probe(step) if self._walk.phase_at(step).start == step else []
        readable = {name for name in names if reader.probe(name)}
        while True:
            try:
                batch = reader.read(step)
            except SourceUnavailableError as error:
                self.suspend(error, step)
                readable.clear()
            else:
                if readable:
                    self.take_back(step, readable.__contains__)
                return batch

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
        if error.name not in self._may:
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
            can_read: whether a source can be read now.
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
        return next(r for r in reversed(self._walk.regimes) if r.start <= step and not r.name.startswith(OUT_OF_REACH))

    def _suspended(self, step: int) -> list[str]:
        regime = self._walk.regime_at(step)
        if not regime.name.startswith(OUT_OF_REACH):
            return []
        return [name for name in regime.bounds.exclude if name not in self._planned(step).bounds.exclude]


def may_suspend(curriculum: Curriculum, walk: Decider | None) -> bool:
    """Return whether sources of a run may be suspended.

    Args:
        curriculum: the run.
        walk: who decides; a replay repeats the suspensions of its journal. None for a walk that is still to be made.
    """
    return bool(curriculum.suspended_if_lost) and (walk is None or walk.can_pivot)


def refused(curriculum: Curriculum, readers: str) -> TopologyError:
    """Return the error that sources may be suspended, but several processes read.

    Args:
        curriculum: the run.
        readers: who reads, such as "2 ranks read".
    """
    return TopologyError(
        f"source {min(curriculum.suspended_if_lost)} has on_failure: suspend, which needs one process that reads for "
        f"all, but {readers}; let `mixer serve` read and train on RemoteMixtureDataset, or prepare the sources "
        "(`mixer prepare`), or set on_failure to stop"
    )


def _name(step: int, out: list[str]) -> str:
    """Return the name of the regime from ``step`` on; the step comes first, for many sources are cut short."""
    return f"{OUT_OF_REACH}{step}-{'-'.join(out)}"[:100] if out else f"{BACK_IN_REACH}{step}"
