"""One run as the routes see it: an engine puts together its decisions, its batches, and what trainers tell it.

Each part does one thing, and routes ask it for that: ``decisions`` has the phases, ``builder`` builds batches ahead,
``batches`` hands them out, ``patience`` waits for reports, ``watch`` has what a page shows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mixer.config.curriculum import Curriculum
from mixer.config.pivots import Pivot
from mixer.config.rules import resolved
from mixer.delivery.batch import Planner
from mixer.delivery.readers import ReaderFactory
from mixer.errors import ConfigError, RepeatedRowsError, StateMismatchError
from mixer.journal.words import alarm_in_words
from mixer.losses import SourceLosses
from mixer.sampling.phases import Phase
from mixer.sources.base import Progress
from mixer.walk.silence import silence
from mixer.walk.walk import Walk
from service.dashboard import checkpoint as views
from service.dashboard.columns import Watch
from service.errors import RequestError
from service.runs.builder import Builder
from service.runs.cache import BatchCache
from service.runs.context import RunContext, check_memory, window_bytes
from service.runs.given import GivenBatches, Said
from service.runs.handout import Handout
from service.runs.leases import StepLeases
from service.runs.phases import PhaseIndex, UndecidedError
from service.runs.probes import ServedProbes
from service.runs.report_wait import ReportWait
from service.runs.reports import Reports
from service.runs.samples import PostedSamples
from service.runs.sharing import Sharing
from service.runs.step_wait import StepWait
from service.settings import Settings
from service.storage.journal_lines import TableLines
from service.storage.run_journal import RunJournal, open_lines, recover
from service.storage.store import Store
from service.wire.batches import Body
from service.wire.schemas import Sample

if TYPE_CHECKING:
    import datasets

    from mixer.sources.tokenizer import TextTokenizer

log = logging.getLogger(__name__)


class Engine:
    """A run that is being served. ``start`` it, and ``stop`` it to leave a snapshot behind.

    Args:
        name: of the run.
        curriculum: what it is.
        store: where its snapshots are, and its journal if that is a server.
        settings: of the server.
        on_event: told (type, record) of each new phase, pivot, alarm of the guard and fault, from any thread.
        streams, tokenizer: see ``MixtureDataset``.
        sharing: what the runs of a server read together.
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
        sharing: Sharing | None = None,
    ) -> None:
        check_memory(curriculum, settings)
        self.name, self.curriculum = name, curriculum
        self.pivots: list[dict[str, Any]] = []
        self.alarms: list[dict[str, Any]] = []  # of the guard
        self._is_silence_told = False
        self.said = Said()  # by the newest reports
        self.patience = ReportWait(
            lag=curriculum.feedback_lag,
            wait_s=settings.feedback_wait_s,
            unreported_steps=max(1, settings.retain_steps // 2),  # so that a trainer may go back by as much
        )
        self._settings, self._on_event = settings, on_event
        self.decisions = PhaseIndex(curriculum.names, curriculum.model_dump(mode="json"))
        self.watch = Watch()  # what a page is told
        sharing = sharing or Sharing()
        rows = ReaderFactory(
            curriculum,
            rank=0,
            world_size=1,
            streams=streams,
            tokenizer=tokenizer,
            prepared=sharing.prepared(curriculum),
            member=sharing.streams.join(),
        )
        if rows.masked_sources:
            raise ConfigError(
                f"source {rows.masked_sources[0]} has a loss mask, which batches over HTTP do not carry; train with "
                "MixtureDataset, or remove the mask"
            )
        lines = open_lines(store, name, Path(settings.folder), fsync=settings.fsync)
        # beside SQLite the lock of the journal's file says whose the run is
        writer = lines.writer if isinstance(lines, TableLines) else store.take_over(name)
        self.journal = RunJournal(lines, self._on_line)
        self.walk = self._recover(store)
        self.served = StepLeases(store, name, writer=writer, decided=self.decisions.frontier)
        self.samples = PostedSamples(store, name, writer=writer)
        self._parts = RunContext(
            name=name,
            curriculum=curriculum,
            settings=settings,
            store=store,
            writer=writer,
            journal=self.journal,
            walk=self.walk,
            decisions=self.decisions,
            patience=self.patience,
            rows=rows,
            served=self.served,
            window=BatchCache(window_bytes(curriculum, settings, is_prepared=rows.is_prepared)),
            watch=self.watch,
            on_event=on_event,
        )
        self.counters = self._parts.counters
        self.builder = Builder(self._parts)
        self.waits = StepWait(self._parts, self.builder)
        self._given = GivenBatches()
        self.batches = Handout(self._parts, self.builder, self.waits, self._given)
        self.probes = ServedProbes(self._parts)
        self._reports = Reports(self._parts, self._given, self.batches.built)

    def _recover(self, store: Store) -> Walk:
        """Return the walk as it stands at the end of the journal, having been told of every line."""
        view, walk = (self._snapshot(store, kind) for kind in (views.KIND, "walk"))
        if view is not None:
            try:
                views.show_view(view, self.curriculum.fingerprint, self.journal, self.watch)
            except StateMismatchError as error:
                log.warning("run %s: the view of its journal is passed over: %s", self.name, error)
        recovered = recover(self.curriculum, self.journal, walk)
        since = self.decisions.records[-2:][0]["start"] if self.decisions.records else 0  # a pivot may undo the newest
        self.patience.resume(recovered.reported, since=since - self.curriculum.feedback_lag)
        return recovered

    def _snapshot(self, store: Store, kind: str) -> dict[str, Any] | None:
        try:
            newest = store.newest(self.name, kind)
        except StateMismatchError as error:
            log.warning("run %s: %s; the journal is read instead", self.name, error)
            return None
        return None if newest is None else newest[1]

    # The life of an engine.

    def start(self) -> None:
        """Begin to decide and build."""
        self.builder.start()

    def drain(self) -> None:
        """Build no more, and let nobody wait: what is there is handed out, and the rest is to be asked for again."""
        self.builder.halt()
        self.waits.drain()

    def stop(self, *, within_s: float | None = None) -> None:
        """Stop deciding and building, take a snapshot, and let go of the journal.

        Args:
            within_s: how long to wait for a batch that is being read; then no snapshot is taken. None: for ever.
        """
        self.drain()
        self.builder.stop(within_s=within_s)
        self._parts.rows.stop_sharing()
        self.journal.close()

    @property
    def parent(self) -> dict[str, Any] | None:
        """Fingerprint of the run that this one was forked from, and its first own step; None if it is no fork."""
        if self.walk.forked_from is None:
            return None
        return {"fingerprint": self.walk.forked_from, "step": self.walk.forked_at}

    @property
    def tokenizer(self) -> TextTokenizer:
        """What turned text into token ids; raises TokenizerError if the run has only the ids."""
        return self._parts.rows.tokenizer

    def set_paused(self, *, is_paused: bool) -> None:
        """Stop, or go on, deciding and handing out; reports are still taken."""
        self.builder.is_paused = is_paused
        self.builder.wake()
        self._parts.bell.ring()

    # What trainers ask.

    async def probe(self, step: int, rank: int, world_size: int, wait_s: float) -> Body:
        """Return a rank's held-out rows of the probe of a step; waits up to ``wait_s`` for its decision.

        Raises:
            ProbeNotOfferedError: the step offers none.
            RequestError, TopologyError, NotReadyError, RunStateError, StallError, RunEndedError: as ``encoded``.
        """
        self.batches.check_ranks(rank, world_size)
        if step >= self.decisions.frontier:
            self.builder.want(step)
        await self.waits.until(lambda: step < self.decisions.frontier, step, wait_s, claims=True)
        return await asyncio.to_thread(self.probes.body, self.decisions.at(step), step, rank, world_size)

    async def phase(self, step: int, wait_s: float, *, may_decide: bool) -> Phase:
        """Return the phase that covers a step; whoever ``may_decide`` has it decided if that is due.

        That is a trainer, which draws by these weights: then no pivot changes this step any more.
        """
        if may_decide and step >= self.decisions.frontier:
            self.builder.want(step)
        await self.waits.until(
            lambda: step < self.decisions.frontier, step, wait_s if may_decide else 0, claims=may_decide
        )
        try:
            found = self.decisions.at(step)
        except UndecidedError:  # cut away meanwhile
            raise self.waits.not_yet(step) from None
        if may_decide:
            self._given.note_weights(found.start)
        return found

    def progress(self, step: int) -> dict[str, Progress]:
        """Return what each source has given to the batches before ``step``.

        Raises:
            NotReadyError, StepError: a step that is not decided yet, or whose phase is no longer held.
        """
        reader, decisions = self.builder.reader, self.decisions
        if reader is None or not 0 < decisions.frontier >= step:
            raise self.waits.not_yet(step)
        if self._parts.rows.is_prepared:
            return reader.progress(step)
        rows = Planner(self.curriculum, decisions.at).drawn_before(step).tolist()
        row_length = self.curriculum.sequence_length + 1
        return {
            name: replace(source, rows=num_rows, tokens=num_rows * row_length)
            for (name, source), num_rows in zip(reader.progress(step).items(), rows, strict=True)
        }

    def journal_lines(self) -> Iterator[bytes]:
        """Yield the journal as it stands, in pieces of whole lines."""
        return self.journal.raw_lines()

    def report(self, step: int, losses: SourceLosses, world_size: int | None = None) -> bool:
        """Take in a report; when this returns it is durable. False if that rank had reported the step before.

        Args:
            step: which one.
            losses: of the rows that a rank was given.
            world_size: of how many ranks, if it says so.

        Raises:
            RequestError: a rank that cannot be.
            FeedbackError: a batch that the rank was not given, or more than there is in it.
            RepeatedRowsError: rows that count for another rank.
            StepError, JournalError: see ``Walk.report``.
        """
        if not 0 <= losses.rank < self.curriculum.batch_rows:
            raise RequestError(f"rank {losses.rank} reports, but {self.curriculum.batch_rows} rows have no more ranks")
        try:
            is_new = self._reports.take(step, losses, world_size)
        except RepeatedRowsError:
            self.patience.reported(step, losses.rank)  # there is no more to wait for
            self.builder.wake()
            raise
        self.counters.reports += 1
        self.counters.repeated_reports += not is_new
        self.builder.wake()
        return is_new

    def take_sample(self, sample: Sample) -> None:
        """Keep a text that the model wrote, and tell those who look on; durable when this returns."""
        self.samples.add(sample.step, sample.model_dump())
        self._on_event("sample", {"run": self.name, "step": sample.step, "score": sample.score})

    def pivot(self, pivot: Pivot, at: Literal["next", "now"] | int = "next") -> int:
        """Redraw the region and return from which step on; see ``Walk.pivot``.

        Args:
            pivot: the new bounds.
            at: the end of the newest phase, a later step, or now: the first step on that no rank was given, which cuts
                the newest phase.
        """
        asked = resolved(pivot, self.curriculum.policy).model_dump(mode="json")
        known = next((record for record in reversed(self.pivots) if _is_same(record, asked)), None)
        if known is not None and any((r.name, r.start) == (pivot.name, known["at_step"]) for r in self.walk.regimes):
            return int(known["at_step"])  # asked for again: the answer was lost
        if at == "now":
            return self.builder.cut(pivot)
        step = self.walk.pivot(pivot, at_step=None if at == "next" else at)
        self.builder.wake()
        return step

    def _on_line(self, record: dict[str, Any], number: int, is_new: bool) -> None:  # noqa: FBT001  # as journals call it
        self.watch.add(record, is_new=is_new, number=number)
        kind = record["type"]
        if kind == "phase":
            self.decisions.add(record)
            self.patience.decided(record["start"])
            if is_new and not self._is_silence_told and not self.patience.last_reports():
                decider = record.get("rule", {}).get("policy", {}).get("name")
                told = silence(self.curriculum, record["kind"], record["start"], decider)
                self._is_silence_told = told is not None
                if told is not None:
                    log.warning("run %s: %s", self.name, told)
        elif kind == "pivot":
            self.pivots.append(record)
            if record["at_step"] < record["decided_before"]:
                self.decisions.cut(record)
                self.patience.cut(self.decisions.records[-1]["start"] if self.decisions.records else 0)
        elif kind == "alarm":
            self.alarms.append(record)
            if is_new:
                message = alarm_in_words(record)
                log.warning("run %s: %s", self.name, message)
                self._on_event("alarm", {"run": self.name, "code": "guard", "message": message, **record})
        elif kind == "feedback":
            self.said.note(record)
            if is_new:
                self.patience.reported(record["step"], record["rank"])
        if is_new and kind in ("phase", "pivot"):
            self._on_event(kind, {"run": self.name, **record})


def _is_same(record: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Return whether a pivot line is of the pivot that is asked for, with these fields."""
    return all(record.get(key) == asked.get(key) for key in Pivot.model_fields)
