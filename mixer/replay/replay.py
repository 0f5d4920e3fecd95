"""A recorded run in the place of a walk: the same phases again, from the journal alone, whatever is reported.

``MixtureDataset(curriculum, walk=Replay(path))`` delivers the batches of the original run; a service answers for steps
long past with it. Nothing is decided: `audit` recomputes decisions, this repeats them. Phases are held in memory, about
1 kB each at 16 sources; reports are read, checked against the chain, and dropped.
"""

from __future__ import annotations

import bisect
import operator
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot, ScheduledPivot
from mixer.errors import JournalError, PivotError, StateMismatchError, StepError, UnknownSourceError
from mixer.journal.file import scan_history
from mixer.journal.header import curricula_of, read_header
from mixer.journal.phases import PhaseLines
from mixer.journal.records import record_to_phase
from mixer.journal.scan import Line
from mixer.journal.schema import check_record
from mixer.losses import SourceLosses, check_losses
from mixer.region.regimes import Regime, regime_at
from mixer.sampling.phases import Phase
from mixer.walk.limits import Limits
from mixer.walk.probes import ProbeInbox, offers_probe
from mixer.walk.schedule import planned_regimes
from mixer.walk.state import STATE_VERSION as WALK_STATE_VERSION

STATE_VERSION = "replay 1"


class Replay:
    """The phases of a journal, as the run stands at its end: superseded lines left out, pivots and forks followed.

    Args:
        path: the journal. Every line is checked; what is appended later is not seen.

    Attributes:
        curriculum: that of the run; a fork's own.
        phases: in order, each step up to ``frontier`` covered once.
        forked_at: the first step that a fork decided on its own; None if it is no fork.

    Raises:
        JournalError: no journal, damage, or lines that no walk writes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        header = read_header(self.path)
        self._curricula = curricula_of(self.path, header)
        self.curriculum: Curriculum = self._curricula[-1]
        self.names = self.curriculum.names
        self.phases: list[Phase] = []
        self._lines = PhaseLines(header["curriculum"], keep=1)
        self.forked_at: int | None = None
        self._pivots: list[ScheduledPivot] = []
        self._past: list[Regime] = []  # of the shared part of a fork
        self._generation = 0
        for line in scan_history(self.path):
            if line.kind in ("phase", "pivot", "fork"):
                self._follow(line)
        if self._generation + 1 != len(self._curricula):
            raise JournalError(f"{self.path}: the fork was not written to its end; make it again with `mixer fork`")
        own = planned_regimes(self.curriculum, self._pivots)
        self._regimes = tuple(self._joined(own))
        self._starts = [phase.start for phase in self.phases]

    def _follow(self, line: Line) -> None:
        record = check_record(line, line.record(), num_sources=len(self.names))
        if line.kind == "phase":
            phase = record_to_phase(record, self.names)
            if phase.start != self.frontier or phase.index != (self.phases[-1].index + 1 if self.phases else 0):
                raise JournalError(
                    f"{self.path}: line {line.number} is phase {phase.index} from step {phase.start}, but the lines "
                    f"before it cover {len(self.phases)} phases up to step {self.frontier}; no walk writes that"
                )
            self.phases.append(phase)
            self._lines.add(record)
        elif line.kind == "pivot":
            self._pivots.append(ScheduledPivot.of(record))
            self._cut(line, record)
        else:
            old = self._curricula[self._generation]
            self._past = self._joined(planned_regimes(old, self._pivots))
            self._pivots, self.forked_at = [], record["step"]
            self._generation += 1

    def _cut(self, line: Line, pivot: dict[str, Any]) -> None:
        step = pivot["at_step"]
        if self.phases and step < self.phases[-1].start:
            raise JournalError(f"{self.path}: line {line.number} cuts at step {step}, before the newest phase")
        cut = self._lines.cut(pivot)
        if cut is not None:
            newest = self.phases.pop()
            if cut.left is not None:
                self.phases.append(replace(newest, length=cut.left["length"]))

    def _joined(self, regimes: tuple[Regime, ...]) -> list[Regime]:
        """Return the regimes of the past up to the fork, then these from there on."""
        if self.forked_at is None:
            return list(regimes)
        here = regime_at(regimes, self.forked_at)
        later = [regime for regime in regimes if regime.start > self.forked_at]
        return [*(r for r in self._past if r.start < self.forked_at), replace(here, start=self.forked_at), *later]

    @property
    def can_pivot(self) -> bool:
        """Whether the region can be redrawn: no, the past stays as it was."""
        return False

    @property
    def forked_from(self) -> str | None:
        """Fingerprint of the curriculum that decided the steps before ``forked_at``."""
        return self._curricula[-2].fingerprint if self.forked_at is not None else None

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """The regimes as they were planned at the end, in order of their first step."""
        return self._regimes

    @property
    def frontier(self) -> int:
        """The first step that the record does not cover."""
        return self.phases[-1].end if self.phases else 0

    def regime_at(self, step: int) -> Regime:
        """Return the regime that ``step`` lies in."""
        return regime_at(self._regimes, step)

    def phase_at(self, step: int) -> Phase:
        """Return the phase that covered ``step``; raises StepError where the record has none."""
        step = operator.index(step)
        if step < 0:
            raise StepError(f"step is {step}; steps count from 0")
        if step >= self.frontier:
            covered = f"covers steps 0 to {self.frontier - 1}" if self.phases else "has no phase yet"
            raise StepError(
                f"step {step} lies past the end of the record: {self.path} {covered}; "
                "end there, or go on with a Walk on the journal"
            )
        return self.phases[bisect.bisect_right(self._starts, step) - 1]

    def report(self, step: int, losses: SourceLosses) -> bool:
        """Check what a trainer says; the record stays as it is, so the answer is False: nothing was learned.

        Raises:
            FeedbackError, InvalidLossError, StepError: a report that no walk would take.
        """
        check_losses(losses, self.names, step=step)
        Limits.of(self.curriculum).check(losses, self.names, step=step)
        self.phase_at(step)
        return False

    def learn_unique_tokens(self, name: str, tokens: int) -> None:
        """Check the name; the record knows already when sizes became known."""
        if name not in self.names:
            raise UnknownSourceError(f"unknown source {name!r}; the sources are {', '.join(self.names)}")

    def note_skipped(self, name: str, record: str) -> None:
        """Do nothing: the record says already which records were left out."""

    def probe_step(self, until: int) -> int | None:
        """Return the newest step up to ``until`` that offered a probe; None if none did."""
        first = bisect.bisect_right(self._starts, until)
        offering = (
            phase for phase in reversed(self.phases[:first]) if offers_probe(self.curriculum, phase, phase.start)
        )
        return next((phase.start for phase in offering), None)

    def has_probe(self, step: int, rank: int) -> bool:
        """Return False: a replay keeps no answers, so that each probe may be answered again."""
        return False

    def report_probe(self, step: int, losses: SourceLosses) -> bool:
        """Check the held-out losses of a trainer; the record stays as it is, so the answer is False.

        Raises:
            FeedbackError, InvalidLossError, StepError: an answer that no walk would take.
        """
        check_losses(losses, self.curriculum.probed_names, step=step)
        probes = ProbeInbox(self.curriculum)
        probes.offer(self.phase_at(step))
        probes.has(step, losses.rank)
        probes.check(step, losses)
        return False

    def pivot(self, pivot: Pivot, at_step: int | None = None, *, cut: bool = False) -> NoReturn:
        """Refuse: the past cannot be redrawn."""
        raise PivotError(
            f"pivot {pivot.name}: a replay repeats what {self.path} holds; to go on otherwise, fork it: "
            f"`mixer fork {self.path} --at-step STEP --config NEW.yaml --out NEW.jsonl`"
        )

    def is_of_parent(self, state: Mapping[str, Any]) -> bool:
        """Return False: a replay of a fork covers its parent's steps, too, and needs none of the parent's states."""
        return False

    def close_journal(self) -> None:
        """Do nothing: the journal was read to its end and closed."""

    def state_dict(self, from_step: int | None = None) -> dict[str, Any]:
        """Return what tells this record from another; where the run stands is known to who delivers."""
        return {"version": STATE_VERSION, "fingerprint": self.curriculum.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a replay's state, or one that the original run saved: both mean the same record.

        Raises:
            StateMismatchError: a state of another version or curriculum, naming both.
        """
        if state.get("version") not in (STATE_VERSION, WALK_STATE_VERSION):
            raise StateMismatchError(
                f"replay state has version {state.get('version')!r}, this curriculum-mixer reads {STATE_VERSION!r} and "
                f"walk states of version {WALK_STATE_VERSION}; restore it with the release that saved it"
            )
        if state.get("fingerprint") != self.curriculum.fingerprint:
            raise StateMismatchError(
                f"the saved state belongs to curriculum {state.get('fingerprint')}, but {self.path} is of "
                f"{self.curriculum.fingerprint}; replay the journal that was saved with it"
            )
