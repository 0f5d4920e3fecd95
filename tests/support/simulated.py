"""A walk that learns from a synthetic learner, watched as the service watches its runs, without data or a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mixer.analysis.simulate import SyntheticLearner
from mixer.config.curriculum import Curriculum
from mixer.journal.file import Journal
from mixer.losses import SourceLosses
from mixer.sampling.draws import phase_counts
from mixer.walk.walk import Walk
from service.dashboard.columns import Watch


class SimulatedRun:
    """A walk that learns from a synthetic learner, and the watch that follows its journal.

    Args:
        curriculum: of the walk.
        journal: where to write it.
        num_ranks: that report.
        time_of: gives the time of a step, for lines that have times, as a service writes them.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        journal: Path | None = None,
        num_ranks: int = 1,
        time_of: Callable[[int], float] | None = None,
    ) -> None:
        self.curriculum, self.num_ranks, self.step, self.time_of = curriculum, num_ranks, 0, time_of
        self.lines: list[dict[str, Any]] = []
        self.watch = Watch()
        self._journal = None if journal is None else Journal.create(journal, fsync="never")
        self.walk = Walk(curriculum, journal=self)  # type: ignore[arg-type]  # it asks for append and position alone
        self.learner = SyntheticLearner(
            len(curriculum.names), seed=curriculum.seed, sequence_length=curriculum.sequence_length
        )
        self.counts = np.zeros((0, 0), dtype=np.int64)

    @property
    def position(self) -> Any:
        """Where the journal ends."""
        return type("Position", (), {"line": len(self.lines)})()

    def append(self, record: dict[str, Any]) -> None:
        """Take a line of the walk; feedback is not kept here, there is too much of it."""
        if self.time_of is not None and record["type"] != "feedback":
            record = {**record, "at": self.time_of(self.step)}
        plain = orjson.loads(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY))
        if plain["type"] != "feedback":
            self.lines.append(plain)
        self.watch.add(plain)
        if self._journal is not None:
            self._journal.append(record)

    def close(self) -> None:
        """Let go of the journal, for a server to go on with it."""
        if self._journal is not None:
            self._journal.close()

    def hasten(self, to_step: int) -> None:
        """Decide phases up to a step, with one report for each: a long walk in a few seconds."""
        while self.step < to_step:
            phase = self.walk.phase_at(self.step)
            counts, _ = phase_counts(
                phase, seed=self.curriculum.seed, method="systematic", batch_rows=self.curriculum.batch_rows
            )
            losses = self.learner.learn(self.step, counts.sum(axis=0))
            self.walk.report(self.step, losses, is_recorded=True)  # no batch holds so many rows
            self.step = phase.start + phase.length

    def advance(self, num_steps: int, lags: tuple[int, ...] = ()) -> None:
        """Take so many steps; each rank reports every one, ``lags`` steps late."""
        for _ in range(num_steps):
            phase = self.walk.phase_at(self.step)
            if phase.start == self.step or not self.counts.size:
                self.counts, _ = phase_counts(
                    phase, seed=self.curriculum.seed, method="systematic", batch_rows=self.curriculum.batch_rows
                )
            losses = self.learner.learn(self.step, self.counts[self.step - phase.start])
            for rank in range(self.num_ranks):
                lag = lags[rank] if rank < len(lags) else 0
                if self.step >= lag:
                    self.walk.report(self.step - lag, share(losses, rank) if lag == 0 else nothing(losses, rank))
            self.step += 1


def share(losses: SourceLosses, rank: int) -> SourceLosses:
    """All of it for rank 0, an empty report for the others: the page adds up sums, whoever sent them."""
    return losses if rank == 0 else nothing(losses, rank)


def nothing(losses: SourceLosses, rank: int) -> SourceLosses:
    """A report without rows."""
    zeros = np.zeros(losses.rows.size)
    return SourceLosses(rows=zeros, tokens=zeros, loss_sums=zeros, square_sums=zeros, rank=rank)  # type: ignore[arg-type]
