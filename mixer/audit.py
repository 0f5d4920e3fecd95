"""Recompute every decision of a journal from the feedback that it holds, and compare bit for bit.

A ``Redrive`` takes the lines of a journal one after the other and drives a walk with them. What the walk would have
written must be what the line says, byte for byte; ``audit`` names the first line where it is not. Superseded lines are
recomputed too, each from the snapshot that the run itself went on from.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from mixer.config import Curriculum, Pivot
from mixer.errors import ConfigError, JournalError, MixerError, StateMismatchError
from mixer.guard import initial_guard_state
from mixer.inbox import record_to_losses
from mixer.journal import JOURNAL_VERSION, Journal, resume_lines
from mixer.lines import check_record
from mixer.policies import Choice, Policy, make_policy
from mixer.records import conditions
from mixer.region import Region
from mixer.rewards import SourceLosses, State
from mixer.scan import FIRST, Line, Position, last_lines, scan
from mixer.states import closed, opened
from mixer.types import Array, BoolArray
from mixer.walk import Walk


@dataclass(frozen=True)
class Difference:
    """The first place where a journal and what is recomputed from it part."""

    line: int
    kind: str  # the line's type
    step: int | None
    field: str
    journal: Any
    recomputed: Any

    def __str__(self) -> str:
        at = "" if self.step is None else f", step {self.step}"
        return f"line {self.line} ({self.kind}{at}): {self.field} is {self.journal!r}, recomputed {self.recomputed!r}"


@dataclass
class Verdict:
    """What ``audit`` found: how much was recomputed, the first difference if any, and what may have caused it."""

    lines: int = 0
    decisions: int = 0
    reports: int = 0
    resumes: int = 0
    last_step: int = -1
    difference: Difference | None = None
    causes: list[str] = field(default_factory=list)

    def count(self, kind: str) -> None:
        """Note one more line of a type."""
        self.lines += 1
        self.decisions += kind == "phase"
        self.reports += kind == "feedback"
        self.resumes += kind == "resume"


class _Tape(Journal):
    """A journal that keeps in memory what nobody has taken yet, for a walk that only works out what it would write."""

    def __init__(self) -> None:
        self.position = Position(0, FIRST)
        self.written: deque[dict[str, Any]] = deque()

    def append(self, record: Mapping[str, Any]) -> None:
        self.written.append(dict(record))
        self.position = Position(self.position.line + 1, FIRST)

    def resume_from(self, position: Position) -> None:
        pass

    def unsynced(self) -> list[str]:
        return []

    def recover(self, lines: Sequence[str]) -> None:
        pass


class _Together(Policy):
    """The policy in force, and beside it those that forks need later: they learn from the same reports."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies = policies
        self.kind, self.teleports = policies[0].kind, policies[0].teleports
        self.is_by_step = True  # whatever follows: a fork's state must not depend on forks of the fork; sums are exact

    @property
    def in_sums(self) -> bool:
        return self._policies[0].in_sums  # its decisions learn from what it would have kept as one sum

    def initial(self, num_sources: int) -> State:
        return self._joined([policy.initial(num_sources) for policy in self._policies])

    def absorb(self, state: State, steps: Sequence[SourceLosses], *, since: int, until: int) -> State:
        states = enumerate(self._policies)
        return self._joined([p.absorb(_part(state, i), steps, since=since, until=until) for i, p in states])

    def after_pivot(self, state: State) -> State:
        return self._joined([policy.after_pivot(_part(state, i)) for i, policy in enumerate(self._policies)])

    def choose(
        self, state: State, region: Region, weights: Array, unique_tokens: Array, alarmed: BoolArray | None = None
    ) -> Choice:
        return self._policies[0].choose(_part(state, 0), region, weights, unique_tokens, alarmed)

    @staticmethod
    def _joined(states: Sequence[State]) -> State:
        return {f"{i}.{name}": values for i, state in enumerate(states) for name, values in state.items()}


def _part(state: Mapping[str, Any], i: int) -> dict[str, Any]:
    prefix = f"{i}."
    return {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}


class Redrive:
    """A walk driven by the lines of a journal.

    Args:
        curricula: whose decisions the lines are, the eldest first: a fork's journal begins with its parent's.
        is_supposed: whether the last of them is not the journal's own, so that its fork says other things.
    """

    def __init__(self, curricula: Sequence[Curriculum], *, is_supposed: bool = False) -> None:
        self._curricula = list(curricula)
        self._is_supposed = is_supposed
        self._generation = 0
        self._tape = _Tape()
        self.walk = self._walk()

    def _walk(self) -> Walk:
        left = self._curricula[self._generation :]
        self._tape = _Tape()  # an empty journal: the walk begins
        policy = _Together([make_policy(curriculum) for curriculum in left])
        walk = Walk(left[0], journal=self._tape, policy=policy, on_alarm=lambda _: None, on_silence=lambda _: None)
        self._tape.written.clear()  # the header
        return walk

    def snapshot(self) -> tuple[int, dict[str, Any]]:
        """Return where the walk stands, as plain data."""
        return self._generation, self.walk.state_dict()

    def restore(self, snapshot: tuple[int, dict[str, Any]]) -> None:
        """Go back to where the walk stood."""
        self._generation, state = snapshot
        self.walk = self._walk()
        self.walk.load_state_dict(state)

    def forked(self, curriculum: Curriculum) -> dict[str, Any]:
        """Return the state of a walk that goes on from here under ``curriculum``, the next of the curricula."""
        state = opened(self.walk.state_dict())
        guard = state.pop("guard", None)
        forked = {
            **state,
            "fingerprint": curriculum.fingerprint,
            "policy": _part(state["policy"], 1),
            "before": None,
            "inbox": {name: part for name, part in state["inbox"].items() if name != "open"},  # what is past is told
            "live_pivots": [],  # the new curriculum says what comes
            "forked_at": self.walk.frontier,
            "journal": None,
        }
        if curriculum.guard is not None:
            forked["guard"] = initial_guard_state(len(self.walk.names)) if guard is None else guard
        return closed(forked)

    def fork_record(self, curriculum: Curriculum) -> dict[str, Any]:
        """Return the line that begins what ``curriculum``, the next of the curricula, decides from here on."""
        return {
            "type": "fork",
            "step": self.walk.frontier,
            "fingerprint": curriculum.fingerprint,
            "state": self.forked(curriculum),
        }

    def follow(self, line: Line) -> Difference | None:
        """Do what a line says was done, and return the first field in which the walk would have written otherwise.

        Raises:
            JournalError: a line that no walk writes.
        """
        if line.kind in ("phase", "alarm") and not self._tape.written:
            self.walk.phase_at(self.walk.frontier)  # writes the alarms that it finds, pivots for them, the phase
        if self._tape.written:
            return self._compared(line)
        record = line.record()
        try:
            difference = self._followed(line, record)
        except (MixerError, IndexError, ValueError, KeyError, TypeError, OverflowError) as error:
            check_record(line, record)  # a line that is none says more by its form
            if isinstance(error, JournalError):
                raise
            raise JournalError(
                f"{line.path}: line {line.number}, a {record['type']}, was never accepted by a walk: {error}"
            ) from error
        if difference is not None:
            check_record(line, record)
        return difference

    def _followed(self, line: Line, record: dict[str, Any]) -> Difference | None:
        before = self._tape.position
        if record["type"] == "feedback":
            self.walk.report(record["step"], record_to_losses(record, len(self.walk.names)), is_recorded=True)
        elif record["type"] == "pivot":
            tables = {name: record[name] for name in ("name", "floors", "caps", "exclude")}
            self.walk.pivot(
                Pivot(**tables), at_step=record["at_step"], cut=record["at_step"] < record["decided_before"]
            )
        elif record["type"] == "unique_tokens":
            self.walk.learn_unique_tokens(record["source"], record["tokens"])
        elif record["type"] == "fork":
            return self._fork(line, record)
        else:
            raise JournalError(f"{line.path}: line {line.number} is a second {record['type']}; a journal has one")
        if self._tape.position == before:
            raise JournalError(f"{line.path}: line {line.number} says again what an earlier line said")
        return self._compared(line)

    def _compared(self, line: Line) -> Difference | None:
        """Compare a line with the one that the walk would have written in its place, byte for byte."""
        written = {**self._tape.written.popleft(), **line.time(), "number": line.number}
        text = orjson.dumps(written, option=orjson.OPT_SERIALIZE_NUMPY)
        return None if text == line.body else _first_difference(line, orjson.loads(text))

    def _fork(self, line: Line, record: dict[str, Any]) -> Difference | None:
        if self._generation + 1 == len(self._curricula):
            raise JournalError(f"{line.path}: line {line.number} is a fork that the header does not know")
        curriculum = self._curricula[self._generation + 1]
        written = {**self.fork_record(curriculum), "number": line.number}
        state = written["state"]
        is_own = not (self._is_supposed and self._generation + 2 == len(self._curricula))
        difference = _first_difference(line, orjson.loads(orjson.dumps(written))) if is_own else None
        joined = opened(self.walk.state_dict())["policy"]
        shifted = {
            f"{i}.{name}": values
            for i in range(len(self._curricula) - self._generation - 1)
            for name, values in _part(joined, i + 1).items()
        }
        self.restore((self._generation + 1, closed({**opened(state), "policy": shifted, "journal": [1, FIRST]})))
        return difference


def first_difference(one: Any, other: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return the place and the two values where two JSON values differ first; None if they are equal.

    -0.0 and 0.0 differ here, as do 1 and 1.0: equal means equal to the last bit.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            found = first_difference(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
            if found is not None:
                return found
        return None
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, pair in enumerate(zip(one, other, strict=True)):
            if (found := first_difference(*pair, f"{path}[{i}]")) is not None:
                return found
        return None
    return None if repr(one) == repr(other) else (path, one, other)


def _first_difference(line: Line, recomputed: dict[str, Any]) -> Difference | None:
    record = line.record()
    found = first_difference(record, recomputed)
    if found is None:
        return None
    step = next((record[key] for key in ("step", "start", "at_step") if isinstance(record.get(key), int)), None)
    return Difference(line.number, line.kind, step, *found)


def read_header(path: str | Path) -> dict[str, Any]:
    """Return the first line of a journal.

    Raises:
        JournalError: the file is empty or no journal, or of a version that this release does not read.
    """
    path = Path(path)
    line = next(scan(path), None)
    if line is None:
        raise JournalError(f"{path}: holds no whole line; no walk was recorded here yet")
    record = line.record()
    if record.get("type") != "header":
        raise JournalError(f"{path}: line 1 is a {record.get('type')!r}, not a header; no walk wrote this journal")
    if record.get("version") != JOURNAL_VERSION:
        raise JournalError(
            f"{path}: a journal of version {record.get('version')!r}, this release reads {JOURNAL_VERSION}; "
            "read it with the release that wrote it"
        )
    return check_record(line, record)


def curricula_of(path: str | Path, first: Mapping[str, Any]) -> list[Curriculum]:
    """Return the curricula that decided a journal's lines, the eldest first; the last is the run's own."""
    runs: list[Mapping[str, Any]] = [first]
    while runs[0]["parent"] is not None:
        runs.insert(0, runs[0]["parent"])
    found = []
    for run in runs:
        try:
            curriculum = Curriculum(**{"guard": None, **run["curriculum"]})  # headers from before there were guards
        except (ConfigError, TypeError) as error:
            raise JournalError(
                f"{path}: the curriculum in the header cannot be run by this release: {error}"
            ) from error
        if curriculum.fingerprint != run["fingerprint"]:
            raise JournalError(
                f"{path}: the header says fingerprint {run['fingerprint']}, but its curriculum has "
                f"{curriculum.fingerprint}: the header was edited, or another release of this program wrote it"
            )
        found.append(curriculum)
    return found


def audit(path: str | Path, *, curriculum: Curriculum | None = None) -> Verdict:
    """Recompute every decision of a journal from its feedback and compare each line bit for bit.

    Args:
        path: the journal.
        curriculum: decide under this one instead of the header's, to see where it would have parted.

    Raises:
        JournalError: damage, or lines that no walk writes; the message names the line.
        StateMismatchError: ``curriculum`` has other sources.
    """
    path = Path(path)
    first = read_header(path)
    curricula = curricula_of(path, first)
    verdict = Verdict(lines=1, causes=_other_conditions(first))
    if curriculum is not None:
        if curriculum.names != curricula[-1].names:
            raise StateMismatchError(
                f"{path}: a walk over {', '.join(curricula[-1].names)}, but the config has "
                f"{', '.join(curriculum.names)}; decisions can be compared over the same sources in the same order only"
            )
        verdict.causes = [*_other_fields(curricula[-1], curriculum), *verdict.causes]
        curricula[-1] = curriculum
    (last, _), end = last_lines(path)
    resumes = [(line.number, target) for line, target in resume_lines(path, end)]
    redrive = Redrive(curricula, is_supposed=curriculum is not None)
    snapshots = _Snapshots(resumes)
    if 1 in snapshots.wanted:
        snapshots.keep(1, redrive)
    for line in itertools.islice(scan(path), 1, last):
        kind = line.kind
        if kind == "resume":
            _check_resume(line, snapshots.digests[line.number])
            redrive.restore(snapshots.take(line.number))
        else:
            verdict.difference = redrive.follow(line)
        verdict.count(kind)
        if verdict.difference is not None:
            break
        if line.number in snapshots.wanted:
            snapshots.keep(line.number, redrive, digest=line.digest)
    verdict.last_step = redrive.walk.frontier - 1
    if verdict.difference is None:
        verdict.causes = []
    elif not verdict.causes:
        verdict.causes = [
            "config, libraries and machine are the same as now: either the line (or a report before it) was edited and "
            "the chain made anew, or a reward of your own or the program itself was changed"
        ]
    return verdict


class _Snapshots:
    """Where the walk stood at the lines that ``resume`` lines go back to, held no longer than they are needed."""

    def __init__(self, resumes: Sequence[tuple[int, int]]) -> None:
        self._targets = dict(resumes)
        self.wanted = Counter(target for _, target in resumes)  # line -> how often it is still gone back to
        self._held: dict[int, tuple[int, dict[str, Any]]] = {}
        self.digests: dict[int, str | None] = {}

    def keep(self, number: int, redrive: Redrive, digest: str | None = None) -> None:
        self._held[number] = redrive.snapshot()
        self.digests |= {line: digest for line, target in self._targets.items() if target == number}

    def take(self, resume: int) -> tuple[int, dict[str, Any]]:
        target = self._targets[resume]
        self.wanted[target] -= 1
        return self._held[target] if self.wanted[target] else self._held.pop(target)


def _check_resume(line: Line, digest: str | None) -> None:
    record = check_record(line, line.record())
    if digest is not None and record["digest"] != digest:
        raise JournalError(
            f"{line.path}: line {line.number} goes on from line {record['line']} with digest {record['digest']}, "
            f"but that line has {digest}"
        )


def _other_conditions(first: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each condition in the header that is not so now."""
    now = conditions()
    pairs = [(f"{name}", first["libraries"].get(name), version) for name, version in now["libraries"].items()]
    pairs += [("Python", first["python"], now["python"]), ("the machine", first["machine"], now["machine"])]
    return [f"{name} was {then}, now {version}" for name, then, version in pairs if then != version]


def _other_fields(old: Curriculum, new: Curriculum) -> list[str]:
    return [
        f"config field {name}: {then!r} in the journal, {now!r} in the config"
        for name, then, now in different_fields(old.model_dump(mode="json"), new.model_dump(mode="json"))
    ]


def different_fields(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield every field in which two configs differ, as (path, one, other); lists are compared whole."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from different_fields(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
    elif one != other:
        yield path, one, other
