"""Rows of the global batches of a walk, composed last: which rows a step draws, and reading them.

Over prepared rows a batch is a function of the step: any reader gives any step, at any world size, at the same cost.
Over streams a reader gives one step after the other. Neither needs torch; ``dataset`` makes tensors of what they give,
the service sends it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mixer.config import Curriculum
from mixer.draws import phase_counts, plan_rows
from mixer.errors import SourceExhaustedError, StateMismatchError, StepError
from mixer.permutation import order_key, permuted
from mixer.phases import Phase
from mixer.sources import PreparedSource, Progress, RowSource
from mixer.sources.rows import EndOfSource
from mixer.types import IntArray, RowArray

PLANNED_BYTES = 4 << 20  # rows gathered at once, a phase of 16 x 1025 uint16 rows and more: stays in the cache
NO_END = 2**62


@dataclass(frozen=True, eq=False)
class RowBatch:
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
        self._phase: Phase | None = None

    def plan(self, phase: Phase) -> tuple[IntArray, IntArray]:
        """Return source and number of each row of this rank, [L, b] both."""
        if phase is not self._phase:
            self._all = plan_rows(self.counts(phase), phase.drawn, seed=self._seed, start=phase.start)
            self._phase = phase
        source_ids, numbers = self._all
        return source_ids[:, self._mine], numbers[:, self._mine]

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

    Each epoch of a source is read in its own keyed order (``permutation``).

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
        self._keys: dict[tuple[int, int], np.uint64] = {}
        self._chunk: _Chunk | None = None

    def read(self, step: int) -> RowBatch:
        """Return the rows of a step."""
        phase = self._planner.phase_at(step)
        chunk = self._chunk
        if chunk is None or chunk.phase is not phase or step not in chunk.steps:
            chunk = self._chunk = self._gather(phase, step)
        i = (step - chunk.steps.start) // self._every
        rows = chunk.rows.take(chunk.places[i], axis=0)
        return RowBatch(step, phase.index, rows, chunk.source_ids[i], chunk.numbers[i])

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
        """Gather the rows of as many coming steps of the phase as fit in ``PLANNED_BYTES``."""
        all_ids, all_numbers = self._planner.plan(phase)
        first = self._sources[0]
        step_bytes = max(1, all_ids.shape[1] * first.row_length * first.dtype.itemsize)
        stop = min(phase.end, step + self._every * max(1, PLANNED_BYTES // step_bytes))
        steps = range(step, self._end(phase, step, stop), self._every)
        mine = slice(step - phase.start, steps.stop - phase.start, self._every)
        source_ids, numbers = all_ids[mine], all_numbers[mine]
        ids = source_ids.ravel()
        order = ids.astype(np.uint16 if len(self._sources) <= 2**16 else np.int64).argsort(kind="stable")
        epochs, positions = np.divmod(numbers.ravel()[order], self._sizes[ids[order]])
        counts = np.bincount(ids, minlength=len(self._sources))
        drawn = np.flatnonzero(counts).tolist()
        edges = [0, *np.cumsum(counts[drawn]).tolist()]
        keys = np.empty(ids.size, dtype=np.uint64)
        for i, begin, end in zip(drawn, edges[:-1], edges[1:], strict=True):
            own = epochs[begin:end]
            for epoch in range(int(own.min()), int(own.max()) + 1):
                keys[begin:end][own == epoch] = self._key(i, epoch)
        positions = permuted(positions, self._sizes[ids[order]], keys)
        rows = np.empty((ids.size, first.row_length), dtype=first.dtype)
        for i, begin, end in zip(drawn, edges[:-1], edges[1:], strict=True):
            self._sources[i].gather(positions[begin:end], out=rows[begin:end])
        places = np.empty(ids.size, dtype=np.int64)
        places[order] = np.arange(ids.size)
        return _Chunk(phase, steps, rows, places.reshape(source_ids.shape), source_ids, numbers)

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

    def _key(self, i: int, epoch: int) -> np.uint64:
        key = self._keys.get((i, epoch))
        if key is None:
            self._keys = {pair: value for pair, value in self._keys.items() if pair[0] != i or pair[1] >= epoch - 1}
            key = self._keys[i, epoch] = np.uint64(order_key(self._seed, self._sources[i].name, epoch))
        return key


class StreamedReader:
    """Batches over streams, one step after the other.

    A source that fails in the middle of a batch loses nothing: rows that other sources gave for it are held for the
    next call, which may be for the same step under other weights.

    Args:
        sources: streams in declared order, this reader's own.
        planner: whose rows.
        every: steps between two that will be asked for.
        on_read_through: told (name, tokens of one epoch) of a source that was read through, once a phase at most.
    """

    def __init__(
        self,
        sources: Sequence[RowSource],
        planner: Planner,
        *,
        every: int = 1,
        on_read_through: Callable[[str, int], None] | None = None,
    ) -> None:
        self._sources = sources
        self._planner = planner
        self._every = every
        self._on_read_through = on_read_through
        self._held: dict[int, list[RowArray]] = {}
        self._next: int | None = None
        self._phase: Phase | None = None

    def read(self, step: int) -> RowBatch:
        """Return the rows of the next step."""
        if self._next not in (None, step):
            raise StepError(
                f"step {step} was asked for, but the streams stand at step {self._next}; streams are read in order: "
                "load the state of another step, or prepare the sources (`mixer prepare`)"
            )
        phase = self._planner.phase_at(step)
        if phase is not self._phase:
            self._tell_read_through()
            self._phase = phase
        all_ids, all_numbers = self._planner.plan(phase)
        source_ids, numbers = all_ids[step - phase.start], all_numbers[step - phase.start]
        order = source_ids.argsort(kind="stable")
        counts = np.bincount(source_ids)
        drawn = np.flatnonzero(counts).tolist()
        for i in drawn:
            held = self._held.setdefault(i, [])
            missing = int(counts[i]) - sum(map(len, held))
            if missing > 0:
                held.append(self._sources[i].take(missing))
        pieces = [self._taken(i, int(counts[i])) for i in drawn]
        gathered = np.concatenate(pieces)
        rows = np.empty_like(gathered)
        rows[order] = gathered
        self._next = step + self._every
        return RowBatch(step, phase.index, rows, source_ids, numbers)

    def _taken(self, i: int, num: int) -> RowArray:
        """Take ``num`` of the rows held of a source."""
        held = self._held.pop(i)
        rows = held[0] if len(held) == 1 else np.concatenate(held)
        if len(rows) > num:
            self._held[i] = [rows[num:]]
        return rows[:num]

    def _tell_read_through(self) -> None:
        if self._on_read_through is not None:
            for source in self._sources:
                unique_tokens = source.progress.unique_tokens
                if unique_tokens is not None:
                    self._on_read_through(source.name, unique_tokens)

    def progress(self, step: int) -> dict[str, Progress]:
        """Return how far each source was read; ``step`` is where this reader stands."""
        return {source.name: source.progress for source in self._sources}

    def state_dict(self) -> dict[str, Any]:
        """Return the place of every source, and the rows held, if any, as plain data."""
        held = {self._sources[i].name: np.concatenate(rows).tolist() for i, rows in self._held.items() if rows}
        return {"sources": {source.name: source.state_dict() for source in self._sources}, "held": held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to such a place; the next step may be any."""
        if not state:
            raise StateMismatchError(
                "the saved state is of prepared sources, but this run streams them; "
                "give the curriculum the `prepared:` folder that the run was started with"
            )
        for source in self._sources:
            source.load_state_dict(state["sources"][source.name])
        index = {source.name: i for i, source in enumerate(self._sources)}
        self._held = {index[name]: [np.array(rows, dtype=np.uint32)] for name, rows in state["held"].items()}
        self._next = self._phase = None
