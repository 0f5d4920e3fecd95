"""Batches over streams, one step after the other.

Steps whose rows have all been read are composed together, as one array, because asking 16 sources for one row at a time
costs two thirds of what decoding Parquet does. The sources are told what was taken of them before anybody looks at
their place, so that a state is always that after the newest step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixer.delivery.batch import Planner, RowBatch, TokenBatch
from mixer.errors import StateMismatchError, StepError
from mixer.sampling.phases import Phase
from mixer.sources.base import Progress, RowSource
from mixer.sources.packing import WIDE
from mixer.sources.rows import StreamedRows
from mixer.types import IntArray, RowArray

COMPOSED_BYTES = 1 << 20  # 16 steps of 16 x 1025 rows: more is out of the cache before it is used


@dataclass(frozen=True, eq=False)
class _Composed:
    """Coming steps of the phase in force whose rows were all at hand."""

    steps: range
    rows: RowArray  # [n, b, T + 1]
    source_ids: IntArray  # [n, b]
    numbers: IntArray  # [n, b]


class StreamedReader:
    """Batches over streams, one step after the other.

    A source that fails in the middle of a batch loses nothing: rows that other sources gave for it are held for the
    next call, which may be for the same step under other weights.

    Args:
        sources: streams in declared order, this reader's own.
        planner: whose rows.
        every: steps between two that will be asked for.
        on_read_through: told (name, tokens of one epoch) of a source that was read through, once a phase at most.
        on_skipped: told (name, where and why) of each record that a source left out.
    """

    def __init__(
        self,
        sources: Sequence[RowSource],
        planner: Planner,
        *,
        every: int = 1,
        on_read_through: Callable[[str, int], None] | None = None,
        on_skipped: Callable[[str, str], None] | None = None,
    ) -> None:
        self._sources = sources
        self._streams = [source for source in sources if isinstance(source, StreamedRows)]
        self._is_masked = any(source.is_masked for source in self._streams)
        self._planner = planner
        self._every = every
        self._on_read_through = on_read_through
        self._on_skipped = on_skipped
        self._held: dict[int, list[RowArray]] = {}
        self._next: int | None = None
        self._phase: Phase | None = None
        self._plan: tuple[IntArray, IntArray] = (np.zeros((0, 0), dtype=np.int64),) * 2  # of that phase, [L, b] both
        self._composed: _Composed | None = None
        self._num_given = self._num_told = 0  # steps of it: given, and known to the sources

    def read(self, step: int) -> RowBatch:
        """Return the rows of the next step."""
        if self._next not in (None, step):
            raise StepError(
                f"step {step} was asked for, but the streams stand at step {self._next}; streams are read in order: "
                "load the state of another step, or prepare the sources (`mixer prepare`)"
            )
        phase = self._planner.phase_at(step)
        if phase is not self._phase:
            self._settle()
            self._tell_read_through()
            self._phase, self._plan, self._composed = phase, _in_order(*self._planner.plan(phase)), None
        composed = self._composed
        if composed is None or step not in composed.steps:
            self._settle()
            composed = self._composed = self._compose(phase, step)
            self._num_given = self._num_told = 0
        if composed is None:
            batch = self._read_one(phase, step)
        else:
            i = self._num_given
            columns = (composed.rows[i], composed.source_ids[i], composed.numbers[i])
            batch = RowBatch(step, phase.index, *columns, self._is_masked)
            self._num_given += 1
        self._next = step + self._every
        return batch

    def read_split(self, step: int, dtype: np.dtype[Any] = WIDE) -> TokenBatch:
        """Return the rows of the next step as they are trained on, token ids in a type that holds them."""
        return self.read(step).split(dtype)

    def _compose(self, phase: Phase, step: int) -> _Composed | None:
        """Compose as many coming steps of the phase as there are rows at hand; None if not even this one."""
        if any(self._held.values()) or len(self._streams) < len(self._sources):
            return None
        all_ids, all_numbers = self._plan
        row_length = self._streams[0].row_length
        num_rows = all_ids.shape[1]
        most = max(1, COMPOSED_BYTES // max(1, 4 * num_rows * row_length))
        mine = slice(step - phase.start, step - phase.start + most * self._every, self._every)
        source_ids, numbers = all_ids[mine], all_numbers[mine]
        flat = source_ids.ravel()
        order = flat.astype(np.uint16 if len(self._sources) <= 2**16 else np.int64).argsort(kind="stable")
        edges = np.flatnonzero(np.diff(flat[order], prepend=-1, append=-1)).tolist()
        spans = [(self._streams[int(flat[order[a]])], order[a:b]) for a, b in itertools.pairwise(edges)]
        num_steps = len(source_ids)
        for source, places in spans:
            at_hand = source.at_hand(len(places))
            if at_hand < len(places):
                num_steps = min(num_steps, int(places[at_hand]) // num_rows)
        if not num_steps:
            return None
        rows = np.empty((num_steps * num_rows, row_length), dtype=np.uint32)
        for source, places in spans:
            own = places[: int(places.searchsorted(len(rows)))]
            source.copy_to(rows, own)
        steps = range(step, step + num_steps * self._every, self._every)
        return _Composed(steps, rows.reshape(num_steps, num_rows, row_length), source_ids, numbers)

    def _settle(self) -> None:
        """Tell the sources what was taken of them."""
        if self._composed is not None and self._num_told < self._num_given:
            counts = np.bincount(self._composed.source_ids[self._num_told : self._num_given].ravel())
            for i in np.flatnonzero(counts).tolist():
                self._streams[i].skip(int(counts[i]))
            self._num_told = self._num_given
        self._tell_skipped()

    def _tell_skipped(self) -> None:
        for source in self._streams:
            if source.skipped:
                skipped, source.skipped = source.skipped, []
                if self._on_skipped is not None:
                    for record in skipped:
                        self._on_skipped(source.name, record)

    def _read_one(self, phase: Phase, step: int) -> RowBatch:
        """Compose one step, reading what is not at hand."""
        all_ids, all_numbers = self._plan
        source_ids, numbers = all_ids[step - phase.start], all_numbers[step - phase.start]
        order = source_ids.argsort(kind="stable")
        counts = np.bincount(source_ids)
        drawn = np.flatnonzero(counts).tolist()
        if len(self._streams) == len(self._sources):
            for i in drawn:
                if self._streams[i].at_hand(int(counts[i])) < counts[i]:
                    self._streams[i].begin()
        for i in drawn:
            held = self._held.setdefault(i, [])
            missing = int(counts[i]) - sum(map(len, held))
            if missing > 0:
                held.append(self._sources[i].take(missing))
        pieces = [self._taken(i, int(counts[i])) for i in drawn]
        gathered = np.concatenate(pieces)
        rows = np.empty_like(gathered)
        rows[order] = gathered
        return RowBatch(step, phase.index, rows, source_ids, numbers, self._is_masked)

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
        self._settle()
        return {source.name: source.progress for source in self._sources}

    def probe(self, name: str) -> bool:
        """Return whether a source that could not be reached can be read now, in one attempt."""
        source = next(source for source in self._sources if source.name == name)
        probe = getattr(source, "probe", None)  # a source of one's own need not have it
        return probe is None or bool(probe())

    def state_dict(self) -> dict[str, Any]:
        """Return the place of every source, and the rows held, if any, as plain data."""
        self._settle()
        held = {self._sources[i].name: np.concatenate(rows).tolist() for i, rows in self._held.items() if rows}
        return {"sources": {source.name: source.state_dict() for source in self._sources}, "held": held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to such a place; the next step may be any."""
        if not state:
            raise StateMismatchError(
                "the saved state is of prepared sources, but this run streams them; "
                "give the curriculum the `prepared:` folder that the run was started with"
            )
        self._composed = None
        for source in self._sources:
            source.load_state_dict(state["sources"][source.name])
        index = {source.name: i for i, source in enumerate(self._sources)}
        self._held = {index[name]: [np.array(rows, dtype=np.uint32)] for name, rows in state["held"].items()}
        self._next = self._phase = None


def _in_order(source_ids: IntArray, numbers: IntArray) -> tuple[IntArray, IntArray]:
    """Return a plan, [L, b] both, whose batches have the rows of each source in the order in which a stream gives them.

    Within a batch a plan numbers them in any order, which only those who can read any row follow.
    """
    steps = np.arange(len(source_ids)).repeat(source_ids.shape[1])
    ordered = np.empty(numbers.size, dtype=np.int64)
    places = np.lexsort((source_ids.ravel(), steps))
    ordered[places] = numbers.ravel()[np.lexsort((numbers.ravel(), source_ids.ravel(), steps))]
    return source_ids, ordered.reshape(numbers.shape)
