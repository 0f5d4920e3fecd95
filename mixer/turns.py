"""Composing in turn: how DataLoader workers agree on where a source is suspended, before any batch leaves them.

A suspension cuts the phase in force, so nobody may have given away a batch from there on, and what torch has taken
from a worker never comes back. So a worker gives a step away once all steps below it are composed, by every rank
(``agreement``), and is told of a phase once all steps of the one before are: two waits a batch, only where a streamed
source may be suspended.

Nobody waits for a worker that has nothing to do, since torch hands out steps in order; who waits for one that is gone
gets an error. While other ranks are waited for the desk is free: their trainers may wait for this rank's.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from mixer.agreement import Loop, Verdict, readable_by_all
from mixer.batches import BatchReader, RowBatch
from mixer.channel import RemotePhases
from mixer.errors import SourceUnavailableError, TopologyError
from mixer.phases import Phase
from mixer.regimes import OUT_OF_REACH

if TYPE_CHECKING:
    from mixer.delivery import Desk
    from mixer.suspension import Suspension

RECHECK_S = 1.0  # a loop that was left for another wakes nobody


class Turns:
    """In the process that decides: whose turn it is to give a batch away.

    Reader r of N composes the steps that leave r when divided by N, one after the other. Steps are composed for good in
    their order, on all ranks; a cut voids what is composed, but not yet for good.

    Args:
        desk: knows the walk, and which iteration is the newest.
        suspension: pivots sources out and back in.
    """

    def __init__(self, desk: Desk, suspension: Suspension) -> None:
        self._desk, self._suspension = desk, suspension
        self._walk: Any = desk.walk
        self._changed = threading.Condition(desk.lock)
        self._caller = threading.local()  # each worker is answered by a thread of its own
        self._begin(None, 1)

    def _begin(self, iteration: Hashable, num_readers: int) -> None:
        self._iteration, self._num_readers = iteration, num_readers
        self._loop = Loop(0) if iteration is None else self._suspension.begin()
        self._places: dict[int, int] = {}  # the next step of each reader
        self._gone: set[int] = set()  # readers whose workers ended, or raised an error
        self._num_cuts = 0
        self._answering: dict[int, Collection[str]] = {}  # by reader, the suspended sources that it could read

    def methods(self) -> dict[str, Callable[..., Any]]:
        """Return what DataLoader workers may call."""
        return {
            "phase": self.phase_at,
            "join": self.join,
            "compose": self.compose,
            "to_probe": self.to_probe,
            "leave": self.leave,
        }

    def join(self, iteration: Hashable, num_readers: int, step: int, first: int | None) -> None:
        """Take in a worker of an iteration that has begun.

        Args:
            iteration: which one.
            num_readers: workers of the loader.
            step: the worker's first.
            first: the first of all workers; None if each was restored to a step of its own.
        """
        with self._changed:
            self._caller.iteration, self._caller.reader = iteration, step % num_readers
            self._check_iteration()
            if self._iteration != iteration:
                self._begin(iteration, num_readers)
            for place in (step,) if first is None else range(first, first + num_readers):
                self._places.setdefault(place % num_readers, place)
            self._changed.notify_all()

    def phase_at(self, step: int) -> Phase:
        """Return the phase of a step; a worker is told once all steps of the phases before are composed for good."""
        with self._changed:
            while self._is_joined and step >= self._walk.frontier:
                self._wait_until(lambda: step < self._walk.frontier or self._composed >= self._walk.frontier)
                if step >= self._walk.frontier:
                    self._desk.phase_at(self._walk.frontier)
                    self._changed.notify_all()
            return self._desk.phase_at(step)

    def compose(
        self, step: int, num_cuts: int, problem: SourceUnavailableError | None, answering: Sequence[str] | None
    ) -> int:
        """Wait for a worker's turn; return how many cuts there were, and if it knew of all, its step is for good.

        Args:
            step: the worker's.
            num_cuts: those that it knew of when it composed the step.
            problem: what kept it from composing the step: the source is suspended from there on, which is a cut.
            answering: the suspended sources that it can read; None if it was not to try.

        Raises:
            SourceUnavailableError: the source cannot be suspended.
            TopologyError: the turn never comes.
        """
        with self._changed:
            self._wait_until(lambda: self._composed >= step or self._num_cuts > num_cuts)
            if self._num_cuts > num_cuts:
                return self._num_cuts
            readable = None if problem is not None else self._readable(step, answering)
            loop = self._loop

        def follow(verdict: Verdict) -> None:
            with self._changed:
                self._check_iteration()
                if self._suspension.follow(verdict, first_free=self._desk.step):
                    self._places[step % self._num_readers] = step + self._num_readers
                else:
                    self._num_cuts += 1
                    self._answering.clear()
                self._changed.notify_all()

        self._suspension.ranks.agree(
            loop, step, follow, problem=problem, readable=readable, check=self._check_iteration
        )
        self._give_up_if_gone()
        return self._num_cuts

    def to_probe(self, step: int) -> list[str]:
        """Return the sources that a worker is to try at its first step of a phase."""
        return self._suspension.to_probe(step)

    def leave(self) -> None:
        """Note that the worker that is answered in this thread is gone, or has raised an error."""
        with self._changed:
            if not self._is_joined or self._caller.iteration != self._iteration:
                return
            self._gone.add(self._caller.reader)
            self._changed.notify_all()
        self._give_up_if_gone()

    def _readable(self, step: int, answering: Sequence[str] | None) -> set[str] | None:
        """Note what a reader can read; return what all of this rank can, once every one has said so."""
        if answering is not None:
            self._answering[step % self._num_readers] = answering
        return readable_by_all(self._answering, self._num_readers)

    def _give_up_if_gone(self) -> None:
        """Tell the other ranks if the next step is that of a reader that is gone."""
        with self._changed:
            step, loop = self._composed, self._loop
            is_lost = 0 <= step < self._walk.curriculum.total_steps and step % self._num_readers in self._gone
        if is_lost:
            self._suspension.ranks.give_up(loop, step)

    @property
    def _is_joined(self) -> bool:
        return getattr(self._caller, "iteration", None) is not None

    @property
    def _composed(self) -> int:
        """The first step that is not composed for good; -1 until it is known where each reader stands."""
        return min(self._places.values()) if len(self._places) == self._num_readers else -1

    def _check_iteration(self) -> None:
        if self._caller.iteration != self._desk.iteration:
            raise TopologyError(
                "this worker's loop was left, as the data set was iterated anew or restored; take batches from the "
                "newest iteration alone"
            )

    def _wait_until(self, is_free: Callable[[], bool]) -> None:
        while True:
            self._check_iteration()
            if is_free():
                return
            step = self._composed
            if step >= 0 and step % self._num_readers in self._gone:
                raise TopologyError(
                    f"the worker that was to compose step {step} is gone, and the others wait for it; its own error "
                    "says why: start the run again from its last checkpoint"
                )
            self._changed.wait(RECHECK_S)


class InTurn:
    """In a worker: composes batches, and gives each away when all below it are composed.

    Args:
        phases: where the process that decides is asked.
        iteration, num_readers, step, first: as ``Turns.join`` takes them.
    """

    def __init__(
        self, phases: RemotePhases, iteration: Hashable, num_readers: int, step: int, first: int | None
    ) -> None:
        self._phases = phases
        self._num_cuts = 0  # known here
        self._probed: Phase | None = None  # for which what is suspended was tried
        phases.call("join", iteration, num_readers, step, first)

    def read(self, reader: BatchReader, step: int) -> RowBatch:
        """Return the batch of a step, as soon as nobody can cut below it.

        Raises:
            SourceUnavailableError: a source is out of reach and cannot be suspended.
            TopologyError: another worker is gone.
        """
        try:
            while True:
                batch = self._read(reader, step)
                if batch is not None:
                    return batch
        except Exception:
            with contextlib.suppress(TopologyError):
                self._phases.call("leave")
            raise

    def _read(self, reader: BatchReader, step: int) -> RowBatch | None:
        """Return the batch, None if a cut came before its turn."""
        batch = problem = answering = None
        try:
            answering = self._probe(reader, step)
            batch = reader.read(step)
        except SourceUnavailableError as error:
            problem = error
        num_cuts = self._phases.call("compose", step, self._num_cuts, problem, answering)
        if num_cuts == self._num_cuts:
            return batch
        self._num_cuts, self._probed = num_cuts, None
        self._phases.forget()
        if batch is not None:
            reader.give_back(batch)
        return None

    def _probe(self, reader: BatchReader, step: int) -> list[str] | None:
        """Return which suspended sources can be read, None but at the first step of a phase without some."""
        phase = self._phases.phase_at(step)
        if phase is self._probed:
            return None
        self._probed = phase
        names = self._phases.call("to_probe", step) if phase.regime.startswith(OUT_OF_REACH) else []
        return [name for name in names if reader.probe(name)] if names else None
