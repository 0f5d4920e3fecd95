"""A recorded walk driven again: every line of its journal is applied to a new walk."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from mixer.config.curriculum import Curriculum
from mixer.config.policy import PolicyConfig
from mixer.config.rules import policies_of
from mixer.errors import JournalError, MixerError
from mixer.journal.file import Journal
from mixer.journal.scan import FIRST, Line, Position
from mixer.journal.schema import check_record
from mixer.types import State
from mixer.walk.apply import apply
from mixer.walk.deciders import Deciders, Learn
from mixer.walk.guard import initial_guard_state
from mixer.walk.state import STATE_VERSION, to_lists
from mixer.walk.walk import Walk


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

    def sync(self) -> None:
        pass


class _Together(Deciders):
    """The policies in force, and beside them those that forks need later: they learn from the same reports."""

    is_by_step = True  # whatever follows: a fork's state must not depend on forks of the fork; sums are exact

    def __init__(self, curricula: Sequence[Curriculum]) -> None:
        super().__init__(curricula[0])  # its decisions learn from what it would have kept as one sum
        self._runs = [(Deciders(curriculum), policies_of(curriculum)) for curriculum in curricula]

    def learned(self, state: State, configs: Sequence[PolicyConfig], learn: Learn) -> State:
        found: State = {}
        for i, (deciders, named) in enumerate(self._runs):
            part = deciders.learned(_part(state, i), named if i else configs, learn)
            found |= {f"{i}.{name}": values for name, values in part.items()}
        return found

    def memory(self, state: State, configs: Sequence[PolicyConfig], config: PolicyConfig) -> State:
        return self._runs[0][0].memory(_part(state, 0), configs, config)


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
        walk = Walk(
            left[0], journal=self._tape, policy=_Together(left), on_alarm=lambda _: None, on_silence=lambda _: None
        )
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
        state = self.walk.state_dict()
        guard = None
        if curriculum.guard is not None:
            guard = state["guard"] or to_lists(initial_guard_state(len(self.walk.names)))
        return {
            **state,
            "fingerprint": curriculum.fingerprint,
            "policy": _part(state["policy"], 1),
            "before": None,
            "guard": guard,
            "inbox": {**state["inbox"], "open": {}},  # what is past is told
            "live_pivots": [],  # the new curriculum says what comes
            "forked_at": self.walk.frontier,
            "journal": None,
        }

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
            apply(self.walk, {"type": line.kind})  # writes the alarms that it finds, pivots for them, the phase
        if self._tape.written:
            return self._compared(line)
        record = line.record()
        try:
            difference = self._followed(line, record)
        except (MixerError, IndexError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
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
        if record["type"] == "fork":
            return self._fork(line, record)
        if not apply(self.walk, record):
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
        if record["state"].get("version") != STATE_VERSION:  # a form that is not read; the next lines tell
            written["state"] = record["state"]
        is_own = not (self._is_supposed and self._generation + 2 == len(self._curricula))
        difference = _first_difference(line, orjson.loads(orjson.dumps(written))) if is_own else None
        joined = self.walk.state_dict()["policy"]
        shifted = {
            f"{i}.{name}": values
            for i in range(len(self._curricula) - self._generation - 1)
            for name, values in _part(joined, i + 1).items()
        }
        self.restore((self._generation + 1, {**state, "policy": shifted, "journal": [1, FIRST]}))
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
