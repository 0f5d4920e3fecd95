"""What a page shows of a journal, kept up to date line by line.

Reports are added up by phase as they come, so memory grows with phases (about 8,000 in a run of 200,000 steps), not
with steps or ranks. It is told each line once, those of before a restart too; a service's journal has no ``resume``.
"""

from __future__ import annotations

import bisect
import copy
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import ScheduledPivot
from mixer.journal.phases import PhaseLines
from mixer.journal.words import facts_in_words, told
from mixer.region.regimes import Bounds, Regime, regime_at
from mixer.types import Array
from mixer.walk.schedule import planned_regimes

# lines that are listed one by one; feedback is added up
NOTED = ("phase", "pivot", "unique_tokens", "skipped", "alarm", "fork")
PACE_S = 60.0  # throughput is measured over so long
STALL_S, STALL_STEPS, USUAL = 60.0, 5.0, 32  # a step that takes longer, and five times what the newest 32 took, stalls


@dataclass(frozen=True)
class Entry:
    """A line of the journal as it is listed: its number from 1, its type, its step and what it says."""

    line: int
    type: str
    step: int
    record: Mapping[str, Any]
    names: tuple[str, ...]

    @cached_property
    def text(self) -> str:
        """What it says, in words; they are looked for when somebody asks, for a start has thousands of lines."""
        return told(self.record, self.names)

    def is_asked_for(self, words: Sequence[str], *, kind: str, before: int) -> bool:
        """Whether it says each word, in lower case, or has it as its step; "" is any kind, before 0 any line."""
        if (kind and self.type != kind) or (before and self.line >= before):
            return False
        return all(word in self.text.casefold() or word == str(self.step) for word in words)

    def shown(self) -> dict[str, Any]:
        """Return it as the page has it."""
        return {
            "line": self.line, "type": self.type, "step": self.step, "at": self.record.get("at"), "text": self.text
        }  # fmt: skip


@dataclass
class Rank:
    """What one rank has reported: its newest step and the number of its reports."""

    step: int = -1
    reports: int = 0


class Table:
    """Rows of numbers that are appended to, float64 [N, K]: a start appends thousands before anybody looks at one.

    A row that was appended is never written to again, so that copies may share it.

    Rows wait as the journal has them, and become numbers together, in a tenth of the time that each takes alone.
    """

    def __init__(self, num_columns: int) -> None:
        self._rows = np.zeros((64, num_columns))
        self._size = 0
        self._waiting: list[Sequence[float | None]] = []

    def append(self, row: Sequence[float | None] | float) -> None:
        """Add one row, [K], or one number for all of it; what is not a finite number becomes NaN."""
        self._waiting.append([row] * self._rows.shape[1] if isinstance(row, float) else row)

    def pop(self) -> None:
        """Take the last row away."""
        self._rows, self._size = self.rows[:-1].copy(), len(self.rows) - 1  # another's copy keeps it

    def replace_last(self, row: Sequence[float]) -> None:
        """Put another row in the place of the last one."""
        self.pop()
        self.append(row)

    @property
    def rows(self) -> Array:
        """A view of what is there, [N, K]."""
        if self._waiting:
            new, self._waiting = np.array(self._waiting, dtype=np.float64), []
            begin, self._size = self._size, self._size + len(new)
            if len(self._rows) < self._size:  # it may have no row at all: one that was alone was taken away
                room = max(2 * len(self._rows), self._size, 64) - len(self._rows)
                self._rows = np.concatenate([self._rows, np.zeros((room, self._rows.shape[1]))])
            self._rows[begin : self._size] = np.where(np.isfinite(new), new, np.nan)
        return self._rows[: self._size]

    def ended(self) -> Table:
        """Return the same rows without those that are still to come."""
        _ = self.rows  # nothing waits any more
        same = copy.copy(self)
        same._waiting = []
        return same


class Heard:
    """What reports have added up to by phase: loss sums and tokens, always of the same reports, also in a copy.

    Both of a phase are one array, which a report replaces and never writes to.
    """

    def __init__(self, num_sources: int) -> None:
        self._nothing = np.zeros((2, num_sources))
        self.phases: list[Array] = []  # [2, K] each: loss sums, tokens

    def append(self) -> None:
        """Add a phase that nobody has reported."""
        self.phases.append(self._nothing)

    def pop(self) -> None:
        """Take the last phase away."""
        self.phases.pop()

    def add(self, phase: int, sources: Sequence[int], loss_sums: Sequence[float], tokens: Sequence[int]) -> None:
        """Add a report of some sources."""
        new = self.phases[phase].copy()
        new[:, sources] += (loss_sums, tokens)
        self.phases[phase] = new

    def table(self, first: int = 0, last: int | None = None) -> Array:
        """Return loss sums and tokens of some phases, [2, N, K]."""
        found = self.phases[first:last]
        return np.stack(found, axis=1) if found else self._nothing[:, None][:, :0]

    def copy(self) -> Heard:
        """Return what there is now."""
        same = copy.copy(self)
        same.phases = list(self.phases)
        return same


@dataclass
class WalkColumns:
    """The columns of one walk. ``add`` takes the lines of its journal in order, the header first."""

    num_lines: int = 0
    header: dict[str, Any] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    regime_names: list[str] = field(default_factory=list)
    _lines: PhaseLines = field(default_factory=lambda: PhaseLines({}, keep=2))  # a pivot may undo the newest
    entries: list[Entry] = field(default_factory=list)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    pivots: list[ScheduledPivot] = field(default_factory=list)  # asked for while the run went on
    regimes: tuple[Regime, ...] = ()  # those that began, then those planned, in order of their first step
    begun: list[Regime] = field(default_factory=list)  # as phases say
    begun_at: dict[int, float | None] = field(default_factory=dict)  # by first step: the time of that phase's line
    in_alarm: frozenset[str] = frozenset()  # sources, as the newest decision that looked at them says
    judged_at: int = -1  # the first step of its phase
    is_own: bool = True  # lines are this run's; False while they are those that a fork shares with its parent
    ranks: dict[int, Rank] = field(default_factory=dict)
    unique_tokens: dict[str, int] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)  # one row per phase, by name of the column
    reported: Heard = field(default_factory=lambda: Heard(0))
    known: dict[str, Sequence[float | None]] = field(default_factory=dict)  # index and width as last used, [K]
    weight_steps: Array = field(default_factory=lambda: np.zeros(0))  # weights times steps, summed, [K]
    tokens: Array = field(default_factory=lambda: np.zeros(0))  # tokens reported, [K]
    heard_in: Array = field(default_factory=lambda: np.zeros(0))  # the newest phase with a report of each source, [K]

    @cached_property
    def curriculum(self) -> Curriculum:
        """The run's config, as the header has it."""
        return Curriculum(**self.header["curriculum"])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The K sources in declared order."""
        return self.curriculum.names

    @property
    def newest(self) -> dict[str, Any]:
        """The newest phase's line; empty before the first."""
        return self._lines.newest or {}

    @property
    def end(self) -> int:
        """The first step that no phase covers."""
        return self._lines.frontier

    def regime_at(self, step: int) -> Regime:
        """Return the regime that ``step`` lies in."""
        return regime_at(self.regimes, step)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in the next line."""
        self.num_lines += 1
        kind = record["type"]
        if kind == "header":
            self.header = dict(record)
            self._lines = PhaseLines(record["curriculum"], keep=2)
            columns = ("weights", "counts", "index", "width")
            self.reported = Heard(len(self.names))
            self.tables = {name: Table(len(self.names)) for name in columns}
            self.known = {name: [None] * len(self.names) for name in ("index", "width")}
            self.weight_steps = np.zeros(len(self.names))
            self.tokens = np.zeros(len(self.names))
            self.heard_in = np.full(len(self.names), -1)
            self.is_own = record.get("parent") is None
            self._plan()
        elif kind == "phase":
            self._add_phase(record)
        elif kind == "feedback":
            self._add_feedback(record)
        elif kind == "pivot":
            self._cut(record)
            if self.is_own:
                self.pivots.append(ScheduledPivot.of(record))
            self._plan()
        elif kind == "alarm":
            said = {"kind": record["detector"], "message": facts_in_words(record)}
            known = {name: record.get(name) for name in ("step", "source", "decided_before", "at")}
            self.alarms.append({**known, **said})
        elif kind == "fork":
            self.is_own = record["fingerprint"] == self.header["fingerprint"]
            self._plan()
        elif kind == "unique_tokens":
            self.unique_tokens[record["source"]] = record["tokens"]
        if kind in NOTED:
            step = record.get("start", record.get("at_step", record.get("step", record.get("decided_before", 0))))
            self.entries.append(Entry(self.num_lines, kind, step, record, self.names))

    def _add_phase(self, record: Mapping[str, Any]) -> None:
        self.starts.append(record["start"])
        self.lengths.append(record["length"])
        self.kinds.append(record["kind"])
        self.regime_names.append(record["regime"])
        self.tables["weights"].append(record["weights"])
        self.tables["counts"].append(record["counts"])
        self.reported.append()
        for name, before in self.known.items():
            parts = record["parts"].get(name)
            self.tables[name].append(np.nan if parts is None else parts)
            if parts is not None:
                of_all = None not in parts
                self.known[name] = (
                    parts if of_all else [a if b is None else b for a, b in zip(before, parts, strict=True)]
                )
        self.weight_steps = self.weight_steps + np.asarray(record["weights"]) * record["length"]
        self._lines.add(dict(record))
        if record["parts"]:
            held = record["parts"].get("alarm") or ()
            self.in_alarm = frozenset(name for name, is_held in zip(self.names, held, strict=False) if is_held)
            self.judged_at = record["start"]
        if record["region"] is not None:
            self.begun_at[record["start"]] = record.get("at")
            self.begun.append(_begun(record, planned_regimes(self.curriculum, self.pivots), self.names))
            self._plan()

    def _plan(self) -> None:
        """Work out the regimes anew: what began is what phases say, what is to come is this run's own plan."""
        planned = planned_regimes(self.curriculum, self.pivots)
        self.regimes = (*self.begun, *(regime for regime in planned if not self.begun or regime.start >= self.end))

    def _cut(self, pivot: Mapping[str, Any]) -> None:
        """Leave of the newest phase what a pivot left of it: fewer steps, or nothing at all.

        No step from there on was reported (the walk refuses), so losses stay as they are.
        """
        cut = self._lines.cut(pivot)
        if cut is None:
            return
        lost = cut.before["length"] - (0 if cut.left is None else cut.left["length"])
        self.weight_steps = self.weight_steps - np.asarray(cut.before["weights"]) * lost
        if cut.left is not None:
            self.lengths[-1] = cut.left["length"]
            self.tables["counts"].replace_last(cut.left["counts"])
            return
        for column in (self.starts, self.lengths, self.kinds, self.regime_names):
            column.pop()
        for table in self.tables.values():
            table.pop()
        self.reported.pop()
        if self.begun[-1].start >= pivot["at_step"]:
            self.begun.pop()

    def _add_feedback(self, record: Mapping[str, Any]) -> None:
        rank = self.ranks.setdefault(record["rank"], Rank())
        rank.step, rank.reports = max(rank.step, record["step"]), rank.reports + 1
        phase = bisect.bisect_right(self.starts, record["step"]) - 1
        if phase >= 0:
            drawn = record["sources"]
            self.reported.add(phase, drawn, record["loss_sums"], record["tokens"])
            self.tokens[drawn] += record["tokens"]
            self.heard_in[drawn] = np.maximum(self.heard_in[drawn], phase)

    def heard(self) -> dict[str, Any]:
        """Return what reports have added up to, as plain data: with the other lines it makes the chronicle again."""
        return {
            "ranks": [[number, rank.step, rank.reports] for number, rank in self.ranks.items()],
            **dict(zip(("loss_sums", "tokens"), self.reported.table().tolist(), strict=True)),
            "tokens_of": self.tokens.tolist(),
            "heard_in": self.heard_in.tolist(),
        }

    def take_heard(self, heard: Mapping[str, Any], num_lines: int) -> None:
        """Take ``heard`` in, having taken in every other line up to number ``num_lines``."""
        self.num_lines = num_lines
        self.ranks = {number: Rank(step, reports) for number, step, reports in heard["ranks"]}
        sums = np.array([heard["loss_sums"], heard["tokens"]], dtype=np.float64)
        self.reported.phases = [phase.copy() for phase in sums.reshape(2, -1, len(self.names)).swapaxes(0, 1)]
        self.tokens, self.heard_in = np.array(heard["tokens_of"]), np.array(heard["heard_in"], dtype=np.int64)

    def now(self, name: str) -> Array:
        """Return ``index`` or ``width`` that the newest decision with any used, [K]; NaN before the first."""
        return np.array(self.known[name], dtype=np.float64)

    def losses_now(self) -> Array:
        """Mean loss of each source in the newest phase that it was heard of in, nats, [K]; NaN before the first."""
        losses = np.full(len(self.names), np.nan)
        for i in np.flatnonzero(self.heard_in >= 0):
            loss_sum, tokens = self.reported.phases[int(self.heard_in[i])][:, i]
            if tokens > 0:
                losses[i] = loss_sum / tokens
        return losses

    def snapshot(self) -> WalkColumns:
        """Return what there is now, to be read while more is added to this one: lists are copied, rows shared."""
        same = copy.copy(self)
        for name in ("starts", "lengths", "kinds", "regime_names", "entries", "alarms", "pivots", "begun"):
            setattr(same, name, list(getattr(self, name)))
        same._lines = self._lines.copy()
        same.tables = {name: table.ended() for name, table in self.tables.items()}
        same.reported = self.reported.copy()
        same.ranks = {number: replace(rank) for number, rank in self.ranks.items()}
        same.unique_tokens, same.known = dict(self.unique_tokens), dict(self.known)
        same.begun_at = dict(self.begun_at)
        same.tokens, same.heard_in = self.tokens.copy(), self.heard_in.copy()
        return same

    def drawn(self) -> Array:
        """Rows drawn of each source up to the end of the newest phase, [K]."""
        if not self.newest:
            return np.zeros(len(self.names))
        return np.array(self.newest["drawn"], dtype=np.float64) + np.array(self.newest["counts"], dtype=np.float64)


def _begun(line: Mapping[str, Any], planned: tuple[Regime, ...], names: tuple[str, ...]) -> Regime:
    """Return the regime that a phase begins: as it was planned, or from its line if a fork's parent planned it."""
    region, start = line["region"], line["start"]
    bounds = [region["lower"], region["upper"]]
    for regime in reversed(planned):
        if regime.name == line["regime"] and np.allclose([regime.region.lower, regime.region.upper], bounds, atol=1e-9):
            return replace(regime, start=start)
    floors, caps = (
        {name: bound for name, bound in zip(names, region[key], strict=True) if bound != default}
        for key, default in (("floors", 0.0), ("caps", 1.0))
    )
    written = Bounds(names, floors, caps, exclude=())
    return Regime(line["regime"], start, written, written.region())


class Pace:
    """How fast steps are reported, by the clock of this process."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()  # when the newest step was first reported
        self._step = -1
        self._heard_at = clock()
        self._took: deque[float] = deque(maxlen=USUAL)  # seconds a step

    def note(self, step: int) -> None:
        """A report of ``step`` has come."""
        if step > self._step:
            now = self._clock()
            if self._step >= 0:
                self._took.append((now - self._heard_at) / (step - self._step))
            self._step, self._heard_at = step, now
            self._seen.append((now, step))

    def quiet_s(self) -> float:
        """Seconds since a new step was reported, or since this process began to listen."""
        return self._clock() - self._heard_at

    def stall_s(self) -> float:
        """Seconds without a new step after which something is wrong: what is long beside the newest steps."""
        return max(STALL_S, STALL_STEPS * statistics.median(self._took)) if self._took else STALL_S

    def steps_per_s(self) -> float | None:
        """Steps per second over the last minute, or since the first report if that is less; None before two of them."""
        now = self._clock()
        while len(self._seen) > 1 and now - self._seen[0][0] > PACE_S:
            self._seen.popleft()
        if self._step < 0 or now - self._seen[0][0] < 1.0:
            return None
        return (self._step - self._seen[0][1]) / (now - self._seen[0][0])


class Watch:
    """A chronicle that whoever writes the journal tells each line, read from other threads.

    Args:
        clock: in seconds, for the pace.
        is_live: False for a record, which is never silent: nobody reports.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, is_live: bool = True) -> None:
        self._is_live = is_live
        self._chronicle = WalkColumns()
        self._pace = Pace(clock)
        self._lock = threading.Lock()

    def add(self, record: Mapping[str, Any], *, is_new: bool = True, number: int | None = None) -> None:
        """Take in the next line, the header first.

        Args:
            record: the line.
            is_new: unless it was written before a restart.
            number: of the line, if those before it that are not told of were reports.
        """
        with self._lock:
            if number is not None:
                self._chronicle.num_lines = number - 1
            self._chronicle.add(record)
            if is_new and record["type"] == "feedback":
                self._pace.note(record["step"])

    def heard(self) -> tuple[int, dict[str, Any]]:
        """Return the number of lines taken in, and what the reports among them have added up to."""
        with self._lock:
            return self._chronicle.num_lines, self._chronicle.heard()

    def take_heard(self, heard: Mapping[str, Any], num_lines: int) -> None:
        """See ``WalkColumns.take_heard``."""
        with self._lock:
            self._chronicle.take_heard(heard, num_lines)

    def steps_per_s(self) -> float | None:
        """Return how fast steps are reported, over the last minute; None if that is not known yet."""
        with self._lock:
            return self._pace.steps_per_s()

    def silence(self) -> dict[str, float]:
        """Return for how long no new step has been reported, and from when on that is a stall; seconds."""
        if not self._is_live:
            return {}
        with self._lock:
            return {"quiet_s": self._pace.quiet_s(), "stall_s": self._pace.stall_s()}

    def chronicle(self) -> WalkColumns:
        """Return the chronicle as it stands; what is added later does not reach it."""
        with self._lock:
            return self._chronicle.snapshot()
