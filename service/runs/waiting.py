"""Waiting for steps that are not built yet: who waits, who is told, and in which order."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque


class StepNotifier:
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


class FairQueue:
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
