"""Batches in memory: those built ahead and those asked for lately, within a bound of bytes; encoded once per rank."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from mixer.batches import RowBatch
from service.wire import Body, encode, rows_in

BODY_BYTES = 2048  # what a body takes beside its bytes: of 64 ranks with short rows, twenty times the rows


@dataclass(eq=False)
class Built:
    """A global batch, and the bodies made of it so far by (rank, world size)."""

    batch: RowBatch
    bodies: dict[tuple[int, int], Body] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes: the rows, and its bodies so far, or as many bytes again before they are encoded."""
        encoded = sum(len(body.data) + BODY_BYTES for body in list(self.bodies.values()))
        return self.batch.rows.nbytes + max(self.batch.rows.nbytes, encoded)

    def body(self, rank: int, world_size: int) -> Body:
        """Return the rows of a rank, encoded; two threads that encode at once make the same bytes."""
        body = self.bodies.get((rank, world_size))
        if body is None:
            body = self.bodies[rank, world_size] = encode(self.batch, rank, world_size)
            if world_size == 1:  # one copy of the rows is enough
                self.batch = self.batch._replace(rows=rows_in(body, self.batch))
        return body


class Window:
    """Built batches by step, the oldest dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._built: OrderedDict[int, tuple[Built, int]] = OrderedDict()  # and the bytes that it was taken for
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._built)

    def get(self, step: int) -> Built | None:
        """Return the batch of a step, if it is held."""
        held = self._built.get(step)
        return None if held is None else held[0]

    def add(self, built: Built) -> None:
        """Hold a batch."""
        with self._lock:
            _, before = self._built.pop(built.batch.step, (None, 0))
            num_bytes = built.num_bytes
            self.num_bytes += num_bytes - before
            self._built[built.batch.step] = built, num_bytes

    def drop_from(self, step: int) -> None:
        """Drop the batches of this step and later ones."""
        with self._lock:
            for void in [held for held in self._built if held >= step]:
                self.num_bytes -= self._built.pop(void)[1]

    def make_room(self, num_bytes: int, *, below: int) -> bool:
        """Drop the oldest batches of steps below ``below`` for ``num_bytes`` more; return whether there is room."""
        with self._lock:
            while self._built and self.num_bytes + num_bytes > self.max_bytes:
                oldest = next(iter(self._built))
                if oldest >= below:
                    return False
                self.num_bytes -= self._built.pop(oldest)[1]
            return True


class Bell:
    """Lets coroutines wait for what threads do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Future[None], int] = {}

    def ticket(self, step: int) -> asyncio.Future[None]:
        """Return a future that the next ring for ``step`` resolves; take it before looking whether to wait."""
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting[future] = step
        return future

    def forget(self, ticket: asyncio.Future[None]) -> None:
        """Give back a ticket that is not waited for."""
        with self._lock:
            self._waiting.pop(ticket, None)

    def ring(self, *, below: int = sys.maxsize) -> None:
        """Wake who waits for a step below this one; by default all: each may have become another's turn."""
        with self._lock:
            woken = [future for future, step in self._waiting.items() if step < below]
            for future in woken:
                del self._waiting[future]
        for future in woken:
            loop = future.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(resolve, future)


class Turns:
    """Lets coroutines go on one in each round of the event loop, so that whatever else is asked comes in between."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Return when it is this coroutine's turn: first come, first served."""
        loop = asyncio.get_running_loop()
        if self._is_taken:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn
        else:
            self._is_taken = True
            loop.call_soon(self._pass_on, loop)

    def _pass_on(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its client is gone
                turn.set_result(None)
                loop.call_soon(self._pass_on, loop)
                return
        self._is_taken = False


def resolve(future: asyncio.Future[None]) -> None:
    """Let go on who waits for this, unless that is done."""
    if not future.done():
        future.set_result(None)
