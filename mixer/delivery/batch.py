"""Rows of the global batches of a walk, composed last: which rows a step draws, and reading them.

Over prepared rows a batch is a function of the step: any reader gives any step, at any world size, at the same cost.
Over streams a reader gives one step after the other. Neither needs torch; ``dataset`` makes tensors of what they give,
the service sends it.
"""

from __future__ import annotations

import functools
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from mixer.config.curriculum import Curriculum
from mixer.errors import SourceExhaustedError, StateMismatchError
from mixer.sampling.draws import phase_counts, plan_rows
from mixer.sampling.permutation import ROUND_KEYS, order_key, permuted, sides
from mixer.sampling.phases import Phase
from mixer.sources.base import EndOfSource, Progress
from mixer.sources.masks import split_marked
from mixer.sources.packing import WIDE, split
from mixer.sources.prepared.rows import JointRows, PreparedRows, RowsAt
from mixer.sources.token_files.joint import JointStreams, StreamRowsAt
from mixer.sources.token_files.rows import TokenFileRows
from mixer.system.kernels import compiled
from mixer.types import AnyTokens, IntArray, RowArray

TOUCHED_ROWS = 16  # that a thread touches at once
SLOW_BYTES_PER_S = 300e6  # memory gives 3 GB/s and more, a disk read at random a tenth of this
FAULT_S = 5e-6  # to map a row's pages: 64 KiB of 4 KiB each in 4.5 us, or up to 2 MiB of a large folio in 2
FAULTS_SHARE = 0.02  # of the time gone by, at most, that mapping pages again may take
READING_THREADS = 8  # more requests than that gain little on one NVMe disk
NO_END = 2**62
NARROW = np.dtype(np.uint32)  # holds every vocabulary

Shape = tuple[int, int, int]


class RowBatch(NamedTuple):
    """One rank's rows of one global batch.

    Attributes:
        step, phase: which batch of the run, in which phase.
        rows: token ids, unsigned [b, T + 1].
        source_ids: the source of each row, int64 [b].
        row_numbers: the number of each row in its source, over all epochs, int64 [b].
        is_masked: tokens whose loss does not count are marked, as ``masks`` says.
    """

    step: int
    phase: int
    rows: RowArray
    source_ids: IntArray
    row_numbers: IntArray
    is_masked: bool = False

    def split(self, dtype: np.dtype[Any] = WIDE) -> TokenBatch:
        """Return it as it is trained on, token ids in a type that holds them."""
        tokens = split_marked(self.rows, dtype) if self.is_masked else split(self.rows, dtype)
        return TokenBatch(self.step, self.phase, *tokens, self.source_ids, self.row_numbers)


class TokenBatch(NamedTuple):
    """One rank's rows of one global batch, as they are trained on.

    Attributes:
        step, phase: which batch of the run, in which phase.
        inputs, labels: token ids, [b, T] both, memory of their own; ``labels[:, t]`` follows ``inputs[:, t]``.
        source_ids, row_numbers: as in ``RowBatch``.
    """

    step: int
    phase: int
    inputs: AnyTokens
    labels: AnyTokens
    source_ids: IntArray
    row_numbers: IntArray


class RowBatches(NamedTuple):
    """One rank's rows of some global batches of one phase, in order: each array that of ``RowBatch`` n times.

    Attributes:
        steps: which batches of the run, n of them.
        phase: that all of them are in.
        rows: [n, b, T + 1].
        source_ids, row_numbers: [n, b].
        is_masked: as in ``RowBatch``.
    """

    steps: range
    phase: int
    rows: RowArray
    source_ids: IntArray
    row_numbers: IntArray
    is_masked: bool = False

    @classmethod
    def of(cls, batch: RowBatch) -> Self:
        """Return a single batch as the only one."""
        columns = (batch.rows[None], batch.source_ids[None], batch.row_numbers[None])
        return cls(range(batch.step, batch.step + 1), batch.phase, *columns, batch.is_masked)

    def until(self, step: int) -> Self:
        """Return those before a step, as views."""
        count = len(range(self.steps.start, step, self.steps.step))
        columns = (self.rows[:count], self.source_ids[:count], self.row_numbers[:count])
        return type(self)(self.steps[:count], self.phase, *columns, self.is_masked)


class BatchReader(Protocol):
    """Gives one rank's rows of each step."""

    def read(self, step: int) -> RowBatch:
        """Return the rows of a step.

        Raises:
            EndOfSource: the run ends before this step, because a source that is to ``stop`` has too few rows left.
            SourceError: a source cannot be read on; the same step may be asked for again.
        """

    def read_split(self, step: int, dtype: np.dtype[Any] = WIDE) -> TokenBatch:
        """Return the same as it is trained on, token ids as int64 or in the smallest type that holds the vocabulary."""

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
class _Plan:
    """Where the rows of some steps of one phase lie."""

    phase: Phase
    steps: range
    num_rows: int  # b, of each step
    rows: RowsAt | StreamRowsAt  # n b of them
    source_ids: IntArray  # [n, b]
    numbers: IntArray  # [n, b]


class PreparedReader:
    """Batches over prepared rows, any step at the same cost: nothing is kept but where the rows of a phase lie.

    Each epoch of a source is read in its own keyed order (``permutation``). If rows come slowly, because they are not
    in memory yet, threads touch those of the steps to come.

    When a phase ends, its pages are given back to the page cache, unless its batches were taken so fast that mapping
    pages again would be felt.

    Args:
        curriculum: the run.
        sources: the rows of each source in declared order, prepared or of token files.
        planner: whose rows.
        every: steps between two that will be asked for; several readers may take turns.
        dtype: of the rows given, where some are of token files, which store ids in types of their own.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        sources: Sequence[PreparedRows | TokenFileRows],
        planner: Planner,
        *,
        every: int = 1,
        dtype: np.dtype[Any] = NARROW,
    ) -> None:
        self._sources = sources
        prepared = [source for source in sources if isinstance(source, PreparedRows)]
        self._rows: JointRows | JointStreams
        if len(prepared) == len(sources):
            self._rows = JointRows(prepared)
        else:
            self._rows = JointStreams(sources, dtype)
        self._slow_row_s = self._rows.row_bytes / SLOW_BYTES_PER_S + FAULT_S
        self._planner = planner
        self._every = every
        self._seed = curriculum.seed
        self._sizes = np.array([source.num_rows for source in sources], dtype=np.int64)
        self._sides = sides(self._sizes)
        self._on_exhausted = [source.on_exhausted for source in curriculum.sources]
        ends = [NO_END if source.on_exhausted == "repeat" else 0 for source in curriculum.sources]
        self._ends = np.maximum(self._sizes, ends)
        self._may_end = any(end == 0 for end in ends)
        self._epochs = np.full(len(sources), -1)  # of each source, the newest that was met, and its key
        self._keys = np.zeros(len(sources), dtype=np.uint64)
        self._locator = self._compiled_locator()
        self._plan: _Plan | None = None
        self._num_read = self._num_slow = 0  # batches of the plan: read so far, and those of them that came slowly
        self._faults = _num_faults()  # when the plan was made
        self._touching: list[Future[None]] = []  # the plan's rows in order of steps, if rows came slowly
        self._planned_s = 0.0  # when the plan was made

    def read(self, step: int) -> RowBatch:
        """Return the rows of a step."""
        plan, i = self._placed(step)
        rows: RowArray = np.empty((1, plan.num_rows, self._rows.row_length), dtype=self._rows.dtype)
        self._gather(plan, i, rows)
        return RowBatch(step, plan.phase.index, rows[0], plan.source_ids[i], plan.numbers[i], self._rows.is_masked)

    def read_split(self, step: int, dtype: np.dtype[Any] = WIDE) -> TokenBatch:
        """Return the rows of a step as they are trained on, token ids as int64 or in the type they are stored in."""
        plan, i = self._placed(step)
        begun_s = _now()
        if self._touching:
            self._wait_for(plan, i, 1)
        inputs, labels = plan.rows.split(i * plan.num_rows, plan.num_rows, dtype)
        self._note(plan, 1, begun_s)
        return TokenBatch(step, plan.phase.index, inputs, labels, plan.source_ids[i], plan.numbers[i])

    def read_together(self, step: int, num_steps: int, room: Callable[[Shape, np.dtype[Any]], RowArray]) -> RowBatches:
        """Return the rows of a step and of those after it in its phase, up to ``num_steps`` in all, by one gather.

        ``room`` gives memory for them, of a shape [n, b, T + 1] and a type; each of the n is contiguous.
        """
        plan, i = self._placed(step)
        these = slice(i, i + num_steps)
        steps = plan.steps[these]
        rows = room((len(steps), plan.num_rows, self._rows.row_length), self._rows.dtype)
        self._gather(plan, i, rows)
        columns = (rows, plan.source_ids[these], plan.numbers[these])
        return RowBatches(steps, plan.phase.index, *columns, self._rows.is_masked)

    def _placed(self, step: int) -> tuple[_Plan, int]:
        """Return the plan that has a step, and the step's place in it."""
        phase, plan = self._planner.phase_at(step), self._plan
        if plan is None or plan.phase is not phase or step not in plan.steps:
            plan = self._next_plan(phase, step)
        return plan, (step - plan.steps.start) // self._every

    def _gather(self, plan: _Plan, i: int, out: RowArray) -> None:
        """Copy the rows of steps of a plan, from the i-th on, to ``out``, [n, b, T + 1]."""
        begun_s = _now()
        if self._touching:
            self._wait_for(plan, i, len(out))
        plan.rows.gather(out, i * plan.num_rows)
        self._note(plan, len(out), begun_s)

    def _wait_for(self, plan: _Plan, i: int, num_steps: int) -> None:
        """Wait until the rows of so many steps of a plan, from the i-th on, are in memory."""
        first, end = i * plan.num_rows, (i + num_steps) * plan.num_rows
        for part in self._touching[first // TOUCHED_ROWS : -(-end // TOUCHED_ROWS)]:
            part.result()

    def _note(self, plan: _Plan, num_steps: int, begun_s: float) -> None:
        """Note whether so many steps came slowly."""
        self._num_read += num_steps
        if _now() - begun_s > num_steps * plan.num_rows * self._slow_row_s:
            self._num_slow += num_steps

    def _give_back_pages(self, plan: _Plan) -> None:
        """Give back the pages of a plan that has been read, unless it was read at such a pace that it would be felt."""
        if self._num_read * plan.num_rows * FAULT_S <= FAULTS_SHARE * (_now() - self._planned_s):
            self._rows.give_back_pages()

    def _next_plan(self, phase: Phase, step: int) -> _Plan:
        if self._plan is not None:
            self._give_back_pages(self._plan)
        plan = self._plan = self._planned(phase, step)
        self._planned_s = _now()
        faults = _num_faults()
        # most of them, as a busy machine makes one or two slow; and beside other threads the interpreter is waited for
        is_slow = 2 * self._num_slow > self._num_read and faults > self._faults
        self._num_read, self._num_slow, self._faults, self._touching = 0, 0, faults, []
        if is_slow:
            flat, threads = plan.rows.addresses, _threads("rows", READING_THREADS)
            parts = (flat[k : k + TOUCHED_ROWS] for k in range(0, flat.size, TOUCHED_ROWS))
            self._touching = [threads.submit(self._rows.touch, part) for part in parts]
        return plan

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
        self._plan = None

    def _planned(self, phase: Phase, step: int) -> _Plan:
        """Find the rows of this reader's steps of the phase from ``step`` on."""
        all_ids, all_numbers = self._planner.plan(phase)
        steps = range(step, self._end(phase, step), self._every)
        mine = slice(step - phase.start, steps.stop - phase.start, self._every)
        source_ids, numbers = all_ids[mine], all_numbers[mine]
        addresses = self._addresses(source_ids.ravel(), numbers.ravel())
        return _Plan(phase, steps, source_ids.shape[1], self._rows.at(addresses), source_ids, numbers)

    def _compiled_locator(self) -> Any:
        """Return what finds rows in compiled code, None without it."""
        if compiled is None:
            return None
        a, b = self._sides
        return compiled.Locator(self._sizes, self._epochs, self._keys, a, b, ROUND_KEYS, *self._rows.places)

    def _addresses(self, ids: IntArray, numbers: IntArray) -> IntArray:
        """Return where rows begin, [n], by their sources and their numbers there."""
        if self._locator is None:
            return self._rows.addresses(ids, self._positions(ids, numbers))
        addresses = np.empty_like(numbers)
        found = 0
        while (found := self._locator.locate(ids, numbers, addresses, found)) < len(ids):
            i = int(ids[found])
            self._meet(i, int(numbers[found] // self._sizes[i]))
        return addresses

    def _meet(self, i: int, epoch: int) -> None:
        """Make an epoch the one whose order of a source is at hand."""
        self._keys[i] = order_key(self._seed, self._sources[i].name, epoch)
        self._epochs[i] = epoch

    def _positions(self, ids: IntArray, numbers: IntArray) -> IntArray:
        """Return where each row lies in its source: the place of its number in the order of its epoch."""
        sizes = self._sizes[ids]
        epochs, positions = np.divmod(numbers, sizes)
        keys = self._keys[ids]
        is_other = epochs != self._epochs[ids]
        for j in np.flatnonzero(is_other).tolist():  # a row of another epoch than the newest that was met
            i, epoch = ids[j], epochs[j]
            if epoch != self._epochs[i]:
                self._meet(i, int(epoch))
            keys[j] = self._keys[i]
        a, b = self._sides
        return permuted(positions, sizes, keys, (a[ids], b[ids]))

    def _end(self, phase: Phase, step: int) -> int:
        """Return the phase's end, or the first step for which a source that must not repeat has too few rows.

        Raises:
            EndOfSource, SourceExhaustedError: that is this step.
        """
        if not self._may_end:
            return phase.end
        drawn = phase.drawn + self._planner.counts(phase).cumsum(axis=0)  # after each step, [L, K]
        over = (drawn > self._ends)[step - phase.start :]
        if not over.any():
            return phase.end
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


_now = time.perf_counter


def _num_faults() -> int:
    """Return how often this process has waited for memory to come from a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


@functools.cache
def _threads(purpose: str, num_threads: int) -> ThreadPoolExecutor:
    """Return this process's threads for a purpose; a forked process starts its own."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix=f"mixer-{purpose}")


os.register_at_fork(after_in_child=_threads.cache_clear)
