"""The walk: (curriculum, seed, feedback) -> phases. Tiny, pure of clocks and files, exact on resume.

``phase_at(step)`` decides phases one after the other up to the one that covers ``step``. A phase that starts at step s
is decided from feedback of steps below ``s - lag`` that has arrived, and nothing waits. Each decision is worked out
first, journalled second and kept third, so a full disk leaves the walk where it was.
"""

from __future__ import annotations

import functools
import importlib.metadata
import operator
import platform
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from mixer.config import Curriculum, Pivot, ScheduledPivot
from mixer.draws import initial_owed, phase_counts
from mixer.errors import (
    ConfigError,
    FeedbackError,
    FutureFeedbackError,
    PivotError,
    StateMismatchError,
    StepError,
    UnknownSourceError,
)
from mixer.inbox import Arrived, Inbox, losses_to_record
from mixer.journal import JOURNAL_VERSION, Journal, Position
from mixer.packed import pack, unpack
from mixer.phases import Kind, Phase
from mixer.policies import Choice, make_policy
from mixer.randomness import generator
from mixer.regimes import Bounds, Regime, plan_regimes
from mixer.rewards import SourceLosses, State, check_losses
from mixer.types import Array, IntArray

STATE_VERSION = 2
KEPT_PHASES = 256  # phases that stay readable after they are over, about 6,000 steps


Method = TypeVar("Method", bound=Callable[..., Any])


def _one_at_a_time(method: Method) -> Method:
    """Let one thread in at a time: DataLoader workers and requests are answered in threads."""

    @functools.wraps(method)
    def locked(self: Walk, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return method(self, *args, **kwargs)

    return cast(Method, locked)


@dataclass(frozen=True, eq=False)
class _Decision:
    """All that a decision changes, worked out before any of it is kept."""

    phase: Phase
    policy_state: State
    used: list[Arrived]
    record: dict[str, Any]


class Walk:
    """The sequence of phases of one run; one authority per run.

    Args:
        curriculum: the run.
        journal: where every decision, report and pivot is recorded; None keeps no record.

    Raises:
        StateMismatchError: the journal belongs to another curriculum.
    """

    def __init__(self, curriculum: Curriculum, *, journal: Journal | None = None) -> None:
        self.curriculum = curriculum
        self.names = curriculum.names
        self._lock = threading.RLock()
        self._policy = make_policy(curriculum)
        self._live_pivots: list[ScheduledPivot] = []
        self._regimes = curriculum.regimes
        self._phases: deque[Phase] = deque(maxlen=KEPT_PHASES)
        self._policy_state = self._policy.initial(len(self.names))
        self._inbox = Inbox(len(self.names), is_by_step=self._policy.is_by_step)
        self._unique_tokens = np.array([source.tokens or 0 for source in curriculum.sources], dtype=np.float64)
        self._drawn = np.zeros(len(self.names), dtype=np.int64)
        self._owed = np.zeros(len(self.names))
        self._journal = journal
        self._resume_at: Position | None = None  # where in the journal the next line belongs, if not at its end
        if journal is not None:
            self._open_journal(journal)

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """The regimes planned now, live pivots included, in order of their first step."""
        return self._regimes

    @property
    def frontier(self) -> int:
        """The first step that no phase covers yet."""
        return self._phases[-1].end if self._phases else 0

    def regime_at(self, step: int) -> Regime:
        """Return the regime that ``step`` lies in."""
        return next(regime for regime in reversed(self._regimes) if regime.start <= step)

    @_one_at_a_time
    def phase_at(self, step: int) -> Phase:
        """Return the phase that covers ``step``, deciding it (and those before it) if need be.

        Raises:
            StepError: a negative step, or one whose phase is over for so long that only the journal has it.
        """
        if step < 0:
            raise StepError(f"step is {step}; steps count from 0")
        while step >= self.frontier:
            self._decide()
        if step < self._phases[0].start:
            raise StepError(
                f"step {step} lies in a phase that is no longer held; the oldest held begins at step "
                f"{self._phases[0].start}: read the journal for older ones"
            )
        return next(phase for phase in reversed(self._phases) if phase.start <= step)

    @_one_at_a_time
    def report(self, step: int, losses: SourceLosses) -> bool:
        """Take in what one rank saw in one step; return False, and change nothing, if it is known already.

        Raises:
            InvalidLossError: a loss that is NaN, infinite or negative.
            FutureFeedbackError: a step that has not been handed out.
            FeedbackError: shapes or counts that cannot be, or a source that its phase does not draw.
        """
        step = operator.index(step)  # plain data, also if numpy gave it
        check_losses(losses, self.names, step=step)
        if step < 0:
            raise StepError(f"feedback for step {step}; steps count from 0")
        if step >= self.frontier:
            raise FutureFeedbackError(
                f"feedback for step {step}, but phases are decided up to step {self.frontier - 1} only; "
                "ask for the phase (or batch) of a step before reporting its losses"
            )
        if self._inbox.has(step, losses.rank):
            return False
        if self._phases[0].start <= step:
            weights = self.phase_at(step).weights
            for i in np.flatnonzero((losses.rows > 0) & (weights == 0))[:1]:
                raise FeedbackError(
                    f"step {step} reports {losses.rows[i]} rows of {self.names[i]}, whose weight is 0 in that phase; "
                    "check the order of the sources in the report"
                )
        losses = losses.on_grid()
        self._write({"type": "feedback", "step": step, **losses_to_record(losses)})
        settled, min_steps = self.frontier - self.curriculum.feedback_lag, self.curriculum.phases.min_steps
        self._inbox.add(step, losses, together=(range(settled), range(settled, settled + min_steps)))
        return True

    @_one_at_a_time
    def pivot(self, pivot: Pivot, at_step: int | None = None) -> int:
        """Redraw the region from ``at_step`` (default: the end of the newest phase) and return that step.

        Raises:
            PivotError: the step is decided already, no whole phases reach it, or the name is taken.
            InfeasibleRegionError, UnknownSourceError: the new bounds cannot be; nothing changes.
        """
        step = self.frontier if at_step is None else at_step
        if pivot.name in {regime.name for regime in self._regimes}:
            raise PivotError(f"there is a regime named {pivot.name} already; give the pivot another name")
        if step < self.frontier:
            raise PivotError(
                f"pivot {pivot.name} at step {step}: phases are decided up to step {self.frontier - 1}; "
                f"ask for step {self.frontier} or later"
            )
        new = ScheduledPivot(at_step=max(step, 1), **pivot.model_dump(exclude={"at_step"}))
        if step == 0:
            raise PivotError(f"pivot {pivot.name} at step 0: write its bounds into the curriculum instead")
        regimes = self._planned([*self._live_pivots, new])
        boundaries = [(r.start, f"the start of {r.name}") for r in regimes if r.start > self.frontier]
        origin = f"the end of the newest phase at step {self.frontier}"
        problems = self.curriculum.phase_law.boundary_problems(boundaries, since=self.frontier, origin=origin)
        if problems:
            raise PivotError(f"pivot {pivot.name}: {problems[0]}")
        for regime in regimes:  # a policy may have bounds of its own
            inside = regime.region.project(regime.region.lower)
            self._policy.choose(self._policy_state, regime.region, inside, self._unique_tokens)
        self._write({"type": "pivot", "decided_before": self.frontier, **new.model_dump(mode="json")})
        self._live_pivots.append(new)
        self._regimes = regimes
        return step

    @_one_at_a_time
    def learn_unique_tokens(self, name: str, tokens: int) -> None:
        """Take in how many distinct tokens a source has, known once it was read through; a repetition discounts it."""
        if name not in self.names:
            raise UnknownSourceError(f"unknown source {name!r}; the sources are {', '.join(self.names)}")
        if tokens <= 0:
            raise ConfigError(f"{name} has {tokens} distinct tokens; a source has at least one")
        i = self.names.index(name)
        if self._unique_tokens[i] == 0:  # what the curriculum says stands
            self._write({"type": "unique_tokens", "source": name, "tokens": tokens, "decided_before": self.frontier})
            self._unique_tokens[i] = tokens

    @_one_at_a_time
    def state_dict(self, from_step: int | None = None) -> dict[str, Any]:
        """Return all that shapes the rest of the walk, as plain data.

        Args:
            from_step: keep the phases that end after this step too; default: the newest alone.
        """
        kept = [p for p in self._phases if from_step is None or p.end > from_step] if from_step is not None else []
        kept = kept or list(self._phases)[-1:]
        position = self._resume_at or (self._journal.position if self._journal is not None else None)
        return {
            "version": STATE_VERSION,
            "fingerprint": self.curriculum.fingerprint,
            "phases": [_phase_to_state(phase, is_first=phase is kept[0]) for phase in kept],
            "policy": {name: pack(values) for name, values in self._policy_state.items()},
            "inbox": self._inbox.state_dict(),
            "unique_tokens": pack(self._unique_tokens),
            "live_pivots": [pivot.model_dump(mode="json") for pivot in self._live_pivots],
            "journal": None if position is None else list(position),
        }

    @_one_at_a_time
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; a journal that is open goes on from the line it had then.

        Raises:
            StateMismatchError: a state of another version or curriculum, naming both.
        """
        check_state(state, version=STATE_VERSION, fingerprint=self.curriculum.fingerprint, what="walk state")
        position = state["journal"] and Position(*state["journal"])
        if self._journal is not None:
            if position is None:
                raise StateMismatchError(
                    "the saved state was taken without a journal, so this journal cannot follow it"
                )
            self._journal.resume_from(position)
            self._resume_at = None
        self._live_pivots = [ScheduledPivot(**record) for record in state["live_pivots"]]
        self._regimes = self._planned(self._live_pivots)
        self._policy_state = {name: unpack(values) for name, values in state["policy"].items()}
        self._inbox.load_state_dict(state["inbox"])
        self._unique_tokens = unpack(state["unique_tokens"])
        self._phases.clear()
        self._drawn, self._owed = np.zeros(len(self.names), dtype=np.int64), np.zeros(len(self.names))
        for record in state["phases"]:
            self._keep(self._phase_from(record))

    def close_journal(self) -> None:
        """Let go of the journal, in a copy of the process that does not decide."""
        if self._journal is not None:
            self._journal.close()

    def _all_pivots(self, live_pivots: list[ScheduledPivot]) -> list[ScheduledPivot]:
        return sorted([*self.curriculum.pivots, *live_pivots], key=lambda pivot: pivot.at_step)

    def _planned(self, live_pivots: list[ScheduledPivot]) -> tuple[Regime, ...]:
        pivots = self._all_pivots(live_pivots)
        changes: list[tuple[int, str, Callable[[Bounds], Bounds]]] = [(p.at_step, p.name, p.apply) for p in pivots]
        return plan_regimes(self.curriculum.bounds, warmup=self.curriculum.warmup, changes=changes)

    def _decide(self) -> None:
        """Decide the next phase: work it out, journal it, keep it."""
        decision = self._next_decision()
        self._write(decision.record)
        self._inbox.drop(decision.used)
        self._policy_state = decision.policy_state
        self._keep(decision.phase)

    def _next_decision(self) -> _Decision:
        newest = self._phases[-1] if self._phases else None
        start, index = self.frontier, newest.index + 1 if newest else 0
        regime, law = self.regime_at(start), self.curriculum.phase_law
        seed, batch_rows = self.curriculum.seed, self.curriculum.batch_rows
        is_new_regime = newest is None or regime.start == start
        before = newest.weights if newest else np.full(len(self.names), 1.0 / len(self.names))
        landed = regime.region.project(before) if is_new_regime else before

        used = self._inbox.ready(start - self.curriculum.feedback_lag)
        steps = [arrived.losses for arrived in used]
        learned = self._policy.absorb(self._policy_state, steps, since=newest.start if newest else 0, until=start)
        if any(pivot.at_step == start for pivot in self._all_pivots(self._live_pivots)):
            learned = self._policy.after_pivot(learned)

        kind, choice = self._choose(index, regime, landed, learned)
        boundary = next((r.start for r in self._regimes if r.start > start), None)
        phase = Phase(
            index=index,
            start=start,
            length=law.length(index, None if boundary is None else boundary - start),
            kind=kind,
            regime=regime.name,
            names=self.names,
            weights=choice.weights,
            drawn=self._drawn,
            owed=self._owed if newest else initial_owed(seed, choice.weights, batch_rows),
        )
        counts, _ = self._counts(phase)
        record = {
            "type": "phase",
            **_phase_to_record(phase),
            "boundary": boundary,
            "probability_random": law.probability_random(index),
            "before": before,
            "landed": landed if is_new_regime else None,
            "distance": float(np.linalg.norm(landed - before)) if is_new_regime else None,
            "vertex": choice.vertex,
            "parts": choice.parts,  # an index of +inf, too few observations, is written as null: JSON has no infinity
            "region": _region_record(regime) if is_new_regime else None,
            "log_volume": regime.region.log_volume(),
            "counts": counts.sum(axis=0),
            "feedback": _feedback_summary(used, start),
        }
        return _Decision(phase, learned, used, record)

    def _choose(self, index: int, regime: Regime, landed: Array, learned: State) -> tuple[Kind, Choice]:
        teleports = self._policy.teleports
        if teleports == "always" or (teleports == "by chance" and self.curriculum.phase_law.is_random(index)):
            point = regime.region.sample(generator(self.curriculum.seed, "phase.point", index))
            return "random", Choice(point)
        return self._policy.kind, self._policy.choose(learned, regime.region, landed, self._unique_tokens)

    def _phase_from(self, record: Mapping[str, Any]) -> Phase:
        """Return a saved phase; what was drawn before it follows from the one before, if that is there."""
        first = {name: unpack(record[name]) for name in ("drawn", "owed") if name in record}
        return Phase(
            **{**record, "drawn": self._drawn, "owed": self._owed, **first, "weights": unpack(record["weights"])},
            names=self.names,
        )

    def _keep(self, phase: Phase) -> None:
        """Take a phase as the newest: the draws go on from its end."""
        counts, owed = self._counts(phase)
        self._phases.append(phase)
        self._drawn, self._owed = phase.drawn + counts.sum(axis=0), owed

    def _counts(self, phase: Phase) -> tuple[IntArray, Array]:
        curriculum = self.curriculum
        return phase_counts(phase, seed=curriculum.seed, method=curriculum.draws, batch_rows=curriculum.batch_rows)

    def _open_journal(self, journal: Journal) -> None:
        if journal.position.line == 0:
            journal.append(_header(self.curriculum))
            return
        first = next(iter(journal.records()))
        found = first.get("fingerprint")
        if first.get("version") != JOURNAL_VERSION or found != self.curriculum.fingerprint:
            raise StateMismatchError(
                f"{journal.path}: journal version {first.get('version')} of curriculum {found}, but this is version "
                f"{JOURNAL_VERSION} of curriculum {self.curriculum.fingerprint}; use a new file, or the old curriculum"
            )
        self._resume_at = journal.position_of(1)  # until a state is loaded, the walk stands at its beginning

    def _write(self, record: dict[str, Any]) -> None:
        if self._journal is None:
            return
        if self._resume_at is not None:
            self._journal.resume_from(self._resume_at)
            self._resume_at = None
        self._journal.append(record)


def check_state(state: Mapping[str, Any], *, version: int, fingerprint: str, what: str) -> None:
    """Raise StateMismatchError, naming both sides, unless ``state`` is of this version and curriculum."""
    if state.get("version") != version:
        raise StateMismatchError(
            f"{what} has version {state.get('version')!r}, this curriculum-mixer reads version {version}; "
            "restore it with the release that saved it"
        )
    if state.get("fingerprint") != fingerprint:
        raise StateMismatchError(
            f"{what} belongs to curriculum {state.get('fingerprint')}, but this one is {fingerprint}; "
            "restore it with the config file that it was saved under (total_steps alone may differ)"
        )


def _header(curriculum: Curriculum) -> dict[str, Any]:
    packages = ("curriculum-mixer", "numpy", "pydantic", "datasets", "tokenizers")
    return {
        "type": "header",
        "version": JOURNAL_VERSION,
        "fingerprint": curriculum.fingerprint,
        "curriculum": curriculum.model_dump(mode="json"),
        "libraries": {name: _version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _phase_to_record(phase: Phase) -> dict[str, Any]:
    return {
        "index": phase.index,
        "start": phase.start,
        "length": phase.length,
        "kind": phase.kind,
        "regime": phase.regime,
        "weights": phase.weights.tolist(),
        "drawn": phase.drawn.tolist(),
        "owed": phase.owed.tolist(),
    }


def _phase_to_state(phase: Phase, *, is_first: bool) -> dict[str, Any]:
    record = _phase_to_record(phase)
    arrays = ("weights", "drawn", "owed") if is_first else ("weights",)
    return {
        **{key: record[key] for key in ("index", "start", "length", "kind", "regime")},
        **{name: pack(getattr(phase, name)) for name in arrays},
    }


def _region_record(regime: Regime) -> dict[str, Any]:
    region = regime.region
    return {
        "regime": regime.name,
        "floors": region.floors,
        "caps": region.caps,
        "lower": region.lower,
        "upper": region.upper,
    }


def _feedback_summary(used: list[Arrived], start: int) -> dict[str, Any] | None:
    """What a decision learned from, summed over steps and ranks; ``delay`` is how old its newest step was."""
    if not used:
        return None
    total = functools.reduce(Arrived.joined, used)
    summary = losses_to_record(total.losses)
    del summary["rank"]
    return {
        "reports": total.reports,
        "first_step": total.first_step,
        "last_step": total.last_step,
        "delay": start - total.last_step,
        **summary,
    }
