"""What happens in the runs, as it happens, for those who listen: phases, pivots, alarms."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson

KEPT = 1000  # events that a listener who was away can still be given
QUEUE = 1000  # events that a slow listener may be behind before it is cut off
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

    async def listen(self, run: str, *, after: int | None = None) -> AsyncIterator[bytes]:
        """Yield the events of a run as server-sent events, those kept since number ``after`` first."""
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
            while not self._is_closed:
                try:
                    following = await asyncio.wait_for(queue.get(), HEARTBEAT_S)
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                if following is None:
                    return
                if following.record.get("run") == run:
                    yield following.encode()
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
