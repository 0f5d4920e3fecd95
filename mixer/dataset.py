"""Packed token batches in the mixture that the walk decides: a PyTorch ``IterableDataset`` with exact state.

A batch is composed last, from rows that each source has ready, so that a phase decided after step s is in batch s + 1.
One process reads and delivers; DataLoader workers and several ranks are refused with what to do instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from mixer.config import Curriculum
from mixer.draws import batch_sources, phase_counts
from mixer.errors import ConfigError, FeedbackError, TopologyError
from mixer.feedback import source_losses
from mixer.journal import Journal
from mixer.sources import Progress, RowSource, open_sources
from mixer.sources.rows import EndOfSource
from mixer.tokenizer import TextTokenizer, load_tokenizer
from mixer.types import IntArray
from mixer.walk import Walk, check_state

if TYPE_CHECKING:
    import datasets

STATE_VERSION = 1

Batch = dict[str, Any]


class MixtureDataset(IterableDataset[Batch]):
    """The run's batches, from the step where it stands to ``total_steps``.

    A batch is a dict: ``input_ids`` and ``labels`` int64 [B, T] (``labels[:, t]`` follows ``input_ids[:, t]``),
    ``source_ids`` int64 [B], and the ints ``step`` and ``phase``. Iterating again goes on where it stopped; stopped at
    any step and restored, the rest of the batches are bit-identical.

    Args:
        curriculum: the run.
        rank, world_size: whose rows of the global batch to deliver.
        walk: who decides; by default a ``Walk`` of its own.
        journal: where its own walk is recorded: an open Journal, or a path that is created or gone on with.
        streams: Hugging Face ``IterableDataset`` objects by source name, instead of what the config names.
        tokenizer: instead of the one that the config names.
        batches: yield whole batches; False yields rows (``input_ids`` [T], ...) for trainers that collate.
        provenance: add ``row_numbers`` int64 [B]: which row of its source each row is.

    Raises:
        ConfigError, SourceError, TokenizerError: what cannot be read, before the first batch.
        TopologyError: more than one rank or a DataLoader worker.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        *,
        rank: int = 0,
        world_size: int = 1,
        walk: Walk | None = None,
        journal: Journal | str | Path | None = None,
        streams: Mapping[str, datasets.IterableDataset] | None = None,
        tokenizer: TextTokenizer | None = None,
        batches: bool = True,
        provenance: bool = False,
    ) -> None:
        super().__init__()
        if (rank, world_size) != (0, 1):
            raise TopologyError(
                f"rank {rank} of {world_size}: this release delivers to one rank; "
                "give every batch to rank 0 and broadcast it, or run one process"
            )
        if walk is not None and journal is not None:
            raise ConfigError("give either walk or journal: a walk that is passed in keeps its own journal")
        if walk is not None and walk.curriculum.fingerprint != curriculum.fingerprint:
            raise ConfigError("the walk was made for another curriculum; make both from the same one")
        self.curriculum = curriculum
        self.tokenizer = tokenizer or load_tokenizer(curriculum, streams)
        self._sources: list[RowSource] = open_sources(curriculum, self.tokenizer, streams)
        self.walk = walk or Walk(curriculum, journal=_opened(journal))
        self._batches = batches
        self._provenance = provenance
        self._step = 0
        self._row = 0  # rows of the batch of this step already yielded, when yielding rows
        self._before: list[dict[str, Any]] | None = None  # the sources' states before that batch
        self._plan: tuple[int, IntArray] = (-1, np.zeros((0, 0), dtype=np.int64))  # phase index, its counts

    @property
    def step(self) -> int:
        """The step of the next batch."""
        return self._step

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise TopologyError(
                "MixtureDataset was started in a DataLoader worker: this release reads in the main process; "
                "use DataLoader(dataset, batch_size=None, num_workers=0)"
            )
        return self._whole_batches() if self._batches else self._single_rows()

    def _whole_batches(self) -> Iterator[Batch]:
        while self._step < self.curriculum.total_steps:
            try:
                batch = self._compose(self._step)
            except EndOfSource:
                return
            self._step += 1
            yield batch

    def _single_rows(self) -> Iterator[Batch]:
        while self._step < self.curriculum.total_steps:
            self._before = [source.state_dict() for source in self._sources]
            try:
                batch = self._compose(self._step)
            except EndOfSource:
                return
            num_rows = len(batch["source_ids"])
            for row in range(self._row, num_rows):
                self._step, self._row = (self._step, row + 1) if row + 1 < num_rows else (self._step + 1, 0)
                yield _row_of(batch, row)

    def _compose(self, step: int) -> Batch:
        phase = self.walk.phase_at(step)
        if self._plan[0] != phase.index:
            counts, _ = phase_counts(
                phase,
                seed=self.curriculum.seed,
                method=self.curriculum.draws,
                batch_rows=self.curriculum.batch_rows,
            )
            self._plan = (phase.index, counts)
        counts = self._plan[1][step - phase.start]
        source_ids = batch_sources(counts, seed=self.curriculum.seed, step=step)
        rows = np.empty((self.curriculum.batch_rows, self.curriculum.sequence_length + 1), dtype=np.int64)
        numbers = np.empty(self.curriculum.batch_rows, dtype=np.int64)
        for i in np.flatnonzero(counts):
            source = self._sources[i]
            first = source.progress.rows
            rows[source_ids == i] = source.take(int(counts[i]))
            numbers[source_ids == i] = np.arange(first, first + counts[i])
            if source.progress.unique_tokens is not None:
                self.walk.learn_unique_tokens(source.name, source.progress.unique_tokens)
        batch: Batch = {
            "input_ids": torch.from_numpy(rows[:, :-1].copy()),
            "labels": torch.from_numpy(rows[:, 1:].copy()),
            "source_ids": torch.from_numpy(source_ids),
            "step": step,
            "phase": phase.index,
        }
        return batch | {"row_numbers": torch.from_numpy(numbers)} if self._provenance else batch

    def report(self, batch: Mapping[str, Any], token_losses: Tensor, mask: Tensor | None = None) -> bool:
        """Tell the walk what a batch taught; return False if it knew already.

        Args:
            batch: as it was yielded; several rows collated into one batch must be of one step.
            token_losses: loss of each token in nats, [B, T], on any device.
            mask: tokens that count, bool [B, T]; all by default.
        """
        try:
            step, source_ids = batch["step"], batch["source_ids"]
        except (KeyError, TypeError) as error:
            raise FeedbackError("report needs the batch as it was yielded, with `step` and `source_ids`") from error
        losses = source_losses(source_ids, token_losses, num_sources=len(self._sources), mask=mask)
        return self.walk.report(int(step), losses)

    def progress(self) -> dict[str, Progress]:
        """Return what each source has given so far: rows, tokens, documents, epochs."""
        return {source.name: source.progress for source in self._sources}

    def state_dict(self) -> dict[str, Any]:
        """Return plain data from which the rest of the run follows exactly."""
        states = self._before if self._row and self._before else [source.state_dict() for source in self._sources]
        return {
            "version": STATE_VERSION,
            "fingerprint": self._fingerprint,
            "step": self._step,
            "row": self._row,
            "sources": dict(zip(self.curriculum.names, states, strict=True)),
            "walk": self.walk.state_dict(from_step=self._step),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; raise StateMismatchError for one of another run, naming both."""
        check_state(state, version=STATE_VERSION, fingerprint=self._fingerprint, what="data set state")
        self.walk.load_state_dict(state["walk"])
        for source in self._sources:
            source.load_state_dict(state["sources"][source.name])
        self._step, self._row = state["step"], state["row"]
        self._before = None
        self._plan = (-1, self._plan[1])

    @property
    def _fingerprint(self) -> str:
        return f"{self.curriculum.fingerprint} with tokenizer {self.tokenizer.fingerprint}"


def _opened(journal: Journal | str | Path | None) -> Journal | None:
    if isinstance(journal, str | Path):
        return Journal.open(journal) if Path(journal).exists() else Journal.create(journal)
    return journal


def _row_of(batch: Batch, row: int) -> Batch:
    """Return one row of a batch; ``source_ids`` becomes a scalar, so that collating rows gives a batch again."""
    return {key: value[row] if isinstance(value, Tensor) else value for key, value in batch.items()}
