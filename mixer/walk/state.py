"""Everything about a walk that changes, and its saved form: plain JSON data with names.

A saved state is of one version and one curriculum; any other is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import ScheduledPivot
from mixer.errors import StateMismatchError
from mixer.region.epochs import EpochCaps
from mixer.sampling.phases import Phase
from mixer.types import Array, State
from mixer.walk.decided import DecidedPhases
from mixer.walk.guard import GuardOutcome
from mixer.walk.inbox import Inbox
from mixer.walk.probes import ProbeInbox
from mixer.walk.reports import ReportSum
from mixer.walk.schedule import Schedule

STATE_VERSION = 1


@dataclass(frozen=True, eq=False)
class Learned:
    """What the walk knows after a decision.

    Attributes:
        policy: what the policies have learned, as ``Deciders`` joins it.
        guard: what the guard has learned; empty without a guard.
        home: during an excursion, the weights that the walk goes on from, [K]; else None.
    """

    policy: State
    guard: State
    home: Array | None = None

    def home_record(self) -> dict[str, Any]:
        """Return the saved form of ``home``: nothing outside an excursion."""
        return {} if self.home is None else {"home": self.home.tolist()}

    @classmethod
    def of(cls, record: Mapping[str, Any], *, has_guard: bool) -> Self:
        """Return what a saved state, or its ``before``, was made from."""
        home = np.array(record["home"], dtype=np.float64) if "home" in record else None
        return cls(to_arrays(record["policy"]), to_arrays(record["guard"]) if has_guard else {}, home)


@dataclass(frozen=True, eq=False)
class Decision:
    """All that a decision changes, worked out before any of it is kept.

    Attributes:
        phase: what is decided.
        learned: what the policies and the guard know after it, and where the walk goes on from.
        used: the reports that they learned from.
        probes: the held-out losses that they learned from.
        seen: what the guard found; its ``lines`` are the journal's.
        limited: the caps by epochs, if there are any.
    """

    phase: Phase
    learned: Learned
    used: list[ReportSum]
    probes: list[ReportSum]
    seen: GuardOutcome
    limited: EpochCaps | None


@dataclass(frozen=True, eq=False)
class Before:
    """What the newest decision started from, so that a pivot can undo it.

    Attributes:
        learned: what was known until then.
        used: the reports that the decision learned from.
        probes: the held-out losses that it learned from.
    """

    learned: Learned
    used: list[ReportSum]
    probes: list[ReportSum]

    def to_record(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "policy": to_lists(self.learned.policy),
            "guard": to_lists(self.learned.guard),
            "used": [reports.to_record() for reports in self.used],
            **({"probes": [probe.to_record() for probe in self.probes]} if self.probes else {}),
            **self.learned.home_record(),
        }

    @classmethod
    def of(cls, record: Mapping[str, Any], num_sources: int, num_probed: int) -> Self:
        """Return what ``to_record`` was called on, of K sources and K + M that are probed."""
        used = [ReportSum.of(report, num_sources) for report in record["used"]]
        probes = [ReportSum.of(probe, num_probed) for probe in record.get("probes", ())]
        return cls(Learned.of(record, has_guard=True), used, probes)


@dataclass(eq=False)
class WalkState:
    """Everything about a walk that changes.

    Attributes:
        curriculum: the run.
        plan: its regimes and who decides in them, live pivots included.
        phases: those decided.
        learned: after the newest decision.
        before: what the newest decision started from; None once that was undone, or cannot be.
        inbox: reports that no decision has used.
        probes: held-out losses that no decision has used.
        unique_tokens: distinct tokens of each source, 0 where that is not known, [K].
        skipped: records that were left out, (source, which and why), in order.
        forked_at: the first step that a fork decides on its own; None if the walk is no fork.
    """

    curriculum: Curriculum
    learned: Learned
    inbox: Inbox
    plan: Schedule = field(init=False)
    phases: DecidedPhases = field(init=False)
    probes: ProbeInbox = field(init=False)
    unique_tokens: Array = field(init=False)
    before: Before | None = None
    skipped: dict[tuple[str, str], None] = field(default_factory=dict)
    forked_at: int | None = None

    def __post_init__(self) -> None:
        run = self.curriculum
        self.plan, self.phases, self.probes = Schedule.of(run), DecidedPhases(run), ProbeInbox(run)
        self.unique_tokens = np.array([source.tokens or 0 for source in run.sources], dtype=np.float64)

    def keep(self, decision: Decision) -> None:
        """Take a decision as the newest."""
        self.inbox.drop(decision.used)
        self.probes.drop(decision.probes)
        self.before = Before(self.learned, decision.used, decision.probes)
        self.learned, self.plan = decision.learned, decision.seen.plan
        self.phases.keep(decision.phase)
        self.probes.offer(decision.phase)

    def cut(self, step: int) -> None:
        """End the newest phase at ``step``; without a step left its decision is undone."""
        newest = self.phases.newest
        assert newest is not None, "checked before"
        self.phases.cut(step)
        if step == newest.start:
            assert self.before is not None, "checked before"
            self.learned = self.before.learned
            self.inbox.put_back(self.before.used)
            self.probes.put_back(self.before.probes)
            self.before = None

    def to_record(self, *, has_guard: bool, from_step: int | None, can_undo: bool | None) -> dict[str, Any]:
        """Return plain data; see ``Walk.state_dict``, which adds where the journal is."""
        can_undo = from_step is None if can_undo is None else can_undo
        before = self.before if can_undo else None
        return {
            "version": STATE_VERSION,
            "fingerprint": self.curriculum.fingerprint,
            "phases": self.phases.state(num_newest=2 if can_undo else 1, from_step=from_step),
            "policy": to_lists(self.learned.policy),
            "guard": to_lists(self.learned.guard) if has_guard else None,
            "inbox": self.inbox.state_dict(),
            "before": before and before.to_record(),
            **({"probes": self.probes.state_dict()} if self.curriculum.probes else {}),
            **self.learned.home_record(),
            "unique_tokens": self.unique_tokens.tolist(),
            "skipped": [[*skipped] for skipped in self.skipped],
            "live_pivots": [pivot.model_dump(mode="json") for pivot in self.plan.live_pivots],
            "forked_at": self.forked_at,
        }

    def restore(self, record: Mapping[str, Any], *, has_guard: bool) -> None:
        """Become the state that ``to_record`` was called on; ``check_state`` has accepted it."""
        run = self.curriculum
        self.forked_at = record["forked_at"]
        self.plan = Schedule.of(run, [ScheduledPivot(**pivot) for pivot in record["live_pivots"]])
        self.learned = Learned.of(record, has_guard=has_guard)
        self.inbox.load_state_dict(record["inbox"])
        before = record["before"]
        self.before = before and Before.of(before, len(run.names), len(run.probed_names))
        self.probes.load_state_dict(record.get("probes") if run.probes else None)
        self.unique_tokens = np.array(record["unique_tokens"], dtype=np.float64)
        self.skipped = dict.fromkeys((name, which) for name, which in record["skipped"])
        self.phases = DecidedPhases.of(run, record["phases"])


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


def to_lists(arrays: State) -> dict[str, Any]:
    """Return named arrays as plain data."""
    return {name: values.tolist() for name, values in arrays.items()}


def to_arrays(lists: Mapping[str, Any]) -> State:
    """Return what ``to_lists`` was given."""
    return {name: np.array(values, dtype=np.float64) for name, values in lists.items()}
