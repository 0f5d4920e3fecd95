"""The phases that a walk has decided, and where its draws stand after the newest of them.

The newest ``KEPT_PHASES`` stay readable; older ones are the journal's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.errors import FeedbackError, FutureFeedbackError, StepError
from mixer.journal.records import phase_to_record, record_to_phase
from mixer.losses import SourceLosses
from mixer.sampling.draws import initial_owed, phase_counts
from mixer.sampling.phases import Kind, Phase
from mixer.types import Array, IntArray

KEPT_PHASES = 256  # about 6,000 steps


class DecidedPhases:
    """Phases one after the other, without a gap.

    Attributes:
        held: those that can be read, in order.
        newest: the last of them; None before the first.
        frontier: the first step that no phase covers yet.
        drawn: rows drawn of each source up to there, [K].
        owed: rows owed of each source there, [K].
    """

    def __init__(self, curriculum: Curriculum) -> None:
        self._curriculum = curriculum
        self.held: deque[Phase] = deque(maxlen=KEPT_PHASES)
        self.newest: Phase | None = None
        self.frontier = 0
        self.drawn: IntArray = np.zeros(len(curriculum.names), dtype=np.int64)
        self.owed: Array = np.zeros(len(curriculum.names))

    @property
    def next_index(self) -> int:
        """The number of the phase that follows."""
        return self.newest.index + 1 if self.newest else 0

    @property
    def weights(self) -> Array:
        """Where the walk stands: the newest weights, [K]; before there are any, all alike."""
        num_sources = len(self._curriculum.names)
        return self.newest.weights if self.newest else np.full(num_sources, 1.0 / num_sources)

    def following(self, *, length: int, kind: Kind, regime: str, weights: Array) -> Phase:
        """Return a phase that begins at the frontier; ``keep`` takes it."""
        run = self._curriculum
        return Phase(
            index=self.next_index,
            start=self.frontier,
            length=length,
            kind=kind,
            regime=regime,
            names=run.names,
            weights=weights,
            drawn=self.drawn,
            owed=self.owed if self.newest else initial_owed(run.seed, weights, run.batch_rows),
        )

    def at(self, step: int) -> Phase:
        """Return the phase that covers ``step``, which is before the frontier; StepError if it is held no longer."""
        if step < self.held[0].start:
            raise StepError(
                f"step {step} lies in a phase that is no longer held; the oldest held begins at step "
                f"{self.held[0].start}: read the journal for older ones"
            )
        return next(phase for phase in reversed(self.held) if phase.start <= step)

    def keep(self, phase: Phase) -> None:
        """Take a phase as the newest: the draws go on from its end."""
        counts, owed = self.counts(phase)
        self.held.append(phase)
        self.newest, self.frontier = phase, phase.end
        self.drawn, self.owed = phase.drawn + counts.sum(axis=0), owed

    def cut(self, step: int) -> None:
        """End the newest phase at ``step``; without a step left it was never decided."""
        newest = self.held.pop()
        if step > newest.start:
            self.keep(replace(newest, length=step - newest.start))
            return
        self.newest, self.frontier = self.held[-1] if self.held else None, newest.start
        self.drawn, self.owed = newest.drawn, newest.owed

    def counts(self, phase: Phase) -> tuple[IntArray, Array]:
        """Return the rows of each source in each batch of a phase, [length, K], and what is owed after it, [K]."""
        run = self._curriculum
        return phase_counts(phase, seed=run.seed, method=run.draws, batch_rows=run.batch_rows)

    def check_reported(self, step: int) -> Phase:
        """Return the newest phase; raise StepError or FutureFeedbackError if ``step`` was not handed out."""
        if step < 0:
            raise StepError(f"feedback for step {step}; steps count from 0")
        if self.newest is None or step >= self.frontier:
            raise FutureFeedbackError(
                f"feedback for step {step}, but phases are decided up to step {self.frontier - 1} only; "
                "ask for the phase (or batch) of a step before reporting its losses"
            )
        return self.newest

    def check_drawn(self, step: int, losses: SourceLosses) -> None:
        """Raise FeedbackError for rows of a source that the phase of ``step`` does not draw, if that is held."""
        if step < self.held[0].start:
            return
        weights = self.at(step).weights
        if losses.rows[weights == 0].any():
            i = int(np.flatnonzero((losses.rows > 0) & (weights == 0))[0])
            raise FeedbackError(
                f"step {step} reports {losses.rows[i]} rows of {self._curriculum.names[i]}, whose weight is 0 in that "
                "phase; check the order of the sources in the report"
            )

    def drawn_at(self, step: int) -> IntArray | None:
        """Return the rows of each source in the batch of ``step``, [K]; None if its phase is held no longer."""
        if step < self.held[0].start:
            return None
        phase = self.at(step)
        return np.asarray(self.counts(phase)[0][step - phase.start])

    def state(self, *, num_newest: int, from_step: int | None) -> list[dict[str, Any]]:
        """Return the newest phases, and those that end after ``from_step`` if it is given, as states have them."""
        newest = list(self.held)[-num_newest:]
        kept = [p for p in self.held if p in newest or (from_step is not None and p.end > from_step)]
        return [phase_to_record(phase) for phase in kept]

    @classmethod
    def of(cls, curriculum: Curriculum, state: Iterable[Mapping[str, Any]]) -> DecidedPhases:
        """Return the phases that ``state`` gave."""
        phases = cls(curriculum)
        for record in state:
            phases.keep(record_to_phase(record, curriculum.names))
        return phases
