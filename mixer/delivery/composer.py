"""Composing a rank's batches step by step: what the process that decides and its copies have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixer.delivery.batch import BatchReader, TokenBatch
from mixer.delivery.coordinator import Coordinator
from mixer.delivery.readers import ReaderFactory
from mixer.delivery.tensors import Batch, single_rows, tensors_of
from mixer.delivery.workers import RemotePhases
from mixer.errors import TopologyError
from mixer.sampling.phases import Phase
from mixer.sources.base import EndOfSource, Progress


@dataclass(frozen=True)
class BatchFormat:
    """What is read, and as what it is given out.

    Attributes:
        rows: where the rows come from.
        is_whole: batches are given out whole, not row by row.
        provenance: with ``row_numbers``.
        token_dtype: type of the token ids.
    """

    rows: ReaderFactory
    is_whole: bool
    provenance: bool
    token_dtype: np.dtype[Any]


class Composer(ABC):
    """Composes batches from where it stands to the end of the run.

    Args:
        form: what is read, and as what it is given out.
    """

    _phases: Coordinator | RemotePhases  # who knows the phase of each step

    def __init__(self, form: BatchFormat) -> None:
        self._form = form
        self._curriculum, self._rows = form.rows.curriculum, form.rows
        self._step = self._row = 0  # of the next batch, or row of it, that is composed here
        self._before: dict[str, Any] = {}  # the reader's state before the batch of ``_step``, when giving out rows
        self._reader: BatchReader | None = None

    @property
    def step(self) -> int:
        """The step of the next batch."""
        return self._step

    @property
    def reader(self) -> BatchReader:
        """What reads the batches here; raises TopologyError in a copy that has not begun."""
        if self._reader is None:
            raise TopologyError("this copy of the data set has read nothing yet: iterate it first")
        return self._reader

    def batches(self) -> Iterator[Batch]:
        """Begin at once, and return the batches to the end of the run, or their rows."""
        return self._iterate(self._begin())

    def progress(self) -> dict[str, Progress]:
        """Return what each source has given so far."""
        return self.reader.progress(self.step)

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return plain data from which the rest of what is composed here follows exactly."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""

    @abstractmethod
    def _begin(self) -> int:
        """Bring the reader to where the run goes on, and return how many steps lie from one batch to the next."""

    def _given_out(self, batch: TokenBatch) -> Batch:
        """Return a batch as it leaves this process."""
        return tensors_of(batch, provenance=self._form.provenance)

    def _read(self, step: int) -> TokenBatch:
        return self.reader.read_split(step, self._form.token_dtype)

    def _stand_at(self, step: int, row: int) -> None:
        self._step, self._row = step, row

    def _iterate(self, every: int) -> Iterator[Batch]:
        for step in range(self._step, self._curriculum.total_steps, every):
            try:
                if self._form.is_whole:
                    yield self._composed(step, every)  # kept by nobody here, so that its memory is used again
                else:
                    yield from self._single_rows(step, every)
            except EndOfSource:
                return

    def _composed(self, step: int, every: int) -> Batch:
        """Return the batch of a step, noting where the next one is."""
        batch = self._given_out(self._read(step))
        self._stand_at(step + every, 0)
        return batch

    def _single_rows(self, step: int, every: int) -> Iterator[Batch]:
        """Yield the rows of a batch one by one, noting before each where the next one is."""
        first, self._before = self._row, self.reader.state_dict()
        yield from single_rows(self._composed(step, every), first, step + every, self._stand_at)

    def _place_of_reader(self) -> dict[str, Any]:
        """Where the reader stands; in the middle of a batch, before it."""
        return self._before if self._row else self.reader.state_dict()

    def _open_reader(self, worker: int, every: int) -> BatchReader:
        return self._rows.open(
            self._phase_at,
            worker=worker,
            num_workers=every,
            on_read_through=self._read_through,
            on_skipped=self._skipped,
        )

    # A reader asks here, as it may be opened before it is known who answers.

    def _phase_at(self, step: int) -> Phase:
        return self._phases.phase_at(step)

    def _read_through(self, name: str, tokens: int) -> None:
        self._phases.read_through(name, tokens)

    def _skipped(self, name: str, record: str) -> None:
        self._phases.skipped(name, record)
