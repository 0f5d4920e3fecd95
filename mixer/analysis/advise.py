"""What another policy would have chosen next, at each state that a walk was in: decisions alone, never outcomes.

The other policy learns from exactly the reports that each decision of the walk had used, and steps from where the walk
stood. What would have come of its choice is not in a log: the losses after it are of the mixture that was really
played. Only a run, or a fork, can say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.errors import ConfigError, StepError
from mixer.journal.lookup import history
from mixer.journal.records import record_to_losses
from mixer.policies import Policy, make_policy
from mixer.region.region import Region
from mixer.sampling.randomness import generator
from mixer.types import Array, State
from mixer.walk.inbox import Inbox
from mixer.walk.reports import ReportSum

CAVEAT = (
    "Decisions only: at each phase, what the policy would have chosen next from the walk's own state and reports. "
    "What would have come of it cannot be read off a log; only a run or a fork can tell."
)


@dataclass(frozen=True, eq=False)
class Advice:
    """One decision of the other policy beside the walk's.

    Attributes:
        index, start, kind: of the walk's phase.
        played: the walk's weights, [K].
        advised: the other policy's, [K].
        advised_kind: "random" if the other policy teleports too in this phase.
        vertex: the corner that it would step to, if it is a bandit with one.
    """

    index: int
    start: int
    kind: str
    played: Array
    advised: Array
    advised_kind: str
    vertex: Array | None

    @property
    def distance(self) -> float:
        """Half the summed absolute difference: the share of rows that would come from elsewhere."""
        return float(np.abs(self.played - self.advised).sum() / 2)


def advise(path: str | Path, policy: str, *, first: int = 0, last: int | None = None) -> Iterator[Advice]:
    """Yield the advice for each phase that touches steps ``first`` to ``last``, both included.

    A bandit's advice for a random phase is what it would have done had the coin fallen otherwise. The walk's own
    policy keeps its settings, so that its advice equals its decisions; any other has its defaults.

    Raises:
        ConfigError: the policy cannot work on this curriculum.
        StepError: the walk has no phase in these steps.
    """
    header, records = history(path)
    curriculum = other_curriculum(header["curriculum"], policy)
    adviser = _Adviser(curriculum, make_policy(curriculum))
    end, newest = None, None  # the newest advice waits: a pivot may still undo its phase
    for record in records:
        if record["type"] == "phase":
            if newest is not None:
                yield newest
            if last is not None and record["start"] > last:
                return
            end = record["start"] + record["length"]
            newest = adviser.decide(record, is_wanted=end > first)
        elif adviser.hear(record):
            newest = None
    if newest is not None:
        yield newest
    if end is None or end <= first:
        raise StepError(f"{path} has phases for steps 0 to {(end or 0) - 1}, none from {first} on; ask for fewer")


def other_curriculum(data: dict[str, Any], policy: str) -> Curriculum:
    """Return the journalled curriculum under another policy; its own keeps its settings."""
    settings = data["policy"] if data["policy"]["name"] == policy else {"name": policy}
    try:
        return Curriculum(**{**data, "policy": settings})
    except ConfigError as error:
        raise ConfigError([f"advice of {policy}: {problem}" for problem in error.problems]) from error


class _Adviser:
    """Follows a walk with another policy's memory."""

    def __init__(self, curriculum: Curriculum, policy: Policy) -> None:
        self._curriculum, self._policy = curriculum, policy
        num_sources = len(curriculum.names)
        self._state: State = policy.initial(num_sources)
        self._inbox = Inbox(num_sources, is_by_step=True)
        self._unique = np.array([source.tokens or 0 for source in curriculum.sources], dtype=np.float64)
        self._pivots = {pivot.at_step for pivot in curriculum.pivots}
        self._region: Region | None = None
        self._since = 0
        self._before: tuple[State, int, list[ReportSum]] = (
            self._state,
            0,
            [],
        )  # what undoing the newest phase restores

    def hear(self, record: dict[str, Any]) -> bool:
        """Take in a line that is not a phase; return whether it undoes the newest phase."""
        if record["type"] == "feedback":
            self._inbox.add(record["step"], record_to_losses(record, len(self._curriculum.names)))
        elif record["type"] == "pivot":
            self._pivots.add(record["at_step"])
            if record["at_step"] < record["decided_before"] and record["at_step"] == self._since:
                self._state, self._since, used = self._before
                self._inbox.put_back(used)
                return True
        elif record["type"] == "unique_tokens":
            self._unique[self._curriculum.names.index(record["source"])] = record["tokens"]
        return False

    def decide(self, phase: dict[str, Any], *, is_wanted: bool) -> Advice | None:
        """Learn what the walk had learned by this phase; return what to do, if that is asked."""
        start = phase["start"]
        if phase["region"] is not None:
            self._region = _region(self._curriculum.names, phase["region"])
        assert self._region is not None, "the first phase has a region"
        used = self._inbox.ready(phase["feedback"]["last_step"] + 1 if phase["feedback"] else 0)
        by_step = [reports.losses for reports in used]
        self._before = (self._state, self._since, used)
        self._state = self._policy.absorb(self._state, by_step, since=self._since, until=start)
        if start in self._pivots:
            self._state = self._policy.after_pivot(self._state)
        self._inbox.drop(used)
        self._since = start
        return self._advice(phase, self._region) if is_wanted else None

    def _advice(self, phase: dict[str, Any], region: Region) -> Advice:
        here = np.array(phase["landed"] or phase["before"])
        vertex: Array | None = None
        if self._policy.teleports == "always":
            advised = region.sample(generator(self._curriculum.seed, "phase.point", phase["index"]))
        else:
            alarmed = np.array(phase["parts"].get("alarm") or [0.0] * here.size) > 0
            choice = self._policy.choose(self._state, region, here, self._unique, alarmed)
            advised, vertex = choice.weights, choice.vertex
        return Advice(
            index=phase["index"],
            start=phase["start"],
            kind=phase["kind"],
            played=np.array(phase["weights"]),
            advised=advised,
            advised_kind="random" if self._policy.teleports == "always" else self._policy.kind,
            vertex=vertex,
        )


def _region(names: tuple[str, ...], record: dict[str, Any]) -> Region:
    """Return the region that a phase line describes."""
    return Region(
        names,
        floors=dict(zip(names, record["floors"], strict=True)),
        caps=dict(zip(names, record["caps"], strict=True)),
    )
