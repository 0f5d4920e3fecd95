"""Packed token batches in the mixture that the walk decides: a PyTorch ``IterableDataset`` with exact state.

Batches are composed last: in this process a phase decided after step s is in batch s + 1. DataLoader workers compose
ahead and ask this process for each phase (``channel``), so that a change arrives exactly at its announced step; with a
``feedback_lag`` of at least the batches that the loader prefetches, the run does not depend on timing.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from mixer.config.curriculum import Curriculum
from mixer.delivery.batch import BatchReader, TokenBatch
from mixer.delivery.consumers import check_consumer
from mixer.delivery.coordinator import STATE_VERSION, Coordinator, Decider, Position, ReaderFactory
from mixer.delivery.feedback import LossAccumulator
from mixer.delivery.mesh import MeshRanks, Role
from mixer.delivery.pickled import PickledBatch
from mixer.delivery.probing import Probing
from mixer.delivery.ranks import Claim, Ranks, default_ranks
from mixer.delivery.suspension import Suspension, may_suspend, refused
from mixer.delivery.tensors import Batch, single_rows, tensors_of
from mixer.delivery.workers import Address, PhaseServer, RemotePhases
from mixer.errors import ConfigError, InvalidLossError, ProbeNotOfferedError, StateMismatchError, TopologyError
from mixer.journal.file import Journal
from mixer.losses import SourceLosses, check_shapes
from mixer.sampling.phases import Phase
from mixer.sources.base import EndOfSource, Progress
from mixer.sources.packing import WIDE
from mixer.walk.probes import NO_PROBES
from mixer.walk.state import check_state
from mixer.walk.walk import Walk

if TYPE_CHECKING:
    import datasets
    from torch.distributed.device_mesh import DeviceMesh

    from mixer.sources.tokenizer import TextTokenizer

_copies = itertools.count(1)


class MixtureDataset(IterableDataset[Batch]):
    """The run's batches, from the step where it stands to ``total_steps``.

    A batch is a dict: ``input_ids`` and ``labels`` int64 [b, T] (``labels[:, t]`` follows ``input_ids[:, t]``),
    ``source_ids`` int64 [b], and the ints ``step`` and ``phase``; b is ``batch_rows`` / ``world_size``. Iterating again
    goes on where it stopped; stopped at any step and restored, the rest of the batches are bit-identical.

    With DataLoader workers this process hears of a batch when it is reported: ``state_dict`` is then the state after
    the newest reported step; a trainer that reports nothing says which batches it trained on with ``delivered``, or
    begins again where the data set stood.

    A streamed source whose ``on_failure`` is ``suspend`` needs one reading process: one rank without workers.

    Args:
        curriculum: the run.
        rank, world_size: whose rows of the global batch to deliver; those of ``torch.distributed`` by default, or all.
        process_group: the ranks that share the global batch, if they are not all of ``torch.distributed``.
        mesh: all ranks of a trainer that is parallel in other ways, too, instead of the three above: rank and world
            size are those of its data-parallel axes, and every report reaches all of its ranks.
        mesh_axes: what axes with names of your own are: "data" if their ranks have other rows, "context" if other
            tokens of the same rows, "model" if the same tokens.
        walk: who decides; by default a ``Walk`` of its own. A ``Replay`` repeats a recorded run.
        journal: where its own walk is recorded: an open Journal, or a path that is created or gone on with.
        streams: Hugging Face ``IterableDataset`` objects by source name, instead of what the config names.
        tokenizer: instead of the one that the config names.
        batches: yield whole batches; False yields rows (``input_ids`` [T], ...) for trainers that collate.
        provenance: add ``row_numbers`` int64 [b]: the number of each row in its source, over all epochs.
        compact: leave ``input_ids`` and ``labels`` in the smallest type that holds the vocabulary (uint8, uint16 or
            uint32), a quarter of the bytes for most: move them to the device, and ``.long()`` there.

    Raises:
        ConfigError, SourceError, TokenizerError: what cannot be read, before the first batch.
        TopologyError: ranks that cannot share the batch, streams that so many readers cannot share, or a mesh whose
            axes are unclear.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        process_group: Any = None,
        mesh: DeviceMesh | None = None,
        mesh_axes: Mapping[str, Role] | None = None,
        walk: Decider | None = None,
        journal: Journal | str | Path | None = None,
        streams: Mapping[str, datasets.IterableDataset] | None = None,
        tokenizer: TextTokenizer | None = None,
        batches: bool = True,
        provenance: bool = False,
        compact: bool = False,
    ) -> None:
        super().__init__()
        if walk is not None and journal is not None:
            raise ConfigError("give either walk or journal: a walk that is passed in keeps its own journal")
        if walk is not None and walk.curriculum.fingerprint != curriculum.fingerprint:
            raise ConfigError("the walk was made for another curriculum; make both from the same one")
        self.curriculum = curriculum
        if mesh is None:
            self._ranks = Ranks(*default_ranks(rank, world_size), process_group)
        elif (rank, world_size, process_group) == (None, None, None):
            self._ranks = MeshRanks(mesh, mesh_axes)
        else:
            raise TopologyError(
                "a mesh says which ranks share the batch: give no rank, world_size or process_group with it"
            )
        self.rank, self.world_size = self._ranks.rank, self._ranks.world_size
        self._may_suspend = may_suspend(curriculum, walk)
        if self._may_suspend and self.world_size > 1:
            raise refused(curriculum, f"{self.world_size} ranks read")
        self._rows = ReaderFactory(
            curriculum, rank=self.rank, world_size=self.world_size, streams=streams, tokenizer=tokenizer
        )
        self._batches = batches
        self._provenance = provenance
        self._token_dtype = self._rows.token_dtype if compact else WIDE
        self._step = self._row = 0  # of the next batch, or row of it, that this process composes
        self._before: dict[str, Any] = {}  # the reader's state before the batch of ``_step``, when yielding rows
        self._reports = self._new_reports()
        rows = self._rows.probe_rows()
        self._probing = None if rows is None else Probing(curriculum, rows, self._ranks, self._token_dtype)
        self._reader: BatchReader = self._open_reader(0, 1)  # first: the journal says what is read
        self._desk: Coordinator | None = Coordinator(
            walk or Walk(curriculum, journal=_opened(journal), sources=self._rows.known()), self._rows
        )  # None in copies
        self._phases: Coordinator | RemotePhases = self._desk
        self._suspension = Suspension.of(curriculum, self._desk.walk)
        self._answering = PhaseServer(self._desk.methods())
        self._address: Address | None = None  # where a copy asks
        self._is_placed = True  # whether the reader stands at ``_step``
        self._beginning: Position | None = None  # in a copy: where the run stood when the copy was made
        self._num_iterations = 0  # in a copy: begun so far
        self._copy = 0  # number of a copy among those of its process
        self._iteration: tuple[Any, ...] = ()  # in a copy: which loader's iteration this is

    @property
    def walk(self) -> Any:
        """The walk that decides; in DataLoader workers there is none."""
        return self._main.walk

    @property
    def tokenizer(self) -> TextTokenizer:
        """What text becomes token ids with."""
        return self._rows.tokenizer

    @property
    def step(self) -> int:
        """The step of the next batch."""
        return self._step if self._desk is None else self._desk.step

    def __iter__(self) -> Iterator[Batch]:
        check_consumer(self, is_whole=self._batches)
        worker, num_workers = self._enter()
        if self._desk is None:
            self._begin_in_copy(worker, num_workers)
        else:
            self._begin_here(self._desk)
        return self._iterate(num_workers)

    def _iterate(self, num_workers: int) -> Iterator[Batch]:
        for step in range(self._step, self.curriculum.total_steps, num_workers):
            try:
                if self._batches:
                    yield self._composed(step, num_workers)  # kept by nobody here, so that its memory is used again
                else:
                    yield from self._single_rows(step, num_workers)
            except EndOfSource:
                return

    def _composed(self, step: int, num_workers: int) -> Batch:
        """Return the batch of a step, noting where the next one is."""
        batch = self._tensors(self._read(step))
        self._tell_place(step + 1, num_workers)
        self._stand_at(step + num_workers, 0)
        return batch

    def _single_rows(self, step: int, num_workers: int) -> Iterator[Batch]:
        """Yield the rows of a batch one by one, noting before each where the next one is."""
        first, self._before = self._row, self._reader.state_dict()
        yield from single_rows(self._composed(step, num_workers), first, step + num_workers, self._stand_at)

    def _read(self, step: int) -> TokenBatch:
        """Read a batch; what cannot be reached is suspended, if it is to be."""
        if self._suspension is not None:
            return self._suspension.read(self._reader, step).split(self._token_dtype)
        return self._reader.read_split(step, self._token_dtype)

    def _stand_at(self, step: int, row: int) -> None:
        self._step, self._row = step, row
        if self._desk is not None:
            self._desk.step, self._desk.row = step, row

    def _tensors(self, batch: TokenBatch) -> Batch:
        tensors = tensors_of(batch, provenance=self._provenance)
        return tensors if self._desk is not None else PickledBatch(tensors)

    def _new_reports(self) -> LossAccumulator:
        curriculum, width = self.curriculum, self.curriculum.sequence_length
        return LossAccumulator(
            curriculum.rows_of_rank(self.world_size),
            self._ranks.slice_width(width),
            curriculum.names,
            over_slices=self._ranks.over_slices(width),
        )

    def report(
        self,
        batch: Mapping[str, Any],
        token_losses: Tensor | None,
        mask: Tensor | None = None,
        *,
        num_tokens: Tensor | None = None,
    ) -> bool:
        """Tell the walk what a batch taught; return whether it took in a step that it did not know.

        Parts of a batch (gradient accumulation, collated rows) may be reported one by one: the walk is told once all
        rows of this rank's step are there, or a later step begins. With several ranks every rank reports every step:
        the losses are summed over ranks, and the ranks prove to each other that they decided alike. With a mesh those
        that have no losses, such as all pipeline stages but the last, report None, and a rank of context parallelism
        reports its slice.

        Args:
            batch: as it was yielded, or a part of it with its ``step`` and ``source_ids``; tokens whose ``labels`` are
                -100 do not count.
            token_losses: loss of each token in nats, [b, T], [b * T] or [1, b * T], on any device; with ``num_tokens``
                the sum of each row, [b]. In context parallelism of a slice of each row; None where other ranks of the
                mesh have them.
            mask: tokens that count, bool, in one of the same shapes; all by default.
            num_tokens: tokens that count in each row, int [b].

        Raises:
            FeedbackError, InvalidLossError: losses that cannot be; nothing was learned from them.
            RankMismatchError: the ranks report different steps, decided differently, or read streams with different
                numbers of workers.
        """
        was_new = False
        for step, losses in self._reports.add(batch, token_losses, mask, num_tokens):
            try:
                was_new = self._take_in(step, losses) or was_new
            except InvalidLossError as error:
                raise self._reports.located(step, error) from None
        return was_new

    def report_sums(self, step: int, losses: SourceLosses) -> bool:
        """Tell the walk what a step taught, from sums by source that the trainer has itself.

        Args:
            step: which one.
            losses: of this rank's rows; summed over ranks, so that every rank calls, for every step.

        Returns, Raises:
            As ``report``.
        """
        check_shapes(losses, self.curriculum.names, step=step)  # here, as ranks cannot add different shapes
        return self._take_in(step, losses.on_grid())

    def _take_in(self, step: int, losses: SourceLosses | None) -> bool:
        """Tell the walk of the losses of this rank's step."""
        desk = self._main
        total = self._ranks.total(losses, functools.partial(self._claim, step, desk), len(self.curriculum.names))
        was_new: bool = desk.walk.report(step, total)
        if desk.has_workers:
            desk.delivered(step)
        return was_new

    def probe_batch(self, batch: Mapping[str, Any] | None = None) -> Batch | None:
        """Return this rank's held-out rows of the probe that is due, or None if none is.

        Ask with each batch, before it is trained on. A probe is due at the first step of each phase, or each n-th
        (``probes`` of the curriculum), and is given once. Run the model forward on it, without gradients, and give the
        losses to ``report_probe``; a probe that is never answered changes nothing. It is a batch like any other, but
        that ``source_ids`` go on with the targets, and always has the same rows. All ranks ask alike.

        Args:
            batch: in hand; by default the newest that this process knows of.
        """
        desk = self._main
        if self._probing is None:
            return None
        until = desk.step if desk.has_workers or self._row else self._step - 1
        if batch is not None:
            until = int(torch.as_tensor(batch["step"]).max())
        return self._probing.due(desk.walk, until)

    def report_probe(
        self,
        probe: Mapping[str, Any],
        token_losses: Tensor | None,
        mask: Tensor | None = None,
        *,
        num_tokens: Tensor | None = None,
    ) -> bool:
        """Tell the walk the held-out losses of a probe; return whether it took in one that it did not know.

        Args:
            probe: what ``probe_batch`` gave, or a part of it.
            token_losses: as in ``report``; every rank calls.
            mask: tokens that count, likewise.
            num_tokens: tokens that count in each row, int [b].

        Raises:
            ProbeNotOfferedError: the step offers no probe, or did long ago.
            FeedbackError, InvalidLossError, RankMismatchError: as ``report``.
        """
        desk, names = self._main, self.curriculum.probed_names
        if self._probing is None:
            raise ProbeNotOfferedError(NO_PROBES.format(probe.get("step")))
        was_new = False
        for step, losses in self._probing.add(probe, token_losses, mask, num_tokens):
            total = self._ranks.total(losses, functools.partial(self._claim, step, desk), len(names))
            was_new = desk.walk.report_probe(step, total) or was_new
        return was_new

    def _claim(self, step: int, desk: Coordinator) -> Claim:
        return Claim.of(step, desk.phase_at(step), self._rows.fingerprint, num_readers=desk.num_readers)

    def delivered(self, batch: Mapping[str, Any]) -> None:
        """Note that a batch was trained on, where no losses are reported but batches are composed ahead."""
        if self._main.has_workers:
            self._main.delivered(int(torch.as_tensor(batch["step"]).max()))

    def progress(self) -> dict[str, Progress]:
        """Return what each source has given so far: rows, tokens, documents, epochs.

        Of prepared sources in all ranks together; of streams in this process.
        """
        return self._reader.progress(self.step)

    def state_dict(self) -> dict[str, Any]:
        """Return plain data from which the rest of the run follows exactly.

        In a DataLoader worker, which is where torchdata's StatefulDataLoader asks, that is this worker's place alone:
        save ``dataset.state_dict()`` of the training process beside the loader's state.
        """
        worker, num_workers = self._enter()
        if self._desk is not None:
            return self._desk.state_dict(self._own_place(self._desk))
        if self._reader is None:
            self._begin_in_copy(worker, num_workers)
            self._is_placed = True
        return self._state_of_copy()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; raise StateMismatchError for one of another run, naming both."""
        _, num_workers = self._enter()
        if self._desk is None:
            self._load_state_of_copy(state, num_workers)
            return
        readers = self._desk.load_state_dict(state)
        self._step, self._row = self._desk.step, self._desk.row
        self._before = readers[0] if len(readers) == 1 else {}
        self._reports.clear()
        if self._probing is not None:
            self._probing.clear()
        self._is_placed = self._rows.is_prepared or len(readers) == 1
        if self._is_placed:
            self._reader.load_state_dict(readers[0] if readers else {})

    # In this process the desk knows where the run stands. Workers and other copies of the data set ask it.

    @property
    def _main(self) -> Coordinator:
        if self._desk is None:
            raise TopologyError(
                "this copy of the data set only delivers; report losses, and ask for the walk, where it was made"
            )
        return self._desk

    def _own_place(self, desk: Coordinator) -> dict[str, Any] | None:
        """Return where the streams that this process reads stand; None if it reads none, or is at the beginning."""
        is_read_here = self._is_placed and not desk.has_workers and not self._rows.is_prepared
        if not is_read_here or (self._step, self._row) == (0, 0):
            return None
        return self._before if self._row else self._reader.state_dict()

    def _open_reader(self, worker: int, num_workers: int) -> BatchReader:
        return self._rows.open(
            self._phase_at,
            worker=worker,
            num_workers=num_workers,
            on_read_through=self._read_through,
            on_skipped=self._skipped,
        )

    def _phase_at(self, step: int) -> Phase:
        return self._phases.phase_at(step)

    def _skipped(self, name: str, record: str) -> None:
        self._phases.skipped(name, record)

    def _read_through(self, name: str, tokens: int) -> None:
        self._phases.read_through(name, tokens)

    def _begin_here(self, desk: Coordinator) -> None:
        """Bring the reader to where the run stands."""
        if desk.has_workers or not self._is_placed:
            state = desk.read_here().of_reader(0, 1)
            self._step, self._row = desk.step, desk.row
            if state is None:
                self._reader = self._open_reader(0, 1)
            else:
                self._reader.load_state_dict(state)
            self._is_placed = True
        elif self._row:  # an iteration was left in the middle of a batch
            self._reader.load_state_dict(self._before)

    def _enter(self) -> tuple[int, int]:
        """Return which worker of how many this is, (0, 1) if none; a worker turns to the process that decides."""
        info = get_worker_info()
        if (info is not None or self._desk is None) and not isinstance(self._phases, RemotePhases):
            if self._desk is not None:  # forked
                self._beginning = self._desk.beginning(self._own_place(self._desk))
                self._desk.leave_to_parent()
                self._address = self._answering.open()
            if self._may_suspend:
                raise refused(self.curriculum, "a DataLoader worker reads" if info else "a copy of the data set reads")
            self._desk = self._reader = None  # type: ignore[assignment]
            assert self._address is not None
            self._phases = RemotePhases(self._address)
            self._is_placed = False
            self._copy = next(_copies)
        return (0, 1) if info is None else (info.id, info.num_workers)

    def _begin_in_copy(self, worker: int, num_workers: int) -> None:
        """Begin where a state was loaded, else where the run stood when this copy was made, or stands now."""
        assert isinstance(self._phases, RemotePhases)
        info = get_worker_info()
        # the same for all workers of a loader, and another for every copy in a process of its own
        loader = ("workers", info.seed - info.id) if info is not None else (os.getpid(), self._copy)
        self._iteration = (*loader, self._num_iterations)
        at_its_making = self._beginning if info is not None else None  # any other copy begins where the run stands now
        beginning = self._phases.call("begin", self._iteration, num_workers, at_its_making)
        self._num_iterations, self._beginning = self._num_iterations + 1, None
        is_placed, self._is_placed = self._is_placed, False  # the next iteration begins anew
        if is_placed:
            self._tell_place(self._step - num_workers + 1, num_workers)
        else:
            self._step, self._row = beginning.step + worker, beginning.row if worker == 0 else 0
            self._reader = self._open_reader(self._step % num_workers, num_workers)
            state = beginning.of_reader(self._step % num_workers, num_workers)
            if state is not None:
                self._reader.load_state_dict(state)
                self._before = state

    def _tell_place(self, end: int, num_workers: int) -> None:
        """Tell the process that decides where the streams stand that this copy reads, after the step before ``end``."""
        if isinstance(self._phases, RemotePhases) and not self._rows.is_prepared:
            self._phases.call("stand", self._iteration, self._step % num_workers, end, self._reader.state_dict())

    def _state_of_copy(self) -> dict[str, Any]:
        phase = self._phases.phase_at(self._step - 1) if self._step else None
        return {
            "version": STATE_VERSION,
            "fingerprint": self._rows.fingerprint,
            "step": self._step,
            "row": self._row,
            "reader": self._before if self._row else self._reader.state_dict(),
            "phase": None if phase is None else _mark_of(phase),
        }

    def _load_state_of_copy(self, state: Mapping[str, Any], num_workers: int) -> None:
        check_state(state, version=STATE_VERSION, fingerprint=self._rows.fingerprint, what="state of a worker")
        mark = state["phase"]
        if mark is not None and _mark_of(self._phases.phase_at(mark[0])) != mark:
            raise StateMismatchError(
                f"the loader was restored to step {state['step']}, but the walk was not: its phase from step {mark[0]} "
                "is another; save dataset.state_dict() beside the loader's state, and load it first"
            )
        self._step, self._row = state["step"], state["row"]
        self._reader = self._open_reader(self._step % num_workers, num_workers)
        self._reader.load_state_dict(state["reader"])
        self._is_placed = True

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs, in a spawned worker for example; it will ask this process."""
        address, beginning = self._address, self._beginning
        if self._desk is not None:
            address, beginning = self._answering.open(), self._desk.beginning(self._own_place(self._desk))
            self._answering.start()
        absent = {
            "_desk": None,
            "_phases": None,
            "_reader": None,
            "_answering": None,
            "_ranks": None,
            "_reports": None,
            "_probing": None,
            "_suspension": None,
        }
        own = {"_address": address, "_beginning": beginning, "_num_iterations": 0, "_is_placed": False}
        return {**self.__dict__, **absent, **own}


def _opened(journal: Journal | str | Path | None) -> Journal | None:
    if isinstance(journal, str | Path):
        return Journal.open(journal) if Path(journal).exists() else Journal.create(journal)
    return journal


def _mark_of(phase: Phase) -> list[int]:
    """Return what tells a phase from any other that might have been decided there; a cut of it changes nothing."""
    return [phase.start, Claim.of(phase.start, phase, "").digest]
