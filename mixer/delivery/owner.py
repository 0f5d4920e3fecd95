"""The side of a data set in the process that made it: it decides, takes in reports, and answers copies of itself."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mixer.delivery.batch import TokenBatch
from mixer.delivery.composer import BatchFormat, Composer
from mixer.delivery.coordinator import Coordinator
from mixer.delivery.copies import Copy
from mixer.delivery.decider import Decider
from mixer.delivery.feedback import LossAccumulator
from mixer.delivery.probing import Probing
from mixer.delivery.ranks import Claim, Ranks
from mixer.delivery.suspension import Suspension
from mixer.delivery.tensors import Batch
from mixer.delivery.workers import PhaseServer
from mixer.errors import InvalidLossError, ProbeNotOfferedError
from mixer.journal.file import Journal
from mixer.losses import SourceLosses, check_shapes
from mixer.walk.probes import NO_PROBES
from mixer.walk.walk import Walk


class Owner(Composer):
    """Holds the walk and the reports of one rank, and composes its batches where no DataLoader workers do.

    Args:
        form: what is read, and as what it is given out.
        ranks: who share each batch.
        walk: who decides; None makes a ``Walk``.
        journal: of the walk that is made.
    """

    def __init__(
        self, form: BatchFormat, ranks: Ranks, *, walk: Decider | None, journal: Journal | str | Path | None
    ) -> None:
        super().__init__(form)
        curriculum, width = self._curriculum, self._curriculum.sequence_length
        self.ranks = ranks
        self._reports = LossAccumulator(
            curriculum.rows_of_rank(ranks.world_size),
            ranks.slice_width(width),
            curriculum.names,
            over_slices=ranks.over_slices(width),
        )
        rows = self._rows.probe_rows()
        self._probing = None if rows is None else Probing(curriculum, rows, ranks, form.token_dtype)
        self._reader = self._open_reader(0, 1)  # first: the journal says what is read
        self.walk = walk or Walk(curriculum, journal=_opened(journal), sources=self._rows.known())
        self._coordinator = self._phases = Coordinator(self.walk, self._rows)
        self._suspension = Suspension.of(curriculum, self.walk)
        self.server = PhaseServer(self._coordinator.methods())  # answers copies
        self._is_placed = True  # whether the reader stands at ``_step``

    @property
    def step(self) -> int:
        """The step of the next batch, as far as is known here."""
        return self._coordinator.step

    # Composing.

    def _begin(self) -> int:
        coordinator = self._coordinator
        if coordinator.has_workers or not self._is_placed:
            state = coordinator.read_here().of_reader(0, 1)
            self._step, self._row = coordinator.step, coordinator.row
            if state is None:
                self._reader = self._open_reader(0, 1)
            else:
                self.reader.load_state_dict(state)
            self._is_placed = True
        elif self._row:  # an iteration was left in the middle of a batch
            self.reader.load_state_dict(self._before)
        return 1

    def _read(self, step: int) -> TokenBatch:
        """Read a batch; what cannot be reached is suspended, if it is to be."""
        if self._suspension is None:
            return super()._read(step)
        return self._suspension.read(self.reader, step).split(self._form.token_dtype)

    def _stand_at(self, step: int, row: int) -> None:
        super()._stand_at(step, row)
        self._coordinator.step, self._coordinator.row = step, row

    # What the trainer reports; see MixtureDataset.

    def report(
        self, batch: Mapping[str, Any], losses: Tensor | None, mask: Tensor | None, num_tokens: Tensor | None
    ) -> bool:
        """Take in the losses of a batch or of a part of it; return whether a step was new."""
        was_new = False
        for step, summed in self._reports.add(batch, losses, mask, num_tokens):
            try:
                was_new = self._take_in(step, summed) or was_new
            except InvalidLossError as error:
                raise self._reports.located(step, error) from None
        return was_new

    def report_sums(self, step: int, losses: SourceLosses) -> bool:
        """Take in the losses of this rank's rows of a step; return whether it was new."""
        check_shapes(losses, self._curriculum.names, step=step)  # here, as ranks cannot add different shapes
        return self._take_in(step, losses.on_grid())

    def delivered(self, step: int) -> None:
        """Note that a step was trained on, which matters where others compose the batches."""
        if self._coordinator.has_workers:
            self._coordinator.delivered(step)

    def probe_batch(self, step: int | None) -> Batch | None:
        """Return this rank's rows of the probe that is due at the batch of ``step``, None for the newest known."""
        if self._probing is None:
            return None
        if step is None:
            is_in_hand = self._coordinator.has_workers or self._row
            step = self._coordinator.step if is_in_hand else self._step - 1
        return self._probing.due(self.walk, step)

    def report_probe(
        self, probe: Mapping[str, Any], losses: Tensor | None, mask: Tensor | None, num_tokens: Tensor | None
    ) -> bool:
        """Take in the held-out losses of a probe; return whether one was new."""
        if self._probing is None:
            raise ProbeNotOfferedError(NO_PROBES.format(probe.get("step")))
        was_new = False
        for step, summed in self._probing.add(probe, losses, mask, num_tokens):
            total = self._total(step, summed, len(self._curriculum.probed_names))
            was_new = self.walk.report_probe(step, total) or was_new
        return was_new

    def _take_in(self, step: int, losses: SourceLosses | None) -> bool:
        was_new = self.walk.report(step, self._total(step, losses, len(self._curriculum.names)))
        self.delivered(step)
        return was_new

    def _total(self, step: int, losses: SourceLosses | None, num_sources: int) -> SourceLosses:
        return self.ranks.total(losses, functools.partial(self._claim, step), num_sources)

    def _claim(self, step: int) -> Claim:
        coordinator = self._coordinator
        return Claim.of(step, coordinator.phase_at(step), self._rows.fingerprint, num_readers=coordinator.num_readers)

    # Where the run stands, for checkpoints and for copies.

    def state_dict(self) -> dict[str, Any]:
        """Return plain data from which the rest of the run follows exactly."""
        return self._coordinator.state_dict(self._own_place())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; raise StateMismatchError for one of another run."""
        readers = self._coordinator.load_state_dict(state)
        self._step, self._row = self._coordinator.step, self._coordinator.row
        self._before = readers[0] if len(readers) == 1 else {}
        self._reports.clear()
        if self._probing is not None:
            self._probing.clear()
        self._is_placed = self._rows.is_prepared or len(readers) == 1
        if self._is_placed:
            self.reader.load_state_dict(readers[0] if readers else {})

    def copied(self) -> Copy:
        """Return the side of a copy of the data set, which asks this process; it may be pickled."""
        address = self.server.open()
        self.server.start()
        return self._copy_at(address)

    def left_to_parent(self) -> Copy:
        """Return the side of a forked process, which asks its parent; what only the parent may hold is let go."""
        self._coordinator.leave_to_parent()
        return self._copy_at(self.server.open())

    def _copy_at(self, address: tuple[str, bytes]) -> Copy:
        may_suspend = self._suspension is not None
        return Copy(self._form, address, self._coordinator.beginning(self._own_place()), may_suspend=may_suspend)

    def _own_place(self) -> dict[str, Any] | None:
        """Where the streams that this process reads stand; None if it reads none, or is at the beginning."""
        is_read_here = self._is_placed and not self._coordinator.has_workers and not self._rows.is_prepared
        if not is_read_here or (self._step, self._row) == (0, 0):
            return None
        return self._place_of_reader()


def _opened(journal: Journal | str | Path | None) -> Journal | None:
    if isinstance(journal, str | Path):
        return Journal.open(journal) if Path(journal).exists() else Journal.create(journal)
    return journal
