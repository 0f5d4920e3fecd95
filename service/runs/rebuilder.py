"""Batches that have left memory, built again: at once from prepared rows, from streams by a second reader.

The second reader goes back to a saved place and reads on from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from mixer.delivery.batch import BatchReader
from service.errors import StepGoneError
from service.runs.cache import BatchCache, BuiltBatches
from service.runs.context import RunContext, again_bytes


class Rebuilder:
    """Builds steps again; one thread at a time, one step after the other where they stream.

    Args:
        parts: of the run.
        oldest: tells the oldest step that can be asked for again.
    """

    def __init__(self, parts: RunContext, oldest: Callable[[], int]) -> None:
        self._parts, self._oldest = parts, oldest
        self._lock = threading.Lock()
        self._reader: BatchReader | None = None
        self._next = -1
        self._window = BatchCache(again_bytes(parts.settings))

    def held(self, step: int) -> BuiltBatches | None:
        """Return what holds the batch of a step, if it was built again lately."""
        return self._window.get(step)

    @property
    def num_bytes(self) -> int:
        """Bytes of the batches in memory."""
        return self._window.num_bytes

    def read(self, step: int) -> BuiltBatches:
        """Return what holds the batch of a step that was built before and claimed.

        Raises:
            StepGoneError: it has left the retention window.
        """
        if step < self._oldest():
            raise StepGoneError(f"step {step} is gone: steps from {self._oldest()} on can be asked for again")
        parts = self._parts
        with self._lock:
            built = self._window.get(step) or parts.window.get(step)
            if built is not None:
                return built
            reader = self._reader_at(step)
            while True:
                num_steps = min(parts.together, parts.served.given - self._next)  # no pivot changes those
                built = parts.read(reader, self._next, max(1, num_steps))
                self._window.make_room(built.num_bytes, below=step + 1)
                self._window.add(built)
                self._next = built.steps.stop
                parts.counters.rebuilt += len(built.steps)
                if step in built.steps:
                    return built

    def _reader_at(self, step: int) -> BatchReader:
        parts = self._parts
        if self._reader is not None and parts.rows.is_prepared:
            self._next = step
            return self._reader
        place = None if parts.rows.is_prepared else parts.store.newest(parts.name, "place", up_to=step)
        begin = 0 if place is None else place[0]
        if self._reader is None or not begin <= self._next <= step:
            self._reader, self._next = parts.place_reader(step, self._reader)
        return self._reader
