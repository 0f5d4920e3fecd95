"""One run: its walk, the reader of its sources, and a thread that decides and builds batches ahead.

Global batches are built once and sliced for every rank. A phase is decided when a step of it (or ``feedback_lag``
before it) is first asked for, so that building ahead never makes a decision older than it must be. Steps that have
left memory are built again on request: at once from prepared rows, from streams by a second reader that goes back to
a saved place.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixer.batches import BatchReader, Planner
from mixer.config import Curriculum, Pivot
from mixer.delivery import Rows
from mixer.errors import MixerError, StepError, TopologyError
from mixer.phases import Phase
from mixer.rewards import SourceLosses
from mixer.sources import Progress
from mixer.sources.manifest import smallest_dtype
from mixer.sources.rows import EndOfSource
from service.errors import (
    NotReadyError,
    RequestError,
    RunEndedError,
    RunStateError,
    StallError,
    StepGoneError,
    StoreError,
)
from service.patience import Patience
from service.record import open_lines, recover
from service.settings import Settings
from service.store import Store
from service.window import Bell, Built, Window
from service.wire import Body

if TYPE_CHECKING:
    import datasets

    from mixer.tokenizer import TextTokenizer

IDLE_S = 0.5  # longest sleep of the building thread: patience and faults are looked at again
LOOKS_AT_NO_LOSS = ("static", "proportional", "unimax", "random")

log = logging.getLogger(__name__)


@dataclass
class Counters:
    """What /metrics counts, since the server started."""

    batches_built: int = 0
    batches_served: int = 0
    bytes_served: int = 0
    tokens_served: int = 0
    reports: int = 0
    repeated_reports: int = 0
    rebuilt: int = 0
    last_asked: dict[int, tuple[int, float]] = field(default_factory=dict)  # rank -> (step, when, monotonic)


class Engine:
    """A run that is being served. ``start`` it, and ``stop`` it to leave a snapshot behind.

    Args:
        name: of the run.
        curriculum: what it is.
        store: where its snapshots are, and its journal if that is a server.
        settings: of the server.
        on_event: told (type, record) of each new phase, pivot and fault, from any thread.
        streams, tokenizer: see ``MixtureDataset``.
    """

    def __init__(
        self,
        name: str,
        curriculum: Curriculum,
        store: Store,
        settings: Settings,
        *,
        on_event: Callable[[str, dict[str, Any]], None] = lambda _type, _record: None,
        streams: Mapping[str, datasets.IterableDataset] | None = None,
        tokenizer: TextTokenizer | None = None,
    ) -> None:
        self.name, self.curriculum = name, curriculum
        self.counters = Counters()
        self.phases: list[dict[str, Any]] = []  # records of the journal, all of them
        self.pivots: list[dict[str, Any]] = []
        self.problem: MixerError | None = None  # why it cannot go on just now
        self.is_paused = False
        self._store, self._settings, self._on_event = store, settings, on_event
        self.patience = Patience(lag=curriculum.feedback_lag, wait_s=settings.feedback_wait_s)
        self._num_lines = self._snapshot_at = 0
        lines = open_lines(store, name, curriculum, Path(settings.folder))
        newest = store.newest(name, "walk")
        self.walk, self.journal = recover(curriculum, lines, newest and newest[1], self._on_line)
        self.rows = Rows(curriculum, rank=0, world_size=1, streams=streams, tokenizer=tokenizer)
        self._window = Window(settings.memory_bytes)
        # The newest step asked for, as far as is known: after a restart, before the one that makes a decision due.
        self._wanted = max(-1, self.walk.frontier - 1 - curriculum.feedback_lag)
        self._next = 0  # to be built
        self._end: int | None = None  # the first step that the sources have no rows for
        self._reader: BatchReader | None = None
        self._back = _Back(self)
        self._bell = Bell()
        self._wake = threading.Event()
        self._is_stopping = self._is_draining = False
        self._thread = threading.Thread(target=self._work, name=f"engine-{name}", daemon=True)

    # The life of an engine.

    def start(self) -> None:
        """Begin to decide and build."""
        self._thread.start()

    def drain(self) -> None:
        """Let nobody wait any more: what is there is handed out, and the rest is to be asked for again."""
        self._is_draining = True
        self._bell.ring()

    def stop(self) -> None:
        """Stop deciding and building, take a snapshot, and let go of the journal."""
        self._is_stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        if self.problem is None:
            try:
                self._save_walk()
            except MixerError as error:
                log.warning("run %s: no snapshot at the end: %s", self.name, error)
        self.journal.close()
        self._bell.ring()

    @property
    def is_ready(self) -> bool:
        """Whether the first batch is built, or was before, and nothing keeps the run from going on."""
        return self.problem is None and (self._next > 0 or self._end is not None)

    @property
    def end(self) -> int:
        """The first step that the run does not have, as far as is known."""
        return self.curriculum.total_steps if self._end is None else min(self._end, self.curriculum.total_steps)

    @property
    def next_step(self) -> int:
        """The next step to be built."""
        return self._next

    @property
    def queue_depth(self) -> int:
        """Batches that are built and lie ahead of the newest step asked for."""
        return max(0, self._next - 1 - self._wanted)

    @property
    def bytes_held(self) -> int:
        """Bytes of the batches in memory."""
        return self._window.num_bytes

    def set_paused(self, *, is_paused: bool) -> None:
        """Stop, or go on, deciding and handing out; reports are still taken."""
        self.is_paused = is_paused
        self._wake.set()
        self._bell.ring()

    # What trainers ask.

    def check_ranks(self, rank: int, world_size: int) -> None:
        """Raise RequestError or TopologyError unless this rank can have a share of the global batch."""
        if not 0 <= rank < world_size:
            raise RequestError(f"rank {rank} of {world_size}: ranks count from 0 to world_size - 1")
        if self.curriculum.batch_rows % world_size:
            raise TopologyError(
                f"batch_rows is {self.curriculum.batch_rows}, which {world_size} ranks cannot share evenly; "
                "use a number of ranks that divides it"
            )

    def held(self, step: int, rank: int, world_size: int) -> Body | None:
        """Return a rank's rows if they are encoded already, at no cost; note who asked."""
        built = self._window.get(step)
        body = built.bodies.get((rank, world_size)) if built is not None else None
        if body is None or self.is_paused:
            return None
        self._note_asked(step, rank, world_size)
        return body

    async def body(self, step: int, rank: int, world_size: int, wait_s: float) -> Body:
        """Return a rank's rows of a step, waiting up to ``wait_s`` for them.

        Raises:
            RequestError, TopologyError: a rank that cannot be.
            NotReadyError, RunStateError, StallError: not yet; the same request will do later.
            StepGoneError, RunEndedError: not any more.
        """
        self.check_ranks(rank, world_size)
        self._note_asked(step, rank, world_size)
        await self._until(lambda: step < self._next, step, wait_s)
        built = self._window.get(step)
        if built is None:
            built = await asyncio.to_thread(self._back.read, step)
        body = built.bodies.get((rank, world_size))
        return body if body is not None else await asyncio.to_thread(built.body, rank, world_size)

    async def phase(self, step: int, wait_s: float, *, may_decide: bool) -> Phase:
        """Return the phase that covers a step, having it decided if that is due and ``may_decide``."""
        if may_decide and step >= self.walk.frontier:
            self._want(step)
        await self._until(lambda: step < self.walk.frontier, step, wait_s if may_decide else 0)
        return self.walk.phase_at(step)

    def note_served(self, body: Body, world_size: int) -> None:
        """Count a batch that is handed out."""
        counters, curriculum = self.counters, self.curriculum
        counters.batches_served += 1
        counters.bytes_served += len(body.data)
        counters.tokens_served += curriculum.batch_tokens // world_size

    def progress(self, step: int) -> dict[str, Progress]:
        """Return what each source has given to the batches before ``step``.

        Raises:
            NotReadyError, StepError: a step that is not decided yet, or whose phase is no longer held.
        """
        reader = self._reader
        if reader is None or step > self.walk.frontier:
            raise self._not_yet(step)
        if self.rows.is_prepared:
            return reader.progress(step)
        rows = Planner(self.curriculum, self.walk.phase_at).drawn_before(step).tolist()
        row_length = self.curriculum.sequence_length + 1
        return {
            name: replace(source, rows=num_rows, tokens=num_rows * row_length)
            for (name, source), num_rows in zip(reader.progress(step).items(), rows, strict=True)
        }

    def phases_from(self, step: int, limit: int) -> list[dict[str, Any]]:
        """Return the records of up to ``limit`` phases, that which covers ``step`` first."""
        begin = bisect.bisect_right(self.phases, step, key=lambda record: record["start"] + record["length"])
        return self.phases[begin : begin + limit]

    def journal_lines(self) -> Iterator[bytes]:
        """Yield the journal as it stands, in pieces of whole lines."""
        return self.journal.raw_lines()

    def report(self, step: int, losses: SourceLosses) -> bool:
        """Take in a report; when this returns it is durable. False if it was known.

        Raises:
            RequestError: a rank that cannot be.
            FeedbackError, StepError, JournalError: see ``Walk.report``.
        """
        if not 0 <= losses.rank < self.curriculum.batch_rows:
            raise RequestError(f"rank {losses.rank} reports, but {self.curriculum.batch_rows} rows have no more ranks")
        is_new = self.walk.report(step, losses)
        self.counters.reports += 1
        self.counters.repeated_reports += not is_new
        self._wake.set()
        return is_new

    def pivot(self, pivot: Pivot, at_step: int | None) -> int:
        """Redraw the region and return from which step on; see ``Walk.pivot``."""
        step = self.walk.pivot(pivot, at_step=at_step)
        self._wake.set()
        return step

    def _note_asked(self, step: int, rank: int, world_size: int) -> None:
        self.patience.asked(step, world_size)
        self.counters.last_asked[rank] = (step, time.monotonic())
        if step > self._wanted:
            self._want(step)

    def _want(self, step: int) -> None:
        """Note that a step is wanted; one beyond reach waits until others have come nearer."""
        if self._wanted < step <= max(self._wanted, self.walk.frontier - 1) + self._settings.ahead_steps:
            self._wanted = step
            self._wake.set()

    async def _until(self, is_there: Callable[[], bool], step: int, wait_s: float) -> None:
        deadline = time.monotonic() + min(wait_s, self._settings.max_wait_s)
        while True:
            ticket = self._bell.ticket()
            try:
                self._check_may_come(step)
                if is_there() and not self.is_paused:
                    return
                left = deadline - time.monotonic()
                if left <= 0 or self._is_draining or self._is_stopping:
                    raise self._not_yet(step)
                await asyncio.wait([ticket], timeout=left)
                self._want(step)
            finally:
                self._bell.forget(ticket)

    def _check_may_come(self, step: int) -> None:
        if step < 0:
            raise RequestError(f"step is {step}; steps count from 0")
        if step >= self.end:
            why = "its sources have no more rows" if self._end is not None else "that is its total_steps"
            raise RunEndedError(f"step {step} was asked for, but run {self.name} ends before step {self.end}: {why}")

    def _not_yet(self, step: int) -> MixerError:
        if self.is_paused:
            return RunStateError(f"run {self.name} is paused", retry_after_s=1)
        if self.problem is not None:
            return StallError(f"run {self.name} cannot go on: {self.problem}", retry_after_s=1)
        return NotReadyError(
            f"step {step} is not there yet: steps below {self._next} are built and below {self.walk.frontier} decided",
            retry_after_s=0.2,
        )

    # The thread.

    def _work(self) -> None:
        while not self._is_stopping:
            self._wake.clear()
            try:
                is_busy = not self.is_paused and self._advance()
                self.problem = None
            except MixerError as error:
                self._fail(error)
                is_busy = False
            except Exception as error:  # a thread that died would leave every trainer waiting without a word
                log.exception("run %s", self.name)
                self._fail(StallError(f"{type(error).__name__}: {error}"))
                is_busy = False
            if not is_busy:
                self._wake.wait(IDLE_S)

    def _fail(self, error: MixerError) -> None:
        if self.problem is None:
            log.error("run %s cannot go on: %s", self.name, error)
            self._on_event("alarm", {"run": self.name, "code": error.code, "message": str(error)})
        self.problem = error
        self._bell.ring()

    def _advance(self) -> bool:
        """Build the next batch, deciding its phase first if need be; False if there is nothing to do now."""
        if self._reader is None:
            self._reader = self._open_reader()
        step = self._next
        if step >= self.end or step > self._wanted + self._settings.ahead_steps:
            return False
        if not self._window.make_room(self._batch_bytes(), below=self._wanted):
            return False
        if step >= self.walk.frontier and not self._decide(step):
            return False
        if not self.rows.is_prepared and step and step % self._settings.place_steps == 0:
            self._save("place", step, self._reader.state_dict(), forget_before=self.oldest)
        try:
            built = self.read(self._reader, step)
        except EndOfSource:
            self._end = step
            self._bell.ring()
            return False
        world_size = self.patience.world_size or 1
        for rank in range(world_size):
            built.body(rank, world_size)
        self._window.add(built)
        self._next = step + 1
        self.counters.batches_built += 1
        self._bell.ring()
        return True

    def read(self, reader: BatchReader, step: int) -> Built:
        """Read a global batch, its tokens in the smallest dtype that holds the vocabulary."""
        batch = reader.read(step)
        if not self.rows.is_prepared:  # prepared rows have it already
            dtype = smallest_dtype(self.rows.tokenizer.vocab_size)
            batch = batch._replace(rows=batch.rows.astype(dtype, copy=False))
        return Built(batch)

    def _batch_bytes(self) -> int:
        """At most, before the first batch says it: four bytes a token, twice."""
        return 8 * self.curriculum.batch_rows * (self.curriculum.sequence_length + 1)

    def _decide(self, start: int) -> bool:
        """Decide the phase from ``start`` if it is due and its losses have come."""
        if start and self._wanted < start - self.curriculum.feedback_lag:
            return False
        if start == 0:
            for name, tokens in self.rows.epoch_tokens().items():
                self.walk.learn_unique_tokens(name, tokens)
        looks_at_losses = self.curriculum.policy.name not in LOOKS_AT_NO_LOSS
        if start and looks_at_losses and not self.patience.is_over(start, self.phases[-1]["start"]):
            return False
        self.walk.phase_at(start)
        self._bell.ring()
        if self._num_lines - self._snapshot_at >= self._settings.snapshot_lines:
            self._save_walk()
        return True

    def _save_walk(self) -> None:
        state = self.walk.state_dict(from_step=self.oldest)
        self._save("walk", self.walk.frontier, state, forget_before=self.walk.frontier)
        self._snapshot_at = self._num_lines

    def _save(self, kind: str, step: int, state: Mapping[str, Any], *, forget_before: int) -> None:
        """Take a snapshot, if the database can: without one a restart takes longer, and nothing else is amiss."""
        try:
            self._store.save(self.name, kind, step, state, forget_before=forget_before)
        except StoreError as error:
            log.warning("run %s: no snapshot of its %s at step %d: %s", self.name, kind, step, error)

    def _open_reader(self) -> BatchReader:
        """Open the sources where the newest saved place is, or where the newest phase begins."""
        reader = self.rows.open(self.walk.phase_at, on_read_through=self.walk.learn_unique_tokens)
        if self.rows.is_prepared:
            self._next = self.phases[-1]["start"] if self.phases else 0
            return reader
        place = self._store.newest(self.name, "place", up_to=self.walk.frontier)
        if place is not None:
            self._next, state = place
            reader.load_state_dict(state)
        return reader

    @property
    def oldest(self) -> int:
        """The oldest step that can be asked for again, phases permitting."""
        return max(0, self._wanted + 1 - self._settings.retain_steps)

    def _on_line(self, record: dict[str, Any], is_new: bool) -> None:  # noqa: FBT001  # called by the journal alone
        self._num_lines += 1
        kind = record["type"]
        if kind == "phase":
            self.phases.append(record)
            self.patience.decided(record["start"])
        elif kind == "pivot":
            self.pivots.append(record)
        elif kind == "feedback":
            self.patience.reported(record["step"], record["rank"])
        if is_new and kind in ("phase", "pivot"):
            self._on_event(kind, {"run": self.name, **record})


class _Back:
    """Builds steps again that have left memory; one thread at a time, one step after the other where they stream."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._reader: BatchReader | None = None
        self._next = -1
        self._window = Window(max(engine._settings.memory_bytes // 4, 1))

    def read(self, step: int) -> Built:
        """Return the batch of a step.

        Raises:
            StepGoneError: it has left the retention window.
        """
        engine = self._engine
        if step < engine.oldest:
            raise StepGoneError(f"step {step} is gone: steps from {engine.oldest} on can be asked for again")
        with self._lock:
            built = self._window.get(step) or engine._window.get(step)
            if built is not None:
                return built
            try:
                engine.walk.phase_at(step)
            except StepError as error:
                raise StepGoneError(f"step {step} is gone: {error}") from error
            reader = self._reader_at(step)
            while True:
                built = engine.read(reader, self._next)
                self._window.make_room(built.num_bytes, below=step + 1)
                self._window.add(built)
                self._next += 1
                engine.counters.rebuilt += 1
                if built.batch.step == step:
                    return built

    def _reader_at(self, step: int) -> BatchReader:
        engine = self._engine
        if engine.rows.is_prepared:
            self._next = step
            self._reader = self._reader or engine.rows.open(engine.walk.phase_at)
            return self._reader
        place = engine._store.newest(engine.name, "place", up_to=step)
        begin = 0 if place is None else place[0]
        if self._reader is None or not begin <= self._next <= step:
            if place is None:
                engine.walk.phase_at(0)  # the beginning, if it is still held
            self._reader = engine.rows.open(engine.walk.phase_at)
            self._next = begin
            if place is not None:
                self._reader.load_state_dict(place[1])
        return self._reader
