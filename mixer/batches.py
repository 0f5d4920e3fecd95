"""Rows of the global batches of a walk, composed last: which rows a step draws, and reading them.

Over prepared rows a batch is a function of the step: any reader gives any step, at any world size, at the same cost.
Over streams a reader gives one step after the other. Neither needs torch; ``dataset`` makes tensors of what they give,
the service sends it.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from mixer.config import Curriculum
from mixer.draws import phase_counts, plan_rows
from mixer.errors import SourceExhaustedError, StateMismatchError
from mixer.permutation import order_key, permuted
from mixer.phases import Phase
from mixer.sources import PreparedSource, Progress
from mixer.sources.rows import EndOfSource
from mixer.types import IntArray, RowArray

PLANNED_BYTES = 4 << 20  # rows gathered at once, a phase of 16 x 1025 uint16 rows and more: stays in the cache
SLOW_BYTES_PER_S = 300e6  # memory gives 3 GB/s and more, a disk read at random a tenth of this
READING_THREADS = 8  # more requests than that gain little on one NVMe disk
NO_END = 2**62


class RowBatch(NamedTuple):
    """One rank's rows of one global batch.

    Attributes:
        step, phase: which batch of the run, in which phase.
        rows: token ids, unsigned [b, T + 1].
        source_ids: the source of each row, int64 [b].
        row_numbers: the number of each row in its source, over all epochs, int64 [b].
    """

    step: int
    phase: int
    rows: RowArray
    source_ids: IntArray
    row_numbers: IntArray


class BatchReader(Protocol):
    """Gives one rank's rows of each step."""

    def read(self, step: int) -> RowBatch:
        """Return the rows of a step.

        Raises:
            EndOfSource: the run ends before this step, because a source that is to ``stop`` has too few rows left.
            SourceError: a source cannot be read on; the same step may be asked for again.
        """

    def progress(self, step: int) -> dict[str, Progress]:
        """Return how far each source was read by the batches before ``step``."""

    def probe(self, name: str) -> bool:
        """Return whether a source that could not be reached can be read now."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain data: where a stream stands; empty where the step says it all."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to such a place."""


class Planner:
    """Which rows each step of a phase draws, for one rank; keeps the newest phase's plan."""

    def __init__(
        self, curriculum: Curriculum, phase_at: Callable[[int], Phase], *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.phase_at = phase_at
        self._seed, self._draws = curriculum.seed, curriculum.draws
        self._batch_rows = curriculum.batch_rows
        self._mine = slice(rank, None, world_size)
        self._newest: tuple[Phase | None, IntArray, IntArray] = (None, np.zeros(0), np.zeros(0))  # type: ignore[assignment]

    def plan(self, phase: Phase) -> tuple[IntArray, IntArray]:
        """Return source and number of each row of this rank, [L, b] both."""
        planned, source_ids, numbers = self._newest
        if planned is not phase:
            source_ids, numbers = plan_rows(self.counts(phase), phase.drawn, seed=self._seed, start=phase.start)
            source_ids, numbers = source_ids[:, self._mine], numbers[:, self._mine]
            self._newest = (phase, source_ids, numbers)
        return source_ids, numbers

    def counts(self, phase: Phase) -> IntArray:
        """Return the rows of each source in each global batch of a phase, [L, K]."""
        return phase_counts(phase, seed=self._seed, method=self._draws, batch_rows=self._batch_rows)[0]

    def drawn_before(self, step: int) -> IntArray:
        """Return the rows of each source in all global batches before ``step``, [K]."""
        if step == 0:
            return np.zeros_like(self.phase_at(0).drawn)
        phase = self.phase_at(step - 1)
        return np.asarray(phase.drawn + self.counts(phase)[: step - phase.start].sum(axis=0))


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Rows gathered for some steps of one phase, those of one source together, and where each batch finds its own."""

    phase: Phase
    steps: range
    rows: RowArray  # [n * b, T + 1]
    places: IntArray  # [n, b], into rows
    source_ids: IntArray  # [n, b]
    numbers: IntArray  # [n, b]


class PreparedReader:
    """Batches over prepared rows, any step at the same cost: nothing is kept but the rows gathered for a phase.

    Each epoch of a source is read in its own keyed order (``permutation``). Rows that come slowly, because they are not
    in memory yet, are gathered by several threads, and those of the steps to come ahead of time.

    Args:
        curriculum: the run.
        sources: prepared rows of each source in declared order.
        planner: whose rows.
        every: steps between two that will be asked for; several readers may take turns.
    """

    def __init__(
        self, curriculum: Curriculum, sources: Sequence[PreparedSource], planner: Planner, *, every: int = 1
    ) -> None:
        self._sources = sources
        self._planner = planner
        self._every = every
        self._seed = curriculum.seed
        self._sizes = np.array([source.num_rows for source in sources], dtype=np.int64)
        self._on_exhausted = [source.on_exhausted for source in curriculum.sources]
        ends = [NO_END if source.on_exhausted == "repeat" else 0 for source in curriculum.sources]
        self._ends = np.maximum(self._sizes, ends)
        self._may_end = any(end == 0 for end in ends)
        self._keys: dict[tuple[int, int], int] = {}
        self._chunk: _Chunk | None = None
        self._used: RowArray = np.empty((0, 0), dtype=np.uint16)
        self._is_slow = False  # whether rows came slowly the last time
        self._ahead: tuple[Phase, int, Future[_Chunk]] | None = None  # being gathered: from which step of which phase

    def read(self, step: int) -> RowBatch:
        """Return the rows of a step."""
        phase = self._planner.phase_at(step)
        chunk = self._chunk
        if chunk is None or chunk.phase is not phase or step not in chunk.steps:
            chunk = self._chunk = self._next_chunk(phase, step)
        i = (step - chunk.steps.start) // self._every
        rows = chunk.rows.take(chunk.places[i], axis=0)
        return RowBatch(step, phase.index, rows, chunk.source_ids[i], chunk.numbers[i])

    def _next_chunk(self, phase: Phase, step: int) -> _Chunk:
        if self._ahead is not None and self._ahead[:2] == (phase, step):
            chunk = self._ahead[2].result()
        else:
            chunk = self._gather(phase, step)
        self._ahead = None
        following = chunk.steps[-1] + self._every
        if self._is_slow and following < phase.end:
            self._ahead = (phase, following, _threads("ahead", 1).submit(self._gather, phase, following))
        return chunk

    def progress(self, step: int) -> dict[str, Progress]:
        """Return how far each source was read; documents are in proportion to rows, which are in no file's order."""
        rows = self._planner.drawn_before(step).tolist()
        return {
            source.name: Progress(
                rows=num_rows,
                tokens=num_rows * source.row_length,
                documents=source.num_documents * num_rows // source.num_rows,
                epoch=num_rows // source.num_rows,
                unique_tokens=source.num_rows * source.row_length,
            )
            for source, num_rows in zip(self._sources, rows, strict=True)
        }

    def probe(self, name: str) -> bool:
        """Return True: rows on disk are there, or an error says that they are not."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the step says it all."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Forget what was gathered."""
        if state:
            raise StateMismatchError(
                "the saved state is of streamed sources, but this run reads prepared ones; "
                "take `prepared:` out of the curriculum to go on, or start a new run"
            )
        self._chunk = None

    def _gather(self, phase: Phase, step: int) -> _Chunk:
        """Gather the rows of as many coming steps of the phase as fit in ``PLANNED_BYTES``, a quarter if slow."""
        all_ids, all_numbers = self._planner.plan(phase)
        first = self._sources[0]
        step_bytes = max(1, all_ids.shape[1] * first.row_length * first.dtype.itemsize)
        num_steps = max(1, (PLANNED_BYTES >> 2 * self._is_slow) // step_bytes)
        steps = range(step, self._end(phase, step, min(phase.end, step + self._every * num_steps)), self._every)
        mine = slice(step - phase.start, steps.stop - phase.start, self._every)
        source_ids, numbers = all_ids[mine], all_numbers[mine]
        ids = source_ids.ravel()
        order = ids.astype(np.uint16 if len(self._sources) <= 2**16 else np.int64).argsort(kind="stable")
        ids = ids[order]
        edges = np.flatnonzero(np.diff(ids, prepend=-1, append=-1))  # where the rows of each source begin
        rows = self._room(ids.size)
        positions = self._positions(ids, numbers.ravel()[order], edges)
        spans = list(zip(ids[edges[:-1]].tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        began_s = time.perf_counter()
        if self._is_slow:
            list(_threads("rows", READING_THREADS).map(lambda span: self._take(span, positions, rows), spans))
        else:
            for span in spans:
                self._take(span, positions, rows)
        self._is_slow = (time.perf_counter() - began_s) * SLOW_BYTES_PER_S > rows.nbytes
        places = np.empty(ids.size, dtype=np.int64)
        places[order] = np.arange(ids.size)
        return _Chunk(phase, steps, rows, places.reshape(source_ids.shape), source_ids, numbers)

    def _room(self, num_rows: int) -> RowArray:
        """Return an array for so many rows: the one used before, unless another thread may be filling it."""
        first = self._sources[0]
        if self._is_slow or len(self._used) < num_rows:
            self._used = np.empty((num_rows, first.row_length), dtype=first.dtype)
        return self._used[:num_rows]

    def _take(self, span: tuple[int, int, int], positions: IntArray, rows: RowArray) -> None:
        i, begin, end = span
        self._sources[i].gather(positions[begin:end], out=rows[begin:end])

    def _positions(self, ids: IntArray, numbers: IntArray, edges: IntArray) -> IntArray:
        """Return where each row lies in its source: the place of its number in the order of its epoch."""
        epochs, positions = np.divmod(numbers, self._sizes[ids])
        starts, lengths = edges[:-1], np.diff(edges)
        lowest, highest = np.minimum.reduceat(epochs, starts), np.maximum.reduceat(epochs, starts)
        drawn, first_epochs = ids[starts].tolist(), lowest.tolist()
        keys = np.repeat(
            np.array([self._key(i, epoch) for i, epoch in zip(drawn, first_epochs, strict=True)], dtype=np.uint64),
            lengths,
        )
        for j in np.flatnonzero(highest > lowest).tolist():
            own = slice(edges[j], edges[j + 1])
            keys[own] = [self._key(drawn[j], epoch) for epoch in epochs[own].tolist()]
        return permuted(positions, self._sizes[ids], keys)

    def _end(self, phase: Phase, step: int, stop: int) -> int:
        """Return ``stop``, or the first step for which a source that must not repeat has too few rows; raise if now."""
        if not self._may_end:
            return stop
        drawn = phase.drawn + self._planner.counts(phase).cumsum(axis=0)  # after each step, [L, K]
        over = (drawn > self._ends)[step - phase.start : stop - phase.start]
        if not over.any():
            return stop
        at = int(over.any(axis=1).argmax())
        if at > 0:
            return step + at
        i = int(over[0].argmax())
        left = int(self._sizes[i] - self._planner.drawn_before(step)[i])
        if self._on_exhausted[i] == "stop":
            raise EndOfSource(self._sources[i].name, left)
        raise SourceExhaustedError(
            f"source {self._sources[i].name} ran dry before step {step}: it has {self._sizes[i]} rows, and {left} are "
            "left; set on_exhausted to repeat or stop, cap the source's weight, or give it more text"
        )

    def _key(self, i: int, epoch: int) -> int:
        key = self._keys.get((i, epoch))
        if key is None:
            if len(self._keys) > 4 * len(self._sources) + 1000:
                self._keys = {}
            key = self._keys[i, epoch] = order_key(self._seed, self._sources[i].name, epoch)
        return key


@functools.cache
def _threads(purpose: str, num_threads: int) -> ThreadPoolExecutor:
    """Return this process's threads for a purpose; a forked process starts its own."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix=f"mixer-{purpose}")


os.register_at_fork(after_in_child=_threads.cache_clear)
