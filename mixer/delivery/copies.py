"""The side of a data set in a DataLoader worker, or in any other copy: it only composes, and asks who decides."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import Any

from torch.utils.data import get_worker_info

from mixer.delivery.batch import TokenBatch
from mixer.delivery.composer import BatchFormat, Composer
from mixer.delivery.coordinator import STATE_VERSION
from mixer.delivery.pickled import PickledBatch
from mixer.delivery.position import Position
from mixer.delivery.ranks import Claim
from mixer.delivery.suspension import refused
from mixer.delivery.tensors import Batch
from mixer.delivery.workers import Address, RemotePhases
from mixer.errors import StateMismatchError
from mixer.sampling.phases import Phase
from mixer.walk.state import check_state

_numbers = itertools.count(1)


class Copy(Composer):
    """Composes every N-th step, for N workers of a loader; calls the process that decides once it is first used.

    Pickles, to be used elsewhere.

    Args:
        form: what is read, and as what it is given out.
        address: where the process that decides answers.
        beginning: where the run stood when the copy was made.
        may_suspend: whether sources may be suspended, which no copy can do.
    """

    _phases: RemotePhases

    def __init__(self, form: BatchFormat, address: Address, beginning: Position, *, may_suspend: bool) -> None:
        super().__init__(form)
        self._step, self._row = beginning.step, beginning.row
        self._address = address
        self._beginning: Position | None = beginning
        self._may_suspend = may_suspend
        self._disconnect()

    def _disconnect(self) -> None:
        self._is_connected = False
        self._is_placed = False  # whether the reader stands at ``_step``, where a state was loaded
        self._number = 0  # among the copies of its process
        self._num_iterations = 0  # begun so far
        self._iteration: tuple[Any, ...] = ()  # which loader's iteration this is

    def copied(self) -> Copy:
        """Return another copy, which may be pickled."""
        other = Copy.__new__(Copy)
        other.__dict__.update(self.__dict__)
        other.__dict__.pop("_phases", None)
        other._reader = None
        other._disconnect()
        return other

    def _worker(self) -> tuple[int, int]:
        """Return which worker of how many this is, (0, 1) if none; the first call reaches the process that decides."""
        info = get_worker_info()
        if not self._is_connected:
            if self._may_suspend:
                readers = "a DataLoader worker reads" if info is not None else "a copy of the data set reads"
                raise refused(self._curriculum, readers)
            self._phases = RemotePhases(self._address)
            self._number = next(_numbers)
            self._is_connected = True
        return (0, 1) if info is None else (info.id, info.num_workers)

    # Composing.

    def _begin(self) -> int:
        """Begin where a state was loaded, else where the run stood when this copy was made, or stands now."""
        worker, num_workers = self._worker()
        info = get_worker_info()
        # the same for all workers of a loader, and another for every copy in a process of its own
        loader = ("workers", info.seed - info.id) if info is not None else (os.getpid(), self._number)
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
        return num_workers

    def _given_out(self, batch: TokenBatch) -> Batch:
        return PickledBatch(super()._given_out(batch))

    def _composed(self, step: int, every: int) -> Batch:
        batch = super()._composed(step, every)
        self._tell_place(step + 1, every)
        return batch

    def _tell_place(self, end: int, every: int) -> None:
        """Tell the process that decides where the streams stand that this copy reads, after the step before ``end``."""
        if not self._rows.is_prepared:
            self._phases.call("stand", self._iteration, self._step % every, end, self.reader.state_dict())

    # Where this copy stands.

    def state_dict(self) -> dict[str, Any]:
        """Return this copy's place alone."""
        self._worker()
        if self._reader is None:
            self._begin()
            self._is_placed = True
        phase = self._phases.phase_at(self._step - 1) if self._step else None
        return {
            "version": STATE_VERSION,
            "fingerprint": self._rows.fingerprint,
            "step": self._step,
            "row": self._row,
            "reader": self._place_of_reader(),
            "phase": None if phase is None else _mark_of(phase),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a place.

        Raises:
            StateMismatchError: of another run, or the walk was not restored to the same.
        """
        _, num_workers = self._worker()
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


def _mark_of(phase: Phase) -> list[int]:
    """Return what tells a phase from any other that might have been decided there; a cut of it changes nothing."""
    return [phase.start, Claim.of(phase.start, phase, "").digest]
