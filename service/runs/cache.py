"""Batches in memory: those built ahead and those asked for lately, encoded once per rank, within a bound of bytes.

All of it counts: the rows, each encoding, and the headers of each body. What is encoded of the oldest batches goes
first, for it can be made again from their rows.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from functools import partial

from mixer.delivery.batch import RowBatches
from service.wire.batches import Encoded, encode

ENCODED_BYTES, BODY_BYTES = 1024, 2048  # of the objects that each encoding, and each body with its headers, consists of


class BuiltBatches:
    """Global batches of one phase that were read together, and what was encoded of them, by (rank, world size).

    Args:
        batches: of steps that follow each other.
        beside: bytes that they keep in memory beside their own: they are views of more.
    """

    def __init__(self, batches: RowBatches, *, beside: int = 0) -> None:
        self.batches, self._beside = batches, beside
        self.window: BatchCache | None = None  # that counts them
        self._encoded: dict[tuple[int, int], Encoded] = {}
        self._encoded_bytes = 0
        self._lock = threading.Lock()

    @property
    def steps(self) -> range:
        """The steps whose batches they are."""
        return self.batches.steps

    @property
    def num_bytes(self) -> int:
        """Bytes that they take: the rows, and those encoded so far, or as many bytes again before they are encoded."""
        rows = self.batches.rows.nbytes
        return self._beside + rows + max(rows, self._encoded_bytes)

    def held(self, rank: int, world_size: int) -> Encoded | None:
        """Return the rows of a rank if they are encoded."""
        return self._encoded.get((rank, world_size))

    def encoded(self, rank: int, world_size: int) -> Encoded:
        """Return the rows of a rank, encoded; two threads that encode at once make the same bytes."""
        found = self._encoded.get((rank, world_size))
        if found is None:
            found = encode(self.batches, rank, world_size)
            if world_size == 1:
                self.hold(found)
            else:
                self._take(rank, world_size, found)
            if self.window is not None:
                self.window.recount(self, newest=found)
        return found

    def hold(self, encoded: Encoded) -> None:
        """Take what one rank gets that gets all rows; one copy of them is enough."""
        self._take(0, 1, encoded)
        self.batches = self.batches._replace(rows=encoded.rows)

    def until(self, step: int) -> BuiltBatches:
        """Return those before a step."""
        batches = self.batches.until(step)
        before = BuiltBatches(batches, beside=self._beside + self.batches.rows.nbytes - batches.rows.nbytes)
        for (rank, world_size), each in list(self._encoded.items()):
            before._take(rank, world_size, each.until(step), beside=each.num_bytes)
        return before

    def let_go(self, *, but: Encoded | None = None) -> None:
        """Forget what was encoded, but one."""
        with self._lock:
            kept = {key: each for key, each in self._encoded.items() if each is but}
            for each in self._encoded.values():
                if each is not but:
                    each.on_body = None
            self._encoded = kept
            self._encoded_bytes = sum(map(_bytes_of, kept.values()))

    def note_body(self, encoded: Encoded) -> None:
        """Count a body that was made."""
        with self._lock:
            self._encoded_bytes += BODY_BYTES
        if self.window is not None:
            self.window.recount(self, newest=encoded)

    def _take(self, rank: int, world_size: int, encoded: Encoded, *, beside: int = 0) -> None:
        encoded.on_body = partial(_note_body, weakref.ref(self), weakref.ref(encoded))  # a circle would outlive its use
        with self._lock:
            known = self._encoded.get((rank, world_size))
            self._encoded[rank, world_size] = encoded
            self._encoded_bytes += max(beside, _bytes_of(encoded)) - (0 if known is None else _bytes_of(known))


def _note_body(of: weakref.ref[BuiltBatches], among: weakref.ref[Encoded]) -> None:
    built, encoded = of(), among()
    if built is not None and encoded is not None:
        built.note_body(encoded)


def _bytes_of(encoded: Encoded) -> int:
    return encoded.num_bytes + ENCODED_BYTES + encoded.num_bodies * BODY_BYTES


class BatchCache:
    """Built batches by step, the oldest dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._built: OrderedDict[int, tuple[BuiltBatches, int]] = (
            OrderedDict()
        )  # by first step; the bytes it was counted for
        self._by_step: dict[int, BuiltBatches] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_step)

    def get(self, step: int) -> BuiltBatches | None:
        """Return what holds the batch of a step, if it is held."""
        return self._by_step.get(step)

    def add(self, built: BuiltBatches) -> None:
        """Hold batches."""
        with self._lock:
            while not self._by_step.keys().isdisjoint(built.steps):
                self._drop(next(self._by_step[step] for step in built.steps if step in self._by_step).steps.start)
            self._hold(built)

    def drop_from(self, step: int) -> None:
        """Drop the batches of this step and later ones."""
        with self._lock:
            for first in [first for first, (built, _) in self._built.items() if built.steps.stop > step]:
                built = self._drop(first)
                if first < step:
                    self._hold(built.until(step))

    def make_room(self, num_bytes: int, *, below: int) -> bool:
        """Drop the oldest batches of steps below ``below`` for ``num_bytes`` more; return whether there is room."""
        with self._lock:
            while self._built and self.num_bytes + num_bytes > self.max_bytes:
                first, (oldest, _) = next(iter(self._built.items()))
                if oldest.steps.stop > below:
                    return False
                self._drop(first)
            return True

    def recount(self, built: BuiltBatches, *, newest: Encoded) -> None:
        """Count what was encoded of batches since; if that is too much, let go of other encodings, the oldest first."""
        with self._lock:
            if self._by_step.get(built.steps.start) is not built:
                return
            self._count(built)
            if self.num_bytes <= self.max_bytes:
                return
            for each, _ in list(self._built.values()):
                each.let_go(but=newest)
                self._count(each)
                if self.num_bytes <= self.max_bytes - self.max_bytes // 16:  # some more, or each body would come here
                    return

    def _count(self, built: BuiltBatches) -> None:
        _, before = self._built[built.steps.start]
        now = built.num_bytes
        self._built[built.steps.start] = built, now
        self.num_bytes += now - before

    def _hold(self, built: BuiltBatches) -> None:
        built.window = self
        num_bytes = built.num_bytes
        self._built[built.steps.start] = built, num_bytes
        self.num_bytes += num_bytes
        self._by_step.update(dict.fromkeys(built.steps, built))

    def _drop(self, first: int) -> BuiltBatches:
        built, num_bytes = self._built.pop(first)
        built.window = None
        self.num_bytes -= num_bytes
        for step in built.steps:
            del self._by_step[step]
        return built
