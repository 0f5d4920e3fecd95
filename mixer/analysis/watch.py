"""A run in progress, seen in a terminal: the newest phase, its weights between their bounds, losses, speed.

The first look at a long journal, and one after a ``resume`` line, reads its end alone; later looks read what was
appended, and take the lines as they are: the chain is checked by ``mixer replay``, not here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mixer.errors import JournalError
from mixer.journal.lookup import NUM_OPENINGS, JournalIndex
from mixer.journal.phases import PhaseLines
from mixer.journal.records import region_in_force
from mixer.journal.words import alarm_in_words

BAR_CELLS = 36
SPEED_WINDOW_S = 30.0
MAX_ROWS = 40
MAX_REGIMES = MAX_ALARMS = NUM_OPENINGS
TAIL_BYTES = 1 << 20  # some 1,500 reports: what they say of losses forgets the ones before


@dataclass
class RunView:
    """What is known of the run now."""

    header: dict[str, Any] | None = None
    region: dict[str, Any] | None = None
    regimes: list[tuple[int, str]] = field(default_factory=list)  # where the newest began
    alarms: list[dict[str, Any]] = field(default_factory=list)  # the newest
    asked: list[dict[str, Any]] = field(default_factory=list)  # pivots asked for while the run went on
    losses: dict[int, float] = field(default_factory=dict)  # of each source, in the newest report that has it
    last_step: int = -1  # the newest step reported
    _lines: PhaseLines = field(default_factory=lambda: PhaseLines({}, keep=2))  # a pivot may undo the last

    def add(self, record: dict[str, Any]) -> None:
        """Take in the next line."""
        match record["type"]:
            case "header":
                self.header = record
                self._lines = PhaseLines(record["curriculum"], keep=2)
            case "phase":
                self._lines.add(record)
                self._open(record)
            case "feedback":
                self.last_step = max(self.last_step, record["step"])
                for i, total, tokens in zip(record["sources"], record["loss_sums"], record["tokens"], strict=True):
                    if tokens:
                        old = self.losses.get(i, total / tokens)
                        self.losses[i] = old + 0.2 * (total / tokens - old)  # smoothed over about 5 reports
            case "alarm":
                self.alarms = [*self.alarms, record][-MAX_ALARMS:]
            case "pivot":
                self.asked.append(record)
                self._cut(record)

    @classmethod
    def of(cls, journal: JournalIndex) -> tuple[Self, int]:
        """Return what the end of a journal says, and the byte after it."""
        sight, tail = cls(), journal.tail(TAIL_BYTES)
        sight.add(journal.header)
        for record in tail.openings:
            sight._open(record)
        sight.asked, sight.alarms = tail.pivots, tail.alarms
        for record in tail.lines:
            sight.add(record)
        return sight, tail.end

    @property
    def phases(self) -> list[dict[str, Any]]:
        """The newest two phases."""
        return self._lines.records

    @property
    def phase(self) -> dict[str, Any] | None:
        """The newest phase."""
        return self._lines.newest

    def _open(self, phase: dict[str, Any]) -> None:
        """Note that a region begins with a phase, if one does."""
        if phase["region"] is not None:
            self.region = phase["region"]
            self.regimes.append((phase["start"], phase["regime"]))

    def _cut(self, pivot: dict[str, Any]) -> None:
        """Leave of the newest phase what a pivot left of it."""
        cut = self._lines.cut(pivot)
        if cut is not None and cut.left is None and cut.before["region"] is not None:
            self.regimes.pop()


class Follower:
    """Reads a journal as it grows; ``sight`` is what it knows.

    Args:
        path: need not exist yet.
        clock: seconds, for the speed.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = Path(path)
        self.sight = RunView()
        self._clock = clock
        self._offset = 0
        self._steps: deque[tuple[float, int]] = deque()

    def poll(self) -> bool:
        """Read what is new; return whether there is a journal.

        Raises:
            JournalError: a whole line that is no journal line.
        """
        try:
            size = self.path.stat().st_size
            if size < self._offset:  # another journal in its place, or a torn line taken back
                self._begin_anew()
            if self._offset == 0 and size > 2 * TAIL_BYTES:
                self._read_end()
            with self.path.open("rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    if self._take(line):
                        self._read_end()
                        break
        except FileNotFoundError:
            self._begin_anew()
            return False
        except OSError as error:
            raise JournalError(f"{self.path}: {error.strerror}") from error
        self._note_speed()
        return self.sight.header is not None

    @property
    def steps_per_s(self) -> float | None:
        """Steps reported per second over the last 30 seconds; None until two looks saw a difference."""
        if len(self._steps) < 2:
            return None
        (then, before), (now, after) = self._steps[0], self._steps[-1]
        return (after - before) / (now - then) if now > then and after > before else None

    def _take(self, line: bytes) -> bool:
        """Add a line; return whether it is a ``resume``, after which what was known no longer holds."""
        try:
            record = orjson.loads(line)
            if record["type"] == "resume":
                return True
            self.sight.add(record)
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise JournalError(f"{self.path}: a line that ends at byte {self._offset} is no journal line") from error
        return False

    def _read_end(self) -> None:
        self._begin_anew()
        self.sight, self._offset = RunView.of(JournalIndex(self.path))

    def _begin_anew(self) -> None:
        self.sight, self._offset = RunView(), 0
        self._steps.clear()

    def _note_speed(self) -> None:
        now = self._clock()
        self._steps.append((now, self.sight.last_step))
        while len(self._steps) > 2 and now - self._steps[0][0] > SPEED_WINDOW_S:
            self._steps.popleft()


def frame(follower: Follower) -> RenderableType:
    """Return what a terminal shows now."""
    sight = follower.sight
    if sight.header is None:
        return Panel(Text(f"waiting for {follower.path}"), title="mixer watch")
    if sight.phase is None or sight.region is None:
        return Panel(Text("the run has begun; no phase is decided yet"), title=str(follower.path))
    curriculum, phase = sight.header["curriculum"], sight.phase
    total, speed = curriculum["total_steps"], follower.steps_per_s
    at = max(sight.last_step, 0)
    head = Text()
    head.append(f"step {at:,} of {total:,}", style="bold")
    head.append(f"  {speed:.1f} steps/s" if speed else "  speed not known yet")
    if speed and total > at:
        head.append(f", {_duration((total - at) / speed)} left")
    head.append(f"\nphase {phase['index']:,}: steps {phase['start']:,} to {phase['start'] + phase['length'] - 1:,}, ")
    head.append(phase["kind"], style={"random": "bold red", "bandit": "bold cyan"}.get(phase["kind"], "bold"))
    head.append(f", regime {phase['regime']}, policy {curriculum['policy']['name']}")
    regimes = ", ".join(f"{name} from step {start:,}" for start, name in sight.regimes[-MAX_REGIMES:])
    coming = [
        f"{pivot['name']} at step {pivot['at_step']:,}"
        for pivot in sorted([*curriculum["pivots"], *sight.asked], key=lambda pivot: pivot["at_step"])
        if pivot["at_step"] > phase["start"]
    ]
    foot = Text(f"regimes: {regimes}" + (f"; to come: {', '.join(coming[:MAX_REGIMES])}" if coming else ""), "dim")
    alarms = [Text(f"alarm: {alarm_in_words(alarm)}", "bold red") for alarm in sight.alarms]
    return Panel(
        Group(head, _table(sight, phase, region_in_force(phase, sight.region)), *alarms, foot), title=str(follower.path)
    )


def _table(sight: RunView, phase: dict[str, Any], region: dict[str, Any]) -> Table:
    assert sight.header is not None, "a phase comes after the header"
    names = [source["name"] for source in sight.header["curriculum"]["sources"]]
    table = Table(box=None, padding=(0, 1))
    table.add_column("source", no_wrap=True, overflow="ellipsis", max_width=24)
    table.add_column("weight", justify="right")
    table.add_column("0" + "[ floor, ] cap".center(BAR_CELLS - 2) + "1", no_wrap=True)
    table.add_column("drawn", justify="right")
    table.add_column("loss", justify="right")
    drawn = [before + now for before, now in zip(phase["drawn"], phase["counts"], strict=True)]
    total = max(sum(drawn), 1)
    order = sorted(range(len(names)), key=lambda i: (-phase["weights"][i], i))[:MAX_ROWS]
    alarmed = phase["parts"].get("alarm") or [0.0] * len(names)
    for i in sorted(order):
        loss = sight.losses.get(i)
        bar = _bar(phase["weights"][i], region["lower"][i], region["upper"][i])
        share, text = f"{drawn[i] / total:.3f}", "" if loss is None else f"{loss:.3f}"
        name = Text(f"{names[i]} !", "bold red") if alarmed[i] else Text(names[i])
        table.add_row(name, f"{phase['weights'][i]:.3f}", bar, share, text)
    if len(names) > MAX_ROWS:
        table.add_row(f"and {len(names) - MAX_ROWS} more")
    return table


def _bar(weight: float, floor: float, cap: float) -> Text:
    """Return a bar from 0 to 1 with its bounds marked; it is yellow where the weight stands at one."""
    cells = ["█" if (i + 0.5) / BAR_CELLS <= weight else "·" for i in range(BAR_CELLS)]
    for value, mark in ((floor, "["), (cap, "]")):
        if 0.0 < value < 1.0:
            cells[min(int(value * BAR_CELLS), BAR_CELLS - 1)] = mark
    is_bound = weight <= floor + 1e-9 or weight >= cap - 1e-9
    return Text("".join(cells), "dim" if cap == 0.0 else "yellow" if is_bound else "green")


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
