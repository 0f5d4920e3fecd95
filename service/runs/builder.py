"""The thread of a run: it decides phases when they are due, and builds batches ahead of those who ask.

A phase is decided when a step of it (or ``feedback_lag`` before it) is first asked for, so that building ahead never
makes a decision older than it must be. A pivot may cut the phase in force while a batch of it is being read: nobody
waits for the reading; what it gives is void, and the reader goes back to where the cut is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from mixer.config.pivots import Pivot
from mixer.delivery.batch import BatchReader
from mixer.delivery.suspension import Suspension
from mixer.errors import JournalError, MixerError, SourceUnavailableError
from mixer.sources.base import EndOfSource
from service.dashboard.checkpoint import save_view
from service.errors import StallError, StoreError
from service.runs.cache import BuiltBatches
from service.runs.context import RunContext, batch_bytes
from service.runs.phases import UndecidedError

IDLE_S = 0.5  # longest sleep of the thread: patience and faults are looked at again

log = logging.getLogger(__name__)


class Builder:
    """Decides and builds in a thread of its own.

    Args:
        parts: of the run.

    Attributes:
        next: the first step that is not built yet.
        end: the first step that the sources have no rows for; None as long as none is known.
        wanted: the newest step that somebody waits for or was given, as far as is known.
        asked: the newest step of a request for several.
        problem: why the run cannot go on just now.
        reader: of the sources; None until they are open.
        headers_before: the first step whose batch may not be asked for alone, as it seems.
    """

    def __init__(self, parts: RunContext) -> None:
        self._parts = parts
        self.next = 0
        self.end: int | None = None
        # after a restart, before the step that makes a decision due
        self.wanted = max(-1, parts.decisions.frontier - 1 - parts.curriculum.feedback_lag)
        self.asked = self.wanted
        self.problem: MixerError | None = None
        self.is_paused, self.headers_before = False, 0
        self.reader: BatchReader | None = None
        self._suspension = Suspension.of(parts.curriculum, parts.walk)
        self._at = 0  # the step that the reader gives next
        self._num_cuts = 0
        self._cuts_seen = 0  # by the reader
        self._snapshot_at, self._view_at = 0, 0  # lines of the journal
        self._turn = threading.RLock()  # deciding, cutting, and keeping what was read: one at a time
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name=f"engine-{parts.name}", daemon=True)

    @property
    def is_ready(self) -> bool:
        """Whether the first batch is built, or was before, and nothing keeps the run from going on."""
        return self.problem is None and (self.next > 0 or self.end is not None)

    @property
    def queue_depth(self) -> int:
        """Batches that are built and lie ahead of the newest step asked for."""
        return max(0, self.next - 1 - self.wanted)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def halt(self) -> None:
        """Build nothing more after what is being read."""
        self._is_stopping = True
        self._wake.set()

    def stop(self, *, within_s: float | None = None) -> None:
        """End, and take a snapshot, unless what is being read does not come in time."""
        self.halt()
        if self._thread.is_alive():
            self._thread.join(within_s)
        if self._thread.is_alive():
            log.warning("run %s: what it reads does not come; no snapshot is taken", self._parts.name)
            return
        if self.problem is None:
            try:
                self._save_walk()
                self._save_view()
                self._parts.served.settle()
            except MixerError as error:
                log.warning("run %s: no snapshot at the end: %s", self._parts.name, error)

    def wake(self) -> None:
        """Look again at what there is to do."""
        self._wake.set()

    def want(self, step: int) -> None:
        """Note that a step is wanted; one beyond reach waits until others have come nearer."""
        if self.wanted < step <= self._reach:
            self.wanted = step
            self._wake.set()

    def ask(self, step: int) -> None:
        """Note that a step will be wanted soon: its phase may be decided, if no losses are looked at for that."""
        step = min(step, self._reach)
        if self.asked < step:
            self.asked = step
            self._wake.set()

    def is_coming(self, step: int) -> bool:
        """Whether a step will be built though nobody does anything: it is decided, or that rests on no losses."""
        return step < self._parts.decisions.frontier or (step <= self.asked and not self._parts.walk.looks_at_losses)

    @property
    def _reach(self) -> int:
        return self._parts.decisions.frontier - 1 + self._parts.settings.ahead_steps

    @property
    def oldest(self) -> int:
        """The oldest step that can be asked for again; whoever asks far ahead of all reports does not move it."""
        newest = min(self.wanted, self._parts.patience.reach)
        return max(0, newest + 1 - self._parts.settings.retain_steps)

    @property
    def run_end(self) -> int:
        """The first step that the run does not have, as far as is known."""
        total = self._parts.curriculum.total_steps
        return total if self.end is None else min(self.end, total)

    def cut(self, pivot: Pivot) -> int:
        """Redraw the region from the first step on that no rank was given, and return it.

        Places of the streams after the cut are forgotten before the journal has the pivot, and what is in memory after
        that, so that a kill at any instant leaves a run that was cut, or one that was not.

        Raises:
            PivotError, InfeasibleRegionError, UnknownSourceError, JournalError: see ``Walk.pivot``; nothing changes.
        """
        parts = self._parts
        with self._turn:
            first = parts.served.close()
            try:
                step = parts.walk.first_cut(first)
                if not parts.rows.is_prepared:
                    parts.store.forget(parts.name, "place", from_step=step + 1, writer=parts.writer)
                is_cut = step < parts.walk.frontier
                parts.walk.pivot(pivot, step, cut=True)
                if is_cut:
                    self._take_back(step)
            finally:
                parts.served.open()
        self._wake.set()
        parts.bell.ring()
        return step

    def _suspend(self, error: SourceUnavailableError, step: int, reader: BatchReader) -> None:
        """Pivot a source out from the step on that cannot be built without it; the reader stays where it is.

        Raises:
            SourceUnavailableError: it is not to be suspended, or cannot be.
        """
        if self._suspension is None:
            raise error
        parts = self._parts
        first = parts.served.close()
        try:
            self._suspension.suspend(error, step, first_free=first)
        finally:
            parts.served.open()
        self._take_back(step)
        self._cuts_seen = self._num_cuts
        self._save("place", step, reader.state_dict(), forget_before=self.oldest)
        parts.bell.ring()

    def _take_back(self, step: int) -> None:
        """Forget what was built from ``step`` on, or is being read."""
        self._parts.window.drop_from(step)
        self.next = min(self.next, step)
        self.end = None if self.end is None or self.end >= step else self.end
        self._num_cuts += 1

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
                log.exception("run %s", self._parts.name)
                self._fail(StallError(f"{type(error).__name__}: {error}"))
                is_busy = False
            if not is_busy:
                self._wake.wait(IDLE_S)

    def _fail(self, error: MixerError) -> None:
        parts = self._parts
        if self.problem is None:
            log.error("run %s cannot go on: %s", parts.name, error)
            parts.on_event("alarm", {"run": parts.name, "code": error.code, "message": str(error)})
        self.problem = error
        parts.bell.ring()

    def _advance(self) -> bool:
        """Build the next batches, deciding their phase first if need be; False if there is nothing to do now."""
        parts = self._parts
        self._lease_early()
        if self.reader is None or self._cuts_seen < self._num_cuts:
            self._place_reader()
        with self._turn:
            reader, cuts, step = self.reader, self._num_cuts, self._at
            if reader is None or self._cuts_seen < cuts:  # a cut came meanwhile
                return True
            num_steps = 1 if step < self.next else self._num_due(step, reader)
            if num_steps == 0:
                return False
        try:
            if self._suspension is not None and step == self.next and parts.decisions.begins(step):
                self._suspension.take_back(step, reader.probe)
            built = parts.read(reader, step, num_steps)
        except UndecidedError:  # cut away meanwhile
            return True
        except SourceUnavailableError as error:
            with self._turn:
                if cuts == self._num_cuts:
                    self._suspend(error, step, reader)
            return True
        except EndOfSource:
            return self._end_at(step, cuts)
        for rank in range(parts.patience.world_size or 1):
            encoded = built.encoded(rank, parts.patience.world_size or 1)
            for each in built.steps[: max(0, self.headers_before - step)]:
                _ = encoded.body(each).headers
        with self._turn:
            if cuts == self._num_cuts:
                self._keep(built)
        parts.bell.ring(below=self.next)
        return True

    def _lease_early(self) -> None:
        """Lease steps before they are asked for; if the database cannot, whoever asks past the lease hears of it.

        Raises:
            JournalError: another process has taken the run over.
        """
        served = self._parts.served
        if isinstance(served.problem, JournalError):  # it stays so
            raise JournalError(str(served.problem))
        served.extend_early()

    def _place_reader(self) -> None:
        """Bring the reader to the next step to be built, or to a saved place before it, from which it reads on."""
        parts, is_first = self._parts, self.reader is None
        with self._turn:
            cuts, up_to = self._num_cuts, self.next
            if is_first and parts.decisions.records:  # after a restart: batches of the newest phase are asked for again
                up_to = parts.decisions.records[-1]["start"] if parts.rows.is_prepared else parts.decisions.frontier
        reader, at = parts.place_reader(up_to, self.reader)
        with self._turn:
            if cuts == self._num_cuts:
                self.reader, self._at, self._cuts_seen = reader, at, cuts
                self.next = at if is_first else self.next

    def _num_due(self, step: int, reader: BatchReader) -> int:
        """Return how many batches from ``step`` on are due, the phase of the first decided and a place before it saved.

        Many are built at once: nothing is done for a few of them as long as half of what is to be ahead is there.
        """
        parts = self._parts
        ahead, most_bytes = parts.settings.ahead_steps, self._most_bytes()
        if step >= self.run_end or step > self.wanted + ahead:
            return 0
        if not parts.window.make_room(most_bytes, below=self.wanted):
            return 0
        if step >= parts.decisions.frontier and not self._decide(step):
            return 0
        if not parts.rows.is_prepared:
            if step and step % parts.settings.place_steps == 0:
                self._save("place", step, reader.state_dict(), forget_before=self.oldest)
            return 1
        reach = self.wanted + ahead + 1 - step
        num_steps = min(parts.together, parts.decisions.frontier - step, self.run_end - step)
        if reach < num_steps:
            num_steps = 0 if step > self.wanted + ahead // 2 else reach
        while num_steps > 1 and not parts.window.make_room(num_steps * most_bytes, below=self.wanted):
            num_steps //= 2
        return num_steps

    def _most_bytes(self) -> int:
        """Of a global batch, before the first one says it: four bytes a token, twice."""
        return 4 * batch_bytes(self._parts.curriculum)

    def _keep(self, built: BuiltBatches) -> None:
        steps = built.steps
        self._at = steps.stop
        if steps.start < self.next:  # it was built before the reader had to go back
            return
        self._parts.window.add(built)
        self.next = steps.stop
        self._parts.counters.batches_built += len(steps)

    def _end_at(self, step: int, cuts: int) -> bool:
        with self._turn:
            if cuts != self._num_cuts:
                return True
            self.end = step
        self._parts.bell.ring()
        return False

    def _decide(self, start: int) -> bool:
        """Decide the phase from ``start`` if it is due and its losses have come."""
        parts = self._parts
        newest = self.wanted if parts.walk.looks_at_losses else max(self.wanted, self.asked)
        if start and newest < start - parts.curriculum.feedback_lag:
            return False
        if start == 0:
            for name, tokens in parts.rows.epoch_tokens().items():
                parts.walk.learn_unique_tokens(name, tokens)
        if start and parts.walk.looks_at_losses and not parts.patience.is_over(start):
            return False
        parts.decisions.note(parts.walk.phase_at(start))
        parts.bell.ring()
        line, many = parts.journal.position.line, parts.settings.snapshot_lines
        if line - self._snapshot_at >= many:
            self._save_walk()
        if line - self._view_at >= max(many, len(parts.journal.indexed) // 2):  # so that checkpoints stay cheap
            self._save_view()
        return True

    def _save_walk(self) -> None:
        parts = self._parts
        state = parts.walk.state_dict(from_step=self.oldest, can_undo=True)
        line = state["journal"][0]
        self._save("walk", line, state, forget_before=line)
        self._snapshot_at = line

    def _save_view(self) -> None:
        parts = self._parts
        try:
            self._view_at = save_view(
                parts.store, parts.name, parts.curriculum.fingerprint, parts.journal, parts.watch, writer=parts.writer
            )
        except (StoreError, JournalError) as error:
            log.warning("run %s: no view of its journal is kept: %s", parts.name, error)

    def _save(self, kind: str, number: int, state: Mapping[str, Any], *, forget_before: int) -> None:
        """Take a snapshot, if the database can: without one a restart takes longer, and nothing else is amiss."""
        try:
            parts = self._parts
            parts.store.save(parts.name, kind, number, state, forget_before=forget_before, writer=parts.writer)
        except StoreError as error:
            log.warning("run %s: no snapshot of its %s at %d: %s", self._parts.name, kind, number, error)
