"""What happens in the runs, as it happens, for those who listen: phases, pivots, alarms."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

KEPT = 1000  # events that a listener who was away can still be given
QUEUE = 1000  # events that a slow listener may be behind before it is cut off
CHECK_S = 1.0  # from one look at who listens to the next
HEARTBEAT_S = 15.0  # a comment this often, so that proxies keep the connection and a vanished listener is noticed


@dataclass(frozen=True)
class Event:
    """One event; numbers go up by one."""

    number: int
    kind: str
    record: dict[str, Any]

    def encode(self) -> bytes:
        """Return it as server-sent events have it."""
        return b"id: %d\nevent: %s\ndata: %s\n\n" % (self.number, self.kind.encode(), orjson.dumps(self.record))


class Events:
    """Tells every listener of every event; ``publish`` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._number = 0
        self._listeners: set[tuple[asyncio.AbstractEventLoop, asyncio.Queue[Event | None]]] = set()
        self._is_closed = False

    def publish(self, kind: str, record: dict[str, Any]) -> None:
        """Tell all who listen."""
        with self._lock:
            self._number += 1
            event = Event(self._number, kind, record)
            self._kept.append(event)
            for loop, queue in self._listeners:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_put, queue, event)

    def close(self) -> None:
        """End every listener's stream."""
        self._is_closed = True
        with self._lock:
            for loop, queue in self._listeners:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_end, queue)

    async def listen(
        self, run: str, *, after: int | None = None, is_welcome: Callable[[], Awaitable[bool]] | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the events of a run as server-sent events.

        Args:
            run: which one.
            after: those kept since this number come first.
            is_welcome: asked again and again; the stream ends when it says no.
        """
        queue: asyncio.Queue[Event | None] = asyncio.Queue(maxsize=QUEUE)
        me = (asyncio.get_running_loop(), queue)
        with self._lock:
            missed = [event for event in self._kept if after is not None and event.number > after]
            self._listeners.add(me)
        try:
            yield b"retry: 2000\n\n"
            for event in missed:
                if event.record.get("run") == run:
                    yield event.encode()
            looked_at = told_at = time.monotonic()
            while not self._is_closed:
                following: Event | None
                try:
                    following = await asyncio.wait_for(queue.get(), CHECK_S)
                    if following is None:
                        return
                except TimeoutError:
                    following = None
                now = time.monotonic()
                if is_welcome is not None and now - looked_at >= CHECK_S:  # also while one event follows the other
                    looked_at = now
                    if not await is_welcome():
                        return
                if following is not None and following.record.get("run") == run:
                    told_at = now
                    yield following.encode()
                elif now - told_at >= HEARTBEAT_S:
                    told_at = now
                    yield b": still here\n\n"
        finally:
            with self._lock:
                self._listeners.discard(me)


def _put(queue: asyncio.Queue[Event | None], event: Event) -> None:
    try:
        queue.put_nowait(event)
    except asyncio.QueueFull:
        _end(queue)  # it asks again from the last number that it saw


def _end(queue: asyncio.Queue[Event | None]) -> None:
    with contextlib.suppress(asyncio.QueueEmpty):
        while queue.full():
            queue.get_nowait()
    queue.put_nowait(None)
