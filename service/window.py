"""Batches in memory: those built ahead and those asked for lately, within a bound of bytes; encoded once per rank."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from mixer.batches import RowBatch
from service.wire import Body, encode, rows_in


@dataclass(eq=False)
class Built:
    """A global batch, and the bodies made of it so far by (rank, world size)."""

    batch: RowBatch
    bodies: dict[tuple[int, int], Body] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes: the rows, and as many again once they are encoded for every rank."""
        return 2 * self.batch.rows.nbytes

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
        self._built: OrderedDict[int, Built] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._built)

    def get(self, step: int) -> Built | None:
        """Return the batch of a step, if it is held."""
        return self._built.get(step)

    def add(self, built: Built) -> None:
        """Hold a batch."""
        with self._lock:
            before = self._built.pop(built.batch.step, None)
            self.num_bytes += built.num_bytes - (0 if before is None else before.num_bytes)
            self._built[built.batch.step] = built

    def drop_from(self, step: int) -> None:
        """Drop the batches of this step and later ones."""
        with self._lock:
            for void in [held for held in self._built if held >= step]:
                self.num_bytes -= self._built.pop(void).num_bytes

    def make_room(self, num_bytes: int, *, below: int) -> bool:
        """Drop the oldest batches of steps below ``below`` for ``num_bytes`` more; return whether there is room."""
        with self._lock:
            while self._built and self.num_bytes + num_bytes > self.max_bytes:
                oldest = next(iter(self._built))
                if oldest >= below:
                    return False
                self.num_bytes -= self._built.pop(oldest).num_bytes
            return True


class Bell:
    """Lets coroutines wait for what threads do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[asyncio.Future[None]] = set()

    def ticket(self) -> asyncio.Future[None]:
        """Return a future that the next ring resolves; take it before looking what there is to wait for."""
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.add(future)
        return future

    def forget(self, ticket: asyncio.Future[None]) -> None:
        """Give back a ticket that is not waited for."""
        with self._lock:
            self._waiting.discard(ticket)

    def ring(self) -> None:
        """Wake all who wait."""
        with self._lock:
            waiting, self._waiting = self._waiting, set()
        for future in waiting:
            loop = future.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, future)


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


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
