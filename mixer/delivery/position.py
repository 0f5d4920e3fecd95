"""Positions in a run: the next step, and how far each reader has read its streams."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from mixer.errors import TopologyError


@dataclass
class ReaderStates:
    """The states of one reader's streams after some of its steps: (next step of the run, state), oldest first."""

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
    """The step and row of the run at which an iteration begins, and the state of each of a rank's readers there.

    Worker w composes every N-th step from the w-th on. Streams belong to steps, not to workers: reader r of N gives the
    steps whose remainder by N is r, whichever worker composes them. ``readers`` is empty at the beginning of the run,
    and over prepared rows, of which the step alone determines the position.
    """

    step: int
    row: int
    readers: list[dict[str, Any]]

    def of_reader(self, reader: int, num_readers: int) -> dict[str, Any] | None:
        """Return the state from which one reader's streams go on; None at the beginning."""
        if self.readers and len(self.readers) != num_readers:
            known = len(self.readers)
            raise TopologyError(
                f"the saved state is of streams read by {known} readers a rank, and now there are {num_readers}; "
                f"use num_workers={known}{' or 0' if known == 1 else ''}, or prepare the sources "
                "(`mixer prepare`), which any number of workers and ranks can go on with"
            )
        return (self.readers[reader] or None) if self.readers else None
