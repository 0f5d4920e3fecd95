"""The position of one rank's run: the next step, and the states of its readers after each step.

One ``Coordinator`` per rank owns the walk. Readers, in this process or in DataLoader workers, ask it for phases and
send it the states of their streams, so that the state of the whole run is saved in one place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from mixer.delivery.decider import Decider
from mixer.delivery.position import Position, ReaderStates
from mixer.delivery.readers import ReaderFactory
from mixer.errors import StateMismatchError
from mixer.sampling.phases import Phase
from mixer.walk.state import check_state

STATE_VERSION = 1


class Coordinator:
    """The walk of one rank's run, the next step, and the state of every reader at that step.

    Args:
        walk: decides the phases.
        rows: opens the readers.
    """

    def __init__(self, walk: Decider, rows: ReaderFactory) -> None:
        self.walk = walk
        self.step = 0  # next to be delivered, as far as is known here
        self.row = 0  # rows of it that were delivered, when single rows are
        self._rows = rows
        self._lock = threading.RLock()
        self._loaded: list[dict[str, Any]] = []  # of each reader, at ``step``; empty is the beginning
        self._stands: dict[int, ReaderStates] = {}
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
            stand = self._stands.setdefault(reader, ReaderStates())
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
        stands = [self._stands.get(reader, ReaderStates()) for reader in range(self._num_readers)]
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
