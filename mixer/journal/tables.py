"""What a journal tells, as arrays: phases in order, losses by source, what was asked for and what was drawn.

Reading streams: reports are added up by phase as they come, so that memory grows with phases, not with steps.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mixer.journal.lookup import history
from mixer.journal.phases import PhaseLines
from mixer.journal.scan import Record
from mixer.types import Array, BoolArray, IntArray


@dataclass
class JournalTables:
    """What a page shows of a journal: phases in order, and losses by source and phase.

    ``cut`` are the indices of the phases that a live pivot ended early.
    """

    header: dict[str, Any]
    pivots: list[dict[str, Any]] = field(default_factory=list)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    cut: set[int] = field(default_factory=set)
    _lines: PhaseLines = field(init=False)
    _starts: list[int] = field(default_factory=list)
    _sums: list[Array] = field(default_factory=list)  # of each phase: loss sums and tokens, [2, K]
    _probes: dict[int, Array] = field(default_factory=dict)  # of each step probed: loss sums and tokens, [2, K + M]

    def __post_init__(self) -> None:
        self._lines = PhaseLines(self.header["curriculum"])

    @property
    def phases(self) -> list[Record]:
        """The phase lines that hold, in order."""
        return self._lines.records

    @property
    def names(self) -> list[str]:
        """The sources in declared order."""
        return [source["name"] for source in self.header["curriculum"]["sources"]]

    @property
    def targets(self) -> list[str]:
        """The names of what is only measured, by probes, M of them."""
        return [target["name"] for target in self.header["curriculum"].get("targets", ())]

    @property
    def end(self) -> int:
        """The first step that no phase covers."""
        return self._lines.frontier

    def add(self, record: dict[str, Any]) -> None:
        """Take in the next line of a journal."""
        if record["type"] == "phase":
            self._lines.add(record)
            self._starts.append(record["start"])
            self._sums.append(np.zeros((2, len(record["weights"]))))
        elif record["type"] == "pivot":
            self.pivots.append(record)
            self._cut(record)
        elif record["type"] == "alarm":
            self.alarms.append(record)
        elif record["type"] == "feedback" and self._starts:
            sums = self._sums[bisect.bisect_right(self._starts, record["step"]) - 1]
            sums[0, record["sources"]] += record["loss_sums"]
            sums[1, record["sources"]] += record["tokens"]

        elif record["type"] == "probe":
            size = len(self.names) + len(self.targets)
            probed = self._probes.setdefault(record["step"], np.zeros((2, size)))
            probed[0, record["sources"]] += record["loss_sums"]
            probed[1, record["sources"]] += record["tokens"]

    def _cut(self, pivot: dict[str, Any]) -> None:
        """Leave of the newest phase what a pivot left of it."""
        cut = self._lines.cut(pivot)
        if cut is not None and cut.left is not None:
            self.cut.add(cut.left["index"])
        elif cut is not None:  # undone: nothing was reported on it
            self._starts.pop()
            self._sums.pop()

    def weights(self) -> Array:
        """Weights of each phase, [P, K]."""
        return np.array([phase["weights"] for phase in self.phases])

    def is_random(self) -> BoolArray:
        """Whether each phase's weights were drawn at random, [P]."""
        return np.array([phase["kind"] == "random" for phase in self.phases], dtype=bool)

    def was_cut(self) -> BoolArray:
        """Whether a live pivot ended each phase early, [P]."""
        return np.array([phase["index"] in self.cut for phase in self.phases], dtype=bool)

    def regions(self) -> IntArray:
        """Number of the region that each phase lies in, counted as they came, [P]; names of regimes may return."""
        return np.cumsum([phase["region"] is not None for phase in self.phases], dtype=np.int64)

    def lengths(self) -> Array:
        """Steps of each phase, [P]."""
        return np.array([phase["length"] for phase in self.phases], dtype=np.float64)

    def proportions(self) -> Array:
        """Share of the rows drawn of each source, over all phases, [K]."""
        last = self.phases[-1]
        drawn = np.array(last["drawn"]) + np.array(last["counts"])
        return np.asarray(drawn / max(int(drawn.sum()), 1))

    def mean_weights(self) -> Array:
        """Weights averaged over steps, [K]: what the proportions should be."""
        lengths = self.lengths()
        return np.asarray((self.weights() * lengths[:, None]).sum(axis=0) / lengths.sum())

    def phase_losses(self) -> Array:
        """Mean loss of each source over each phase in nats per token, [P, K]; NaN where nothing was reported."""
        sums = np.array(self._sums).reshape(-1, 2, len(self.names))
        losses, tokens = sums[:, 0], sums[:, 1]
        return np.divide(losses, tokens, out=np.full_like(losses, np.nan), where=tokens > 0)

    def held_out_losses(self) -> tuple[IntArray, Array]:
        """Return the n steps that were probed, [n], and the held-out loss of each source and target, [n, K + M]."""
        steps = sorted(self._probes)
        sums = np.array([self._probes[step] for step in steps]).reshape(-1, 2, len(self.names) + len(self.targets))
        losses, tokens = sums[:, 0], sums[:, 1]
        means = np.divide(losses, tokens, out=np.full_like(losses, np.nan), where=tokens > 0)
        return np.array(steps, dtype=np.int64), means

    def parts(self, name: str) -> Array:
        """One part of the index of each source at each decision, [P, K]; NaN where there was none."""
        rows = [phase["parts"].get(name) or [None] * len(self.names) for phase in self.phases]
        return np.array(rows, dtype=np.float64).reshape(-1, len(self.names))

    def first_and_last_losses(self) -> list[tuple[float | None, float | None]]:
        """Mean loss of each source in the first and in the last phase that drew it; None if none did."""
        ends: list[tuple[float | None, float | None]] = []
        for losses in self.phase_losses().T:
            known = losses[~np.isnan(losses)]
            ends.append((float(known[0]), float(known[-1])) if known.size else (None, None))
        return ends


def read_tables(path: str | Path) -> JournalTables:
    """Read a journal; lines that a ``resume`` superseded are left out."""
    header, records = history(path)
    story = JournalTables(header=header)
    for record in records:
        story.add(record)
    return story
