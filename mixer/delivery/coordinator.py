"""Who reads what, and who knows where the run stands: the parts of ``MixtureDataset`` that need no torch.

One ``Coordinator`` per rank holds the walk and the place of the run. Readers, in this process or in DataLoader
workers, ask it for phases and tell it where their streams stand, so that the state of the whole is taken in one place.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mixer.config.curriculum import Curriculum, Pivot
from mixer.delivery.batch import BatchReader, Planner, PreparedReader
from mixer.delivery.probes import ProbeRows
from mixer.errors import StateMismatchError, TopologyError
from mixer.losses import SourceLosses
from mixer.region.regimes import Regime
from mixer.sampling.phases import Phase
from mixer.sources.opening import open_sources
from mixer.sources.packing import smallest_dtype
from mixer.walk.state import check_state

if TYPE_CHECKING:
    import datasets

    from mixer.sources.prepared.rows import Prepared
    from mixer.sources.shared import Participant
    from mixer.sources.tokenizer import TextTokenizer

STATE_VERSION = 1


class Decider(Protocol):
    """What delivery needs of a walk; ``Walk`` decides, ``Replay`` repeats what was decided.

    Attributes:
        curriculum: the run.
        forked_at: the first step that a fork decided on its own; None if the run is no fork.
    """

    curriculum: Curriculum
    forked_at: int | None

    @property
    def can_pivot(self) -> bool:
        """Whether the region can be redrawn."""

    @property
    def forked_from(self) -> str | None:
        """Fingerprint of the curriculum that decided the steps before ``forked_at``."""

    @property
    def frontier(self) -> int:
        """The first step that no phase covers."""

    @property
    def regimes(self) -> tuple[Regime, ...]:
        """The regimes planned, in order of their first step."""

    def regime_at(self, step: int) -> Regime:
        """Return the regime that ``step`` lies in."""

    def phase_at(self, step: int) -> Phase:
        """Return the phase that covers ``step``."""

    def report(self, step: int, losses: SourceLosses) -> bool:
        """Take in the losses of a step; False if they are known."""

    def report_probe(self, step: int, losses: SourceLosses) -> bool:
        """Take in the held-out losses of the probe of a step; False if they are known."""

    def probe_step(self, until: int) -> int | None:
        """Return the newest step up to ``until`` that offers a probe."""

    def has_probe(self, step: int, rank: int) -> bool:
        """Return whether a rank has answered the probe of a step."""

    def pivot(self, pivot: Pivot, at_step: int | None = None, *, cut: bool = False) -> int:
        """Redraw the region, and return from which step on."""

    def learn_unique_tokens(self, name: str, tokens: int) -> None:
        """Take in the length of one epoch of a source."""

    def is_of_parent(self, state: Mapping[str, Any]) -> bool:
        """Return whether a state that fits the parent's curriculum was saved before the fork; only asked of a fork."""

    def close_journal(self) -> None:
        """Let go of the journal, in a copy of the process that does not decide."""

    def note_skipped(self, name: str, record: str) -> None:
        """Take in that a source left a record out: where it stands, and why."""

    def state_dict(self, from_step: int | None = None) -> dict[str, Any]:
        """Return all that shapes the rest of the walk, and the phases from ``from_step`` on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


class ReaderFactory:
    """Where the run's rows come from: prepared on disk, or streamed; opens one reader after another.

    Pickles: each process opens its own files.

    Args:
        curriculum: names the sources, or the ``prepared`` folder.
        rank, world_size: whose rows of the global batch.
        streams: data sets by source name, instead of what the config names.
        tokenizer: instead of the one that the config names.
        prepared: what lies in the ``prepared`` folder, opened already: several runs may read it at once.
        member: the run's part in what the runs of this process stream together.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        *,
        rank: int,
        world_size: int,
        streams: Mapping[str, datasets.IterableDataset] | None = None,
        tokenizer: TextTokenizer | None = None,
        prepared: Prepared | None = None,
        member: Participant | None = None,
    ) -> None:
        curriculum.rows_of_rank(world_size)
        self.curriculum = curriculum
        self.rank, self.world_size = rank, world_size
        self._streams = streams
        self._tokenizer = tokenizer
        self._member = member
        self._known: dict[str, str] = {}
        self._prepared: Prepared | None = None
        if curriculum.prepared is not None:
            from mixer.sources.prepared.rows import Prepared

            self._prepared = prepared or Prepared.open(curriculum.resolve(curriculum.prepared))
            self._prepared.check_against(curriculum, tokenizer.fingerprint if tokenizer is not None else None)
            targets = {target.name: self._prepared.held_out(target.name) for target in curriculum.targets}
            read = {**self._prepared.sources, **targets}
            self._known = {name: f"rows {rows.fingerprint}" for name, rows in read.items()}

    @property
    def is_prepared(self) -> bool:
        """Whether any step can be read at any time."""
        return self._prepared is not None

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer given, the one that made the prepared rows, or the curriculum's; loaded when first needed."""
        if self._tokenizer is None:
            from mixer.sources.tokenizer_training import (
                load_tokenizer,  # imported late: prepared rows alone need no tokenizer
            )

            self._tokenizer = (
                load_tokenizer(self.curriculum, self._streams) if self._prepared is None else self._prepared.tokenizer()
            )
        return self._tokenizer

    @property
    def token_dtype(self) -> np.dtype[Any]:
        """The smallest type of token ids that holds the vocabulary, uint8, uint16 or uint32: prepared rows have it."""
        return smallest_dtype(self.tokenizer.vocab_size) if self._prepared is None else self._prepared.dtype

    @cached_property  # every report of a rank proves it
    def fingerprint(self) -> str:
        """Digest of the run and of the rows it reads."""
        return self.fingerprint_under(self.curriculum.fingerprint)

    def fingerprint_under(self, curriculum: str) -> str:
        """Return the digest of these rows under the curriculum of that fingerprint."""
        rows = f"rows {self._prepared.fingerprint}" if self._prepared else f"tokenizer {self.tokenizer.fingerprint}"
        return f"{curriculum} with {rows}"

    def probe_rows(self) -> ProbeRows | None:
        """Return this rank's part of the held-out rows of each probe; None if the curriculum asks for none.

        Raises:
            ConfigError: sources whose held-out rows cannot be read, or that have none.
            TopologyError: fewer rows than ranks.
        """
        if self.curriculum.probes is None:
            return None
        return ProbeRows(self.curriculum, self._prepared, rank=self.rank, world_size=self.world_size)

    def stop_sharing(self) -> None:
        """Let other runs of this process keep nothing for this one."""
        if self._member is not None:
            self._member.leave()

    def known(self) -> dict[str, str]:
        """Return which data each source is of, for a journal's header; of streams, those that were opened."""
        return dict(self._known)

    def epoch_tokens(self) -> dict[str, int]:
        """Return the tokens of one epoch of each source, where they are known beforehand."""
        if self._prepared is None:
            return {}
        return {name: rows.num_rows * rows.row_length for name, rows in self._prepared.sources.items()}

    def open(
        self,
        phase_at: Callable[[int], Phase],
        *,
        worker: int = 0,
        num_workers: int = 1,
        on_read_through: Callable[[str, int], None] | None = None,
        on_skipped: Callable[[str, str], None] | None = None,
    ) -> BatchReader:
        """Open the reader of every ``num_workers``-th step, from ``worker`` on.

        Raises:
            ConfigError, SourceError, TokenizerError: what cannot be read.
            TopologyError: several readers of streams that cannot agree on when the run ends.
        """
        curriculum = self.curriculum
        planner = Planner(curriculum, phase_at, rank=self.rank, world_size=self.world_size)
        if self._prepared is not None:
            sources = [self._prepared.sources[name] for name in curriculum.names]
            return PreparedReader(curriculum, sources, planner, every=num_workers)
        num_readers = self.world_size * num_workers
        ending = [source.name for source in curriculum.sources if source.on_exhausted == "stop"]
        if num_readers > 1 and ending:
            raise TopologyError(
                f"source {ending[0]} is to stop the run when it runs dry, but {num_readers} readers stream it "
                "separately and would end at different steps; prepare the sources (`mixer prepare`), read with one "
                "process, or set on_exhausted to repeat"
            )
        from mixer.delivery.streamed import StreamedReader  # imported late: brings `datasets`, 0.7 s and 70 MB

        streams = open_sources(
            curriculum,
            self.tokenizer,
            self._streams,
            reader=self.rank * num_workers + worker,
            num_readers=num_readers,
            member=self._member,
        )
        fingerprints = {rows.name: getattr(rows, "fingerprint", None) for rows in streams}
        self._known = {name: fingerprint for name, fingerprint in fingerprints.items() if fingerprint is not None}
        tell = on_read_through if num_readers == 1 else None  # a share says nothing of the whole
        return StreamedReader(streams, planner, every=num_workers, on_read_through=tell, on_skipped=on_skipped)


@dataclass
class _Stand:
    """Where one reader's streams stood after some of its steps: (next step of the run, state), oldest first."""

    states: deque[tuple[int, dict[str, Any]]] = field(default_factory=deque)

    def at(self, step: int) -> dict[str, Any] | None:
        """Return the state after this reader's last step below ``step``."""
        return next((state for end, state in reversed(self.states) if end <= step), None)

    def forget_before(self, step: int) -> None:
        """Drop states that no resume from ``step`` on needs."""
        while len(self.states) > 1 and self.states[1][0] <= step:
            self.states.popleft()


@dataclass(frozen=True)
class Position:
    """Where an iteration begins: step and row of the run, and where each of a rank's readers stands.

    Worker w composes every N-th step from the w-th on. Streams belong to steps, not to workers: reader r of N gives
    the steps that leave r when divided by N, whichever worker composes them. ``readers`` is empty at the beginning of
    the run, and over prepared rows, where the step says it all.
    """

    step: int
    row: int
    readers: list[dict[str, Any]]

    def of_reader(self, reader: int, num_readers: int) -> dict[str, Any] | None:
        """Return where one reader's streams are to go on; None at the beginning."""
        if self.readers and len(self.readers) != num_readers:
            known = len(self.readers)
            raise TopologyError(
                f"the saved state is of streams read by {known} readers a rank, and now there are {num_readers}; "
                f"use num_workers={known}{' or 0' if known == 1 else ''}, or prepare the sources "
                "(`mixer prepare`), which any number of workers and ranks can go on with"
            )
        return (self.readers[reader] or None) if self.readers else None


class Coordinator:
    """The place where one rank's run is known: its walk, the next step, and where every reader stands.

    Args:
        walk: who decides.
        rows: what is read.
    """

    def __init__(self, walk: Decider, rows: ReaderFactory) -> None:
        self.walk = walk
        self.step = 0  # next to be delivered, as far as is known here
        self.row = 0  # rows of it that were delivered, when single rows are
        self._rows = rows
        self._lock = threading.RLock()
        self._loaded: list[dict[str, Any]] = []  # of each reader, at ``step``; empty is the beginning
        self._stands: dict[int, _Stand] = {}
        self._num_readers = 0  # in workers
        self._iteration: Hashable = None  # of the loader whose workers read
        self._beginning = Position(0, 0, [])  # of that iteration

    def methods(self) -> dict[str, Callable[..., Any]]:
        """Return what DataLoader workers may call."""
        return {
            "phase": self.phase_at,
            "read_through": self.read_through,
            "skipped": self.skipped,
            "begin": self.begin,
            "stand": self.stand,
        }

    @property
    def has_workers(self) -> bool:
        """Whether workers compose the batches, so that this process sees them only when they are reported."""
        return self._num_readers > 0

    @property
    def num_readers(self) -> int:
        """How many read this rank's share of the streams; over prepared rows it does not matter, and is 1."""
        return 1 if self._rows.is_prepared else max(1, self._num_readers)

    def phase_at(self, step: int) -> Phase:
        """Return the phase of a step; before the first, the walk learns how long the sources are."""
        if step == 0:
            for name, tokens in self._rows.epoch_tokens().items():
                self.walk.learn_unique_tokens(name, tokens)
        return self.walk.phase_at(step)

    def read_through(self, name: str, tokens: int) -> None:
        """Note the length of one epoch of a source."""
        self.walk.learn_unique_tokens(name, tokens)

    def skipped(self, name: str, record: str) -> None:
        """Note that a source left a record out."""
        self.walk.note_skipped(name, record)

    def beginning(self, own: dict[str, Any] | None = None) -> Position:
        """Return where the run stands now.

        Args:
            own: where the streams of this process stand, if it reads them itself.
        """
        readers = [own] if own is not None else self._reader_states()
        return Position(self.step, self.row, [] if self._rows.is_prepared else readers)

    def begin(self, iteration: Hashable, num_readers: int, beginning: Position | None) -> Position:
        """Return where a loader's iteration begins: what its first worker says, the same for all.

        Args:
            iteration: which one; workers ask one after the other, while batches of the first may be trained on.
            num_readers: workers of the loader.
            beginning: where the run stood when the worker was made; None asks where it stands now.
        """
        with self._lock:
            if self._iteration != iteration:
                self._beginning = beginning or self.beginning()
                self._iteration, self._num_readers = iteration, num_readers
                self._loaded = self._beginning.readers
                self._stands.clear()
            return self._beginning

    def read_here(self) -> Position:
        """Return where this process is to go on with reading, now that no workers do."""
        with self._lock:
            beginning = self.beginning()
            self._loaded = beginning.readers
            self._stands.clear()
            self._num_readers, self._iteration = 0, None
            return beginning

    def leave_to_parent(self) -> None:
        """Let go of what a forked copy must not hold: the journal's lock belongs to the process that decides."""
        self.walk.close_journal()

    def stand(self, iteration: Hashable, reader: int, end: int, state: dict[str, Any]) -> None:
        """Note where a reader's streams stand after the step before ``end``, if its iteration is the newest."""
        with self._lock:
            if iteration != self._iteration:
                return
            stand = self._stands.setdefault(reader, _Stand())
            stand.states.append((end, state))
            stand.forget_before(self.step)

    def delivered(self, step: int) -> None:
        """Note that a step was trained on, which is how this process hears of what workers composed."""
        with self._lock:
            if step >= self.step:
                self.step, self.row = step + 1, 0
            for stand in self._stands.values():
                stand.forget_before(self.step)

    def _reader_states(self) -> list[dict[str, Any]]:
        """Where each reader of this rank stands at ``step``: empty for one, or for all, at the beginning."""
        if not self._stands:
            return self._loaded
        loaded = self._loaded or [{}] * self._num_readers
        stands = [self._stands.get(reader, _Stand()) for reader in range(self._num_readers)]
        return [stand.at(self.step) or before for stand, before in zip(stands, loaded, strict=True)]

    def _is_of_parent(self, state: Mapping[str, Any]) -> bool:
        """Whether a state was saved by the run that this one was forked from, which may have had the same config."""
        parent = self.walk.forked_from
        if parent is None or state.get("fingerprint") != self._rows.fingerprint_under(parent):
            return False
        return self.walk.is_of_parent(state["walk"])

    def state_dict(self, own: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return plain data from which the rest of the run follows exactly.

        Args:
            own: where the streams of this process stand, if it reads them itself.
        """
        with self._lock:
            readers = [own] if own is not None else self._reader_states()
            return {
                "version": STATE_VERSION,
                "fingerprint": self._rows.fingerprint,
                "step": self.step,
                "row": self.row,
                "world_size": self._rows.world_size if readers else None,
                "readers": [] if self._rows.is_prepared else readers,
                "walk": self.walk.state_dict(from_step=max(0, self.step - 1)),  # whose phase a worker's state names
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Go on from a state, and return where each of its readers stood.

        A fork takes its parent's state of the step where it begins: where the sources stood, not what the walk knew.

        Raises:
            StateMismatchError: a state of another run, or of streams read by another number of ranks.
        """
        is_parents = self._is_of_parent(state)
        expected = state["fingerprint"] if is_parents else self._rows.fingerprint
        check_state(state, version=STATE_VERSION, fingerprint=expected, what="data set state")
        forked_at = self.walk.forked_at
        if is_parents and (state["step"], state["row"]) != (forked_at, 0):
            raise StateMismatchError(
                f"the state is of step {state['step']} of the run that this one was forked from at step {forked_at}; "
                f"load its state of step {forked_at}, or fork it at step {state['step']}"
            )
        if state["readers"] and state["world_size"] != self._rows.world_size:
            raise StateMismatchError(
                f"the saved state is of streams read by {state['world_size']} ranks, and now there are "
                f"{self._rows.world_size}; use {state['world_size']}, or prepare the sources (`mixer prepare`), which "
                "any number of ranks can go on with"
            )
        with self._lock:
            if not is_parents:
                self.walk.load_state_dict(state["walk"])
            self.step, self.row = state["step"], state["row"]
            self._loaded = list(state["readers"])
            self._stands.clear()
            self._num_readers, self._iteration = 0, None
        return self._loaded
