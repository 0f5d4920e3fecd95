"""What a journal tells, as arrays: phases in order, losses by source, what was asked for and what was drawn."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mixer.journal import read_journal
from mixer.records import cut_phases
from mixer.types import Array


@dataclass
class Story:
    """What a page shows of a journal: phases in order, and losses by source and phase."""

    header: dict[str, Any]
    phases: list[dict[str, Any]] = field(default_factory=list)
    losses: list[tuple[int, Array, Array]] = field(default_factory=list)  # step, loss sums [K], tokens [K]
    pivots: list[dict[str, Any]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The sources in declared order."""
        return [source["name"] for source in self.header["curriculum"]["sources"]]

    def weights(self) -> Array:
        """Weights of each phase, [P, K]."""
        return np.array([phase["weights"] for phase in self.phases])

    def proportions(self) -> Array:
        """Share of the rows drawn of each source, over all phases, [K]."""
        last = self.phases[-1]
        drawn = np.array(last["drawn"]) + np.array(last["counts"])
        return np.asarray(drawn / max(int(drawn.sum()), 1))

    def mean_weights(self) -> Array:
        """Weights averaged over steps, [K]: what the proportions should be."""
        lengths = np.array([phase["length"] for phase in self.phases])
        return np.asarray((self.weights() * lengths[:, None]).sum(axis=0) / lengths.sum())

    def phase_losses(self) -> Array:
        """Mean loss of each source over each phase in nats per token, [P, K]; NaN where nothing was reported."""
        starts = [phase["start"] for phase in self.phases]
        sums, tokens = np.zeros((len(starts), len(self.names))), np.zeros((len(starts), len(self.names)))
        for step, part_sums, part_tokens in self.losses:
            phase = bisect.bisect_right(starts, step) - 1
            sums[phase] += part_sums
            tokens[phase] += part_tokens
        return np.divide(sums, tokens, out=np.full_like(sums, np.nan), where=tokens > 0)

    def first_and_last_losses(self) -> list[tuple[float | None, float | None]]:
        """Mean loss of each source in the first and in the last phase that drew it; None if none did."""
        ends: list[tuple[float | None, float | None]] = []
        for losses in self.phase_losses().T:
            known = losses[~np.isnan(losses)]
            ends.append((float(known[0]), float(known[-1])) if known.size else (None, None))
        return ends


def read_story(path: str | Path) -> Story:
    """Read a journal; lines that a ``resume`` superseded are left out."""
    lines: list[dict[str, Any]] = []
    for record in read_journal(path):
        if record["type"] == "resume":
            del lines[record["line"] :]
        lines.append(record)
    story = Story(header=lines[0])
    num_sources = len(story.names)
    for record in lines[1:]:
        if record["type"] == "phase":
            story.phases.append(record)
        elif record["type"] == "pivot":
            story.pivots.append(record)
            cut_phases(story.phases, record, story.header["curriculum"])
        elif record["type"] == "feedback":
            sums, tokens = np.zeros(num_sources), np.zeros(num_sources)
            sums[record["sources"]], tokens[record["sources"]] = record["loss_sums"], record["tokens"]
            story.losses.append((record["step"], sums, tokens))
    return story
